"""The folder of a policy in its authors' layout: looked through before anything large is read, and written back."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.files import read_json
from worldenv.interfaces.suite import Suite
from worldenv.policy import lora
from worldenv.policy.adapted import FILE, config_in, write_folder
from worldenv.policy.openvla_oft.config import OpenVLAConfig
from worldenv.policy.openvla_oft.network import TOWERS, ActionHead, Mlp, Network, TowerSizes, language_config
from worldenv.policy.openvla_oft.prompt import SPACE, Prompt
from worldenv.policy.openvla_oft.statistics import Bounds, read_statistics
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import (
    AGAIN,
    INDEX,
    WEIGHTS,
    Release,
    check_finite,
    check_shapes,
    component,
    folder_of,
    inspect,
    library,
    mixed,
    put,
    read_pickle,
)

OUTPUT = r"language_model\.lm_head"  # of which only the rows of action tokens are computed: it gets no adapter
ADAPTER, PICTURES = "lora_adapter", "preprocessor_config.json"
# timm's name of a vision tower -> its heads; the authors' towers of 224 pixels, in their order.
HEADS = {"vit_large_patch14_reg4_dinov2.lvd142m": 16, "vit_so400m_patch14_siglip_224": 16}
REFUSED = {  # the file that a variant has beside the others -> what it is
    "vision_backbone": "FiLM (its vision towers read the instruction)",
    "noisy_action_projector": "diffusion (its actions are denoised)",
}
VIEWS = ("agentview", "wrist")  # the authors' cameras, in their order, by the names of LIBERO here
PROMPT_ROOM = 64  # tokens of the longest prompt, or so


@dataclass(frozen=True)
class Found:
    """A folder that has been looked through. Of its tensors only names and shapes have been read."""

    folder: Path
    release: Release  # of the network under an adapter: the folder's own, or that of `base`
    config: OpenVLAConfig
    views: tuple[str, ...]  # V
    size: int  # S, pixels
    mean: tuple[tuple[float, ...], ...]  # [2, 3]
    std: tuple[tuple[float, ...], ...]  # [2, 3]
    bounds: dict[str, Bounds]  # of actions, and of proprioception where the policy reads it
    prompt: Prompt
    bins: int  # of action tokens
    first_bin: int  # the id of the first one
    network: Network  # on the device meta
    heads: dict[str, nn.Module]  # on the device meta: action_head, proprio_projector, scale_head, as far as there
    files: dict[str, Path]  # of the heads


def inspect_policy(path: Path | str, suite: Suite, config: OpenVLAConfig | None = None) -> Found:
    """Look through the folder of a policy, and say whether it fits the suite.

    config: None for what worldenv.json in the folder says, or else the defaults. Raises UserError naming the file and
    the remedy for anything that is missing, differs or is not known.
    """
    folder = folder_of(path)
    config = config_in(folder, OpenVLAConfig) if config is None else config
    for name, what in REFUSED.items():
        if (file := component(folder, name)) is not None:
            raise UserError(f"{file} belongs to the variant {what}, which is not read here; take another release")
    release = _weights(folder, config.base)
    document = release.config
    towers, size, text, pad = _architecture(release)
    with torch.device("meta"):
        network = Network(towers, text, pad)
    wanted = {key: tuple(tensor.shape) for key, tensor in network.state_dict().items()}
    used = {key: shape for key, shape in release.shapes.items() if not _is_unused(key, towers)}
    check_shapes(release.folder, used, wanted, AGAIN)
    if has_adapter_alone(folder):
        lora.inspect_adapter(folder / ADAPTER, release.shapes)
    bounds = read_statistics(folder, document, config.statistics, suite.name, config.conventions.bounds)
    files = {name: component(folder, name) for name in ("action_head", "proprio_projector", "scale_head")}
    files = {name: file for name, file in files.items() if file is not None}
    heads = _heads(files, text.hidden_size, bounds, config)
    if "action_head" not in heads and not config.lora:
        raise UserError("lora is 0, and a policy of action tokens has no head that could learn: take a rank above 0")
    if config.lora:
        library("peft")
        lora.fitting(network, config.layers, OUTPUT)
    if "proprio_projector" not in heads:
        bounds = {"action": bounds["action"]}
    views = _views(config, suite, "proprio_projector" in heads)
    _check_suite(folder, suite, bounds, config)
    patches, numbers = sum(towers[0].side ** 2 for _ in views), config.chunk * len(bounds["action"].low)
    if patches + numbers + PROMPT_ROOM > text.max_position_embeddings:
        raise UserError(
            f"chunk is {config.chunk}; {numbers} numbers of it and {patches} patches are more than the "
            f"{text.max_position_embeddings} positions of the language model: take a smaller chunk or fewer views"
        )
    bins = document.get("n_action_bins", 256)
    first = text.vocab_size - document.get("pad_to_multiple_of", 64) - bins
    mean, std = _normalisation(folder)
    given = config, views, size, mean, std, bounds, Prompt(folder, pad), bins, first, network, heads, files
    return Found(folder, release, *given)


def has_adapter_alone(folder: Path) -> bool:
    """Whether a folder has an adapter and no weights: the authors' runs that were not merged."""
    return (folder / ADAPTER).is_dir() and not (folder / INDEX).exists() and not (folder / WEIGHTS).exists()


