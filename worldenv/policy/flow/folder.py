"""The folder of a flow policy: looked through before anything large is read, and written back."""

import re
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.interfaces.suite import Suite
from worldenv.policy import lora
from worldenv.policy.adapted import FILE, config_in, write_folder
from worldenv.policy.flow import pi0, smolvla
from worldenv.policy.flow.config import FlowConfig, Pi0Config, SmolVLAConfig
from worldenv.policy.flow.layout import VLM, Architecture, FlowNetwork, Said, vlm_folders
from worldenv.policy.flow.statistics import Scale, read_statistics
from worldenv.records.released import (
    INDEX,
    WEIGHTS,
    Release,
    check_finite,
    check_shapes,
    folder_of,
    header,
    inspect,
    library,
    put,
)

SCALE_FILE = "worldenv_scale_head.safetensors"  # ours, beside the authors' files
FIRST = r".*\.(dit|lm_expert)\.layers\.0\.self_attn\.q_proj\.weight"
DTYPES_STORED = {"BF16": torch.bfloat16, "F16": torch.float16}  # as safetensors calls them
KINDS: dict[str, tuple[type[FlowConfig], Callable[[Release, FlowConfig], Architecture]]] = {
    "pi0": (Pi0Config, pi0.architecture),
    "smolvla": (SmolVLAConfig, smolvla.architecture),
}


class ScaleHead(nn.Module):
    """State of the expert [..., W] -> where between its bounds the log-scale of each number is, 0 to 1: [..., A]."""

    def __init__(self, width: int, numbers: int):
        super().__init__()
        self.norm, self.inner, self.outer = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, numbers)

    def forward(self, hidden: Tensor) -> Tensor:
        return torch.sigmoid(self.outer(nn.functional.silu(self.inner(self.norm(hidden)))))


@dataclass(frozen=True)
class Found:
    """A folder that has been looked through. Of its large tensors only names and shapes have been read."""

    folder: Path
    release: Release
    config: FlowConfig
    views: tuple[str, ...]  # V
    chunk: int  # actions that are carried out
    steps: int  # S
    scales: dict[str, Scale]  # of "state" and "action"
    architecture: Architecture
    scale_head: ScaleHead | None  # on the device meta; None: there is none in the folder


def inspect_policy(path: Path | str, suite: Suite, kind: str, config: FlowConfig | None = None) -> Found:
    """Look through the folder of a policy, and say whether it fits the suite.

    config: None for what worldenv.json in the folder says, or else the defaults. Raises UserError naming the file and
    the remedy for anything that is missing, differs or is not known.
    """
    folder = folder_of(path)
    own, build = KINDS[kind]
    config = config_in(folder, own) if config is None else config
    if not isinstance(config, own):
        raise UserError(f"config is a {type(config).__name__}; it should be worldenv.{own.__name__}")
    if (folder / lora.WEIGHTS).exists() and not any((folder / name).exists() for name in (WEIGHTS, INDEX)):
        raise UserError(
            f"{folder} has an adapter alone, {lora.WEIGHTS}; merge it into the policy that it was trained on "
            "(peft does) and give the folder of the whole"
        )
    release = inspect(folder, (kind,))
    made = build(release, config)
    network = made.network
    scales = read_statistics(release, {"state": made.said.state, "action": made.said.action})
    for part, most in (("state", network.state_numbers), ("action", network.numbers)):
        if len(scales[part]) > most:
            raise UserError(f"{folder} has statistics of {len(scales[part])} numbers of {part}; its network has {most}")
    views = _views(config, suite, made.said)
    _check_suite(folder, suite, scales, config)
    chunk = config.chunk or min(made.executed, network.horizon)
    if chunk > network.horizon:
        raise UserError(f"chunk is {chunk}, and {folder} predicts {network.horizon} actions; take as many or fewer")
    if config.lora:
        library("peft")
        lora.fitting(network, *layers_of(network, config))
    head, numbers = None, len(scales["action"])
    if (folder / SCALE_FILE).exists():
        with torch.device("meta"):
            head = ScaleHead(network.width, numbers)
        wanted = {key: tuple(tensor.shape) for key, tensor in head.state_dict().items()}
        check_shapes(folder / SCALE_FILE, header(folder / SCALE_FILE), wanted, "delete it, for a new one")
    return Found(folder, release, config, views, chunk, config.steps or made.steps, scales, made, head)


