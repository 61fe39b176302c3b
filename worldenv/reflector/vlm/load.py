"""From the folder of a released vision-language model to one that can be asked: all weights fit, or it is refused."""

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import torch

from worldenv.files import read_json
from worldenv.nn.attention import name_in
from worldenv.nn.compiled import compile_if_wanted
from worldenv.records.checkpoint import CheckpointError, check_file, one_line
from worldenv.records.released import AGAIN, Release, inspect, library
from worldenv.records.transformers_folder import check_info, check_weights, quiet, read_configuration
from worldenv.reflector.vlm.families import FAMILIES
from worldenv.reflector.vlm.model import Vlm, answers_of
from worldenv.reflector.vlm.pixels import Look

DTYPES = {"file": "auto", "float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
PICTURES = ("preprocessor_config.json", "processor_config.json")
SPECIAL = re.compile(r"<[^<>]+>")  # tokens of a chat


class Found(NamedTuple):
    """A folder that has been looked through."""

    release: Release
    family: type[Vlm]
    network: type  # class of transformers
    config: Any  # transformers' own object
    encode: Callable[[str], list[int]]  # words to tokens
    look: Look


def inspect_vlm(folder: Path) -> Found:
    """Look through the folder of a model: names and shapes of all weights fit, or it is refused.

    Raises UserError for a folder of another kind, for files that are missing or damaged, and for weights that are not
    exactly the configuration's.
    """
    name_in("transformers")  # raises UserError for an attention that cannot be used
    release = inspect(folder, FAMILIES)
    if "quantization_config" in release.config:
        raise CheckpointError(f"{folder} has quantised weights; take the version of the model in bfloat16 or float32")
    family, name = FAMILIES[release.config["model_type"]]
    look = read_pictures(release.folder)
    with quiet() as transformers:
        network = getattr(transformers, name)
        config = read_configuration(release, network.config_class)
        encode = _tokenizer(release.folder, config.get_text_config().vocab_size, family)
        check_weights(release, network, config)
    return Found(release, family, network, config, encode, look)


def load_vlm(folder: Path, dtype: str, side: int, question: str, budget: int) -> Vlm:
    """The model of a folder on the CPU, frozen, in evaluation mode; `dtype` "file" is that of its weights.

    Nothing is downloaded, no code of the folder is run, no pickle is opened. Raises UserError, before weights are read,
    as `inspect_vlm` does.
    """
    found = inspect_vlm(folder)
    with quiet():
        network, info = found.network.from_pretrained(
            found.release.folder,
            config=found.config,
            dtype=DTYPES[dtype],
            attn_implementation=name_in("transformers"),
            local_files_only=True,
            use_safetensors=True,
            trust_remote_code=False,
            output_loading_info=True,
        )
    check_info(found.release, info)
    made = found.family(network.requires_grad_(False).eval(), found.encode, found.look, side, question, budget)
    compile_if_wanted(made.vision, made.language)
    return made


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