def _weights(folder: Path, base: str | None) -> Release:
    if not has_adapter_alone(folder):
        if base is not None:
            raise UserError(f"{folder} has the whole weights, so it needs no `base`; leave it out")
        return inspect(folder, ("openvla",))
    if base is None:
        said = read_json(folder / ADAPTER / lora.CONFIG).get("base_model_name_or_path")
        raise UserError(
            f"{folder} has an adapter and not the weights under it; name the folder of the model that it was trained "
            f"on as `base`, in {FILE} or OpenVLAConfig (the adapter calls it {str(said)[:100]!r})"
        )
    return inspect(folder / Path(base).expanduser(), ("openvla",))


def _architecture(release: Release) -> tuple[tuple[TowerSizes, TowerSizes], int, Any, int]:
    """Sizes of the towers, pixels of a picture, configuration of the language model, id of padding."""
    document, where = release.config, release.folder / "config.json"
    names, sizes = document.get("timm_model_ids"), document.get("image_sizes")
    if not document.get("use_fused_vision_backbone") or names != list(HEADS):
        raise UserError(
            f"{where}: its vision towers are {names}; only {' with '.join(HEADS)} are known here, those of OpenVLA 7B"
        )
    if any(document.get("timm_override_act_layers") or ()):
        raise UserError(f"{where}: timm_override_act_layers is {document['timm_override_act_layers']}; none is known")
    try:
        towers = tuple(TowerSizes.of(release.shapes, tower, HEADS[n]) for tower, n in zip(TOWERS, names, strict=True))
        text = language_config(document.get("text_config") or {})
    except UserError as error:
        raise CheckpointError(f"{release.folder}: {error}; {AGAIN}") from error
    pixels = [tower.side * tower.patch for tower in towers]
    if sizes != pixels or len(set(pixels)) > 1:
        raise CheckpointError(f"{where}: image_sizes is {sizes}, and the towers look at {pixels} pixels; {AGAIN}")
    if any(tower.width % tower.heads or tower.blocks < 1 for tower in towers):
        raise CheckpointError(f"{release.folder}: the widths of the towers are no multiples of their heads; {AGAIN}")
    pad = document.get("pad_token_id", 32000)
    if not SPACE < pad < text.vocab_size:
        raise CheckpointError(f"{where}: pad_token_id is {pad}, of a vocabulary of {text.vocab_size}; {AGAIN}")
    return towers, pixels[0], text, pad


def _is_unused(key: str, towers: tuple[TowerSizes, TowerSizes]) -> bool:
    """Whether the files have a tensor that no result depends on."""
    for tower, sizes in zip(TOWERS, towers, strict=True):
        if key.startswith((f"{tower}.norm.", f"{tower}.attn_pool.", f"{tower}.blocks.{sizes.blocks}.")):
            return True
    return False


def _heads(
    files: Mapping[str, Path], width: int, bounds: Mapping[str, Bounds], config: OpenVLAConfig
) -> dict[str, nn.Module]:
    """The heads of a checkpoint, on the device meta; their files have been checked against them."""
    numbers = len(bounds["action"].low)
    heads: dict[str, nn.Module] = {}
    with torch.device("meta"):
        for name in files.keys() & {"action_head", "scale_head"}:
            heads[name] = ActionHead(width, numbers)
        if "proprio_projector" in files:
            if "proprio" not in bounds:
                raise CheckpointError(
                    f"{files['proprio_projector']} reads proprioception, and dataset_statistics.json has no bounds of "
                    "it; copy that file from the same release"
                )
            heads["proprio_projector"] = Mlp(len(bounds["proprio"].low), width, width)
    if "scale_head" in heads and "action_head" not in heads:
        raise CheckpointError(f"{files['scale_head']} lies there without an action_head; copy that beside it")
    for name, head in heads.items():
        found = {key.removeprefix("module."): tuple(t.shape) for key, t in read_pickle(files[name]).items()}
        wanted = {key: tuple(tensor.shape) for key, tensor in head.state_dict().items()}
        check_shapes(files[name], found, wanted, f"it is of another model or robot ({numbers} numbers of an action)")
    ours = len(config.conventions.proprio)
    if "proprio_projector" in heads and ours != (theirs := len(bounds["proprio"].low)):
        raise UserError(
            f"conventions.proprio has {ours} numbers, and the policy reads {theirs}; say in OpenVLAConfig which number "
            "each of them is"
        )
    return heads