def layers_of(network: FlowNetwork, config: FlowConfig) -> tuple[str, str]:
    """Regular expressions: the layers that get an adapter; those that get none: the head, and what is not used."""
    return network.expert if config.layers is None else config.layers, f"{re.escape(network.head)}|{network.unused}"


def _views(config: FlowConfig, suite: Suite, said: Said) -> tuple[str, ...]:
    views = config.views if config.views is not None else tuple(suite.views[: said.cameras])
    if said.cameras is not None and len(views) != said.cameras:
        remedy = "take a suite with as many" if config.views is None else "name as many"
        raise UserError(
            f"the policy looks at {said.cameras} pictures, by input_features of its config.json, and there are "
            f"{len(views)} views, {', '.join(views)}: {remedy}"
        )
    if missing := [view for view in views if view not in suite.views]:
        raise UserError(
            f"views has {', '.join(missing)}, which {suite.name} does not show; it has {', '.join(suite.views)}"
        )
    return views


def _check_suite(folder: Path, suite: Suite, scales: Mapping[str, Scale], config: FlowConfig) -> None:
    robot, ours = suite.robot, config.conventions.proprio
    if (numbers := len(scales["action"])) != robot.action_size:
        raise UserError(f"{folder} acts with {numbers} numbers, the robot of {suite.name} with {robot.action_size}")
    if len(ours) != (theirs := len(scales["state"])):
        raise UserError(
            f"conventions.proprio has {len(ours)} numbers, and the policy reads {theirs}; say in the policy's config "
            "which number each of them is"
        )
    if max(ours) >= robot.proprio_size:
        raise UserError(
            f"conventions.proprio names number {max(ours)}, and the robot of {suite.name} has {robot.proprio_size}, "
            "counted from 0; say in the policy's config which number each of them is"
        )


def stored_dtype(found: Found) -> torch.dtype:
    """That of the expert's first layer: some releases keep norms in another one, which no layer of the others takes."""
    key = next(key for key, own in found.architecture.names.items() if re.fullmatch(FIRST, own))
    with safe_open(found.release.entries[key].file, framework="pt", device="cpu") as opened:
        return DTYPES_STORED.get(opened.get_slice(key).get_dtype(), torch.float32)


def read_scale_head(found: Found) -> ScaleHead:
    """The head that lies in the folder, in float32."""
    with safe_open(found.folder / SCALE_FILE, framework="pt", device="cpu") as opened:
        for key in opened.keys():  # noqa: SIM118
            tensor = opened.get_tensor(key)
            check_finite(found.folder / SCALE_FILE, key, tensor)
            put(found.scale_head, key, tensor.to(torch.float32, copy=True))
    return found.scale_head


def write_policy(
    found: Found,
    target: Path | str,
    changed: Mapping[str, Callable[[], Tensor]],  # by name in the network
    scale_head: ScaleHead | None,
) -> Path:
    """Write a folder like the one that was read, with changed weights, for the authors' own code to load.

    Files with other contents are copied, and of the underlying model what is read of it; nothing is executed. The
    folder appears whole or not at all. Raises UserError if there is something already.
    """
    names = {own: key for key, own in found.architecture.names.items()}
    config = found.config

    def fill(made: Path) -> None:
        large = {entry.file.name for entry in found.release.entries.values()} | {INDEX, FILE}
        for path in found.folder.iterdir():
            if path.is_file() and path.name not in large and path.suffix not in (".bin", ".pt", ".pth"):
                shutil.copyfile(path, made / path.name)
        source = vlm_folders(found.folder, config.vlm)[-1]
        if source.is_dir():
            (made / VLM).mkdir()
            for path in source.glob("*.json"):
                shutil.copyfile(path, made / VLM / path.name)
        found.release.write_weights(made, {names[own]: whole for own, whole in changed.items()})
        if scale_head is not None:
            tensors = {key: t.detach().to("cpu").contiguous() for key, t in scale_head.state_dict().items()}
            save_file(tensors, made / SCALE_FILE)

    said = asdict(replace(config, views=found.views, vlm=None, steps=found.steps, chunk=found.chunk))
    return write_folder(target, said, fill)
