"""From the folder of a released vision-language model to one that can be asked: all weights fit, or it is refused."""

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from worldenv.files import read_json
from worldenv.nn.attention import name_in
from worldenv.records.checkpoint import CheckpointError, check_file, one_line
from worldenv.records.released import AGAIN, CONFIG, INDEX, WEIGHTS, Release, check_shapes, inspect, library
from worldenv.reflector.vlm.families import FAMILIES
from worldenv.reflector.vlm.model import Vlm, answers_of
from worldenv.reflector.vlm.pixels import Look

DTYPES = {"file": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICTURES = ("preprocessor_config.json", "processor_config.json")
WRONG = (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError)
SPECIAL = re.compile(r"<[^<>]+>")  # tokens of a chat
REMEDY = f"{AGAIN}, or give weights and {CONFIG} that belong together"


def load_vlm(folder: Path, dtype: str, side: int, question: str, budget: int) -> Vlm:
    """The model of a folder on the CPU, frozen, in evaluation mode; `dtype` "file" is that of its weights.

    Nothing is downloaded, no code of the folder is run, no pickle is opened. Raises UserError for a folder of another
    kind, for files that are missing or damaged, and for weights that are not exactly the configuration's; only then
    the weights are read.
    """
    release = inspect(folder, FAMILIES)
    if "quantization_config" in release.config:
        raise CheckpointError(f"{folder} has quantised weights; take the version of the model in bfloat16 or float32")
    family, name = FAMILIES[release.config["model_type"]]
    look, attends = read_pictures(release.folder), name_in("transformers")
    with _quiet() as transformers:
        network_class = getattr(transformers, name)
        config = read_configuration(release, network_class.config_class)
        encode = _tokenizer(release.folder, config.get_text_config().vocab_size, family)
        _check_weights(release, network_class, config)
        network, info = network_class.from_pretrained(
            release.folder,
            config=config,
            dtype=DTYPES[dtype],
            attn_implementation=attends,
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    _check_info(release, info)
    return family(network.requires_grad_(False).eval(), encode, look, side, question, budget)


@contextmanager
def _quiet() -> Iterator[ModuleType]:
    """transformers, without its progress bars and reports: our errors say what is wrong with weights."""
    transformers, _ = library("transformers"), library("accelerate")
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_configuration(release: Release, config_class: type) -> Any:
    """transformers' own object of a folder's config.json. Raises CheckpointError if it does not take it."""
    try:
        return config_class.from_dict({k: v for k, v in release.config.items() if k != "auto_map"})
    except Exception as error:  # the classes check their fields with errors of their own
        raise CheckpointError(
            f"{release.folder / CONFIG} is no configuration of {config_class.__name__} ({one_line(error)}); {AGAIN}"
        ) from error


def _check_weights(release: Release, network_class: type, config: Any) -> None:
    """Load the shapes alone, on the device meta, with the library's own renaming: no weight is read."""
    shapes = {name: torch.empty(entry.shape, device="meta") for name, entry in release.entries.items()}
    try:
        _, info = network_class.from_pretrained(
            None,
            config=config,
            state_dict=shapes,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, as what is missing is
        )
    except WRONG as error:
        raise CheckpointError(f"{release.folder / CONFIG} makes no model ({one_line(error)}); {AGAIN}") from error
    _check_info(release, info)


def _check_info(release: Release, info: dict[str, Any]) -> None:
    """Raise CheckpointError for what the library would only log, filling up with random numbers."""
    different = {name: (tuple(mine), tuple(theirs)) for name, mine, theirs in info["mismatched_keys"]}
    found = dict.fromkeys(info["unexpected_keys"], ()) | {name: mine for name, (mine, _) in different.items()}
    wanted = dict.fromkeys(info["missing_keys"], ()) | {name: theirs for name, (_, theirs) in different.items()}
    where = release.folder / (INDEX if (release.folder / INDEX).exists() else WEIGHTS)
    if found:
        where = _file_of(release, min(found))
    check_shapes(where, found, wanted, REMEDY)
    if problems := [*(info.get("error_msgs") or ()), *(info.get("conversion_errors") or {}).values()]:
        raise CheckpointError(f"{where} cannot be read ({str(problems[0])[:200]}); {AGAIN}")


def _file_of(release: Release, name: str) -> Path:
    """The file with a tensor that the library knows by another name: the one whose name ends most alike."""

    def alike(stored: str) -> int:
        pairs = zip(reversed(stored.split(".")), reversed(name.split(".")), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(name))

    return release.entries[max(release.entries, key=alike)].file


def read_pictures(folder: Path) -> Look:
    """How pictures are shown to the model. Raises CheckpointError if no file says it."""
    path = next((folder / name for name in PICTURES if (folder / name).exists()), None)
    if path is None:
        raise CheckpointError(f"{folder} lacks {PICTURES[0]}, which says how pictures are shown to the model; {AGAIN}")
    document = read_json(path)
    return Look.of(document.get("image_processor", document), str(path))


def _tokenizer(folder: Path, size: int, family: type[Vlm]) -> Callable[[str], list[int]]:
    path = folder / "tokenizer.json"
    check_file(path)
    try:
        tokenizer = library("tokenizers").Tokenizer.from_file(str(path))
    except Exception as error:  # the library has no class of errors
        raise CheckpointError(f"{path} is no tokenizer ({one_line(error)}); download it again") from error
    if (last := max(tokenizer.get_vocab().values(), default=0)) >= size:
        raise CheckpointError(
            f"{path} has the token {last:,}, and the model knows {size:,}: it belongs to another model; {AGAIN}"
        )
    chat = SPECIAL.findall("".join((family.before, *family.ends, family.after)))
    if lacking := [token for token in chat if tokenizer.token_to_id(token) is None]:
        raise CheckpointError(f"{path} lacks {lacking[0]}, which this family's chats have: {AGAIN}")

    def encode(text: str) -> list[int]:
        return tokenizer.encode(text, add_special_tokens=False).ids

    answers_of(encode, path)
    return encode