def _views(config: OpenVLAConfig, suite: Suite, has_proprio: bool) -> tuple[str, ...]:
    views = config.views
    if views is None:
        count = 2 if has_proprio else 1
        views = VIEWS[:count] if {*VIEWS[:count]} <= {*suite.views} else tuple(suite.views[:count])
    if config.views is None and has_proprio and len(views) < 2:
        raise UserError(
            f"releases with proprioception look at two pictures, of the scene and of the wrist; {suite.name} shows "
            f"{', '.join(suite.views)} alone: take a suite with both, or say for a policy that was trained with one "
            f"picture OpenVLAConfig(views={tuple(views)})"
        )
    if missing := [view for view in views if view not in suite.views]:
        raise UserError(
            f"views has {', '.join(missing)}, which {suite.name} does not show; it has {', '.join(suite.views)}"
        )
    return views


def _check_suite(folder: Path, suite: Suite, bounds: Mapping[str, Bounds], config: OpenVLAConfig) -> None:
    numbers, robot = len(bounds["action"].low), suite.robot
    if numbers != robot.action_size:
        raise UserError(f"{folder} acts with {numbers} numbers, the robot of {suite.name} with {robot.action_size}")
    if "proprio" in bounds and max(config.conventions.proprio) >= robot.proprio_size:
        raise UserError(
            f"conventions.proprio names number {max(config.conventions.proprio)}, and the robot of {suite.name} has "
            f"{robot.proprio_size}, counted from 0; say in OpenVLAConfig which number each of them is"
        )


def _normalisation(folder: Path) -> tuple[tuple[tuple[float, ...], ...], ...]:
    """Mean and standard deviation of the colours, for both towers: each [2, 3].

    What the authors' processor applies is `tvf_normalize_params`, which are the others as their model's dtype rounds.
    """
    if not (folder / PICTURES).exists():
        raise CheckpointError(f"{folder} has no {PICTURES}, by which pictures are normalised; copy it from the release")
    document = read_json(folder / PICTURES)
    applied = document.get("tvf_normalize_params")
    if isinstance(applied, list) and all(isinstance(one, dict) for one in applied):
        document = {f"{name}s": [one.get(name) for one in applied] for name in ("mean", "std")}
    out = []
    for name in ("means", "stds"):
        rows = document.get(name)
        fits = isinstance(rows, list) and len(rows) == 2 and all(isinstance(r, list) and len(r) == 3 for r in rows)
        if not fits or not all(isinstance(x, int | float) for row in rows for x in row):
            raise CheckpointError(f"{folder / PICTURES} has no {name} of three colours for two towers; copy it again")
        out.append(tuple(tuple(map(float, row)) for row in rows))
    return tuple(out)


def read_head(found: Found, name: str) -> int:
    """Read the tensors of a head, in float32; returns a number that they are known by."""
    known = 0
    for key, tensor in sorted(read_pickle(found.files[name]).items()):
        check_finite(found.files[name], key, tensor)
        known = mixed(known, tensor)
        put(found.heads[name], key.removeprefix("module."), tensor.to(torch.float32, copy=True))
    return known


def write_policy(
    found: Found,
    target: Path | str,
    changed: Mapping[str, Callable[[], Tensor]],  # by name, as `Release.write_weights` takes them
    heads: Mapping[str, nn.Module],
) -> Path:
    """Write a folder like the one that was read, with changed weights and heads, for the authors' own code to load.

    Files with other contents are copied, their programs too; nothing is executed. An adapter is merged, so none is
    written. The folder appears whole or not at all. Raises UserError if there is something already.
    """

    def fill(made: Path) -> None:
        for source in {found.release.folder: None, found.folder: None}:  # in this order, once
            _copy_small(source, made)
        found.release.write_weights(made, changed)
        for name, head in heads.items():
            _write_head(found, name, head, made)

    return write_folder(target, asdict(found.config) | {"views": found.views, "base": None}, fill)


def _copy_small(source: Path, target: Path) -> None:
    for path in source.iterdir():
        is_weights = path.suffix in (".safetensors", ".bin", ".pt") or path.name in (INDEX, FILE)
        if path.is_file() and not is_weights:
            shutil.copyfile(path, target / path.name)


def _write_head(found: Found, name: str, head: nn.Module, folder: Path) -> None:
    like = found.files.get(name) or found.files["action_head"]
    old = read_pickle(like)
    prefix = "module." if next(iter(old)).startswith("module.") else ""
    dtype = next(iter(old.values())).dtype
    tensors = {f"{prefix}{key}": t.detach().to("cpu", dtype).clone() for key, t in head.state_dict().items()}
    torch.save(tensors, folder / re.sub(r"^\w+--", f"{name}--", like.name))
