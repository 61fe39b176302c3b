"""What the files of a flow policy say: LeRobot's features, the names of its tensors, and the network that they fill."""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor, nn

from worldenv.fields import shown
from worldenv.policy.flow.prompt import Prompt
from worldenv.policy.flow.statistics import BUFFERS
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import AGAIN, Release, check_shapes

VLM = "vlm"  # folder in that of a policy: configuration and tokenizer of the model that it grew from
EMPTY = "observation.images.empty_camera_"  # pictures that are never there, and that nothing looks at


class Said(NamedTuple):
    """What config.json says of inputs and outputs; None: nothing."""

    cameras: int | None
    state: int | None
    action: int | None


class FlowNetwork(nn.Module):
    """What both networks offer: pictures, prompt and state are read once, and then the velocity in several steps.

    `head`: the name of the layer that gives the velocity, which learns as a whole; `expert`: a regular expression, the
    linear layers that get an adapter unless others are named; `unused`: those that no result depends on.
    """

    head: str
    expert: str
    unused: str
    horizon: int  # K, actions that are predicted
    numbers: int  # D, numbers of each, filled up with 0
    state_numbers: int
    width: int  # W, of the expert
    state_in_step: bool  # whether the expert reads the state, in every step; False: the language model does

    def seen(self, pixels: Tensor) -> Tensor:
        """What the vision tower makes of pictures [B, V, 3, S, S]: [B, V * L, D], as the language model takes it."""
        raise NotImplementedError

    def prefix(self, pixels: Tensor, tokens: Tensor, state: Tensor) -> Any:
        """What the steps need of pictures [B, V, 3, S, S], prompts [B, L] and states [B, D]."""
        raise NotImplementedError

    def velocity(self, prefix: Any, x: Tensor, time: Tensor) -> tuple[Tensor, Tensor]:
        """Velocity [B, K, D] and state of the expert [B, K, W], float32, at x [B, K, D] and time [B], 1 to 0."""
        raise NotImplementedError

    def kept(self, prefix: Any) -> dict[str, Tensor]:
        """What `step` takes of a prefix: keys and values [B, layers, L, heads, size], real [B, L] bool, and more."""
        raise NotImplementedError

    def language(self, seen: Tensor, tokens: Tensor, *state: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Keys, values and real of `kept`, from tensors alone: what can be exported."""
        raise NotImplementedError

    def step(self, x: Tensor, time: Tensor, *kept: Tensor) -> tuple[Tensor, Tensor]:
        """`velocity`, of float32, from tensors alone: what can be exported."""
        raise NotImplementedError

    def off_meta(self) -> None:
        """Make what no file holds, for a network that was built on the device meta."""
        raise NotImplementedError

    def to_compile(self) -> list[nn.Module]:
        """The parts that torch compiles if WORLDENV_COMPILE is 1."""
        raise NotImplementedError

    def head_layer(self) -> nn.Linear:
        return self.get_submodule(self.head)


@dataclass(frozen=True)
class Architecture:
    """A network that no tensor has been read into, and what its configuration says beside it."""

    network: FlowNetwork  # on the device meta
    names: dict[str, str]  # of tensors in the files -> in the network
    said: Said
    size: int  # S, pixels
    executed: int  # actions that are carried out
    steps: int  # S, of the integration
    prompt: Prompt


def features(path: Path, document: Mapping[str, Any]) -> Said:
    """What LeRobot's configuration says of cameras, state and action. Raises CheckpointError if it makes no sense."""
    inputs, outputs = document.get("input_features") or {}, document.get("output_features") or {}
    try:
        cameras = [k for k, f in inputs.items() if f["type"] == "VISUAL" and not k.startswith(EMPTY)]
        state, action = (
            None if name not in found else whole(path, found[name], "shape", 0)
            for found, name in ((inputs, "observation.state"), (outputs, "action"))
        )
    except (AttributeError, KeyError, TypeError, IndexError):
        raise CheckpointError(f"{path}: input_features or output_features are of another kind; {AGAIN}") from None
    return Said(len(cameras) if inputs else None, state, action)


def whole(path: Path, document: Mapping[str, Any], name: str, place: int | None = None) -> int:
    """A positive whole number of a document, or of a list in it. Raises CheckpointError for anything else."""
    value = document.get(name) if place is None else document[name][place]
    if not isinstance(value, int) or isinstance(value, bool) or not 0 < value < 2**31:
        raise CheckpointError(f"{path}: {name} is {shown(value)}; it should be a whole number above 0; {AGAIN}")
    return value


def matched(
    release: Release,
    network: nn.Module,
    canonical: Callable[[str], str],  # name in the files or in the network -> one by which they are the same
    unused: str,  # regular expression: the names, made the same, of tensors that nothing reads
    remedy: str = AGAIN,
) -> dict[str, str]:
    """Name in the files -> name in the network, for each of its tensors.

    Of two tensors in the files that are the same one in the network, tied weights, the first is read. Raises
    CheckpointError if one is missing, left over or of another shape.
    """
    inner = {canonical(name): (name, tuple(tensor.shape)) for name, tensor in network.state_dict().items()}
    taken: dict[str, str] = {}
    for key in sorted(release.entries):
        name = canonical(key)
        if not key.startswith(BUFFERS) and not re.fullmatch(unused, name):
            taken.setdefault(name, key)
    found = {key: release.shapes[key] for key in taken.values()}
    wanted = {taken.get(name, name): shape for name, (_, shape) in inner.items()}
    check_shapes(release.folder, found, wanted, remedy)
    return {taken[name]: own for name, (own, _) in inner.items()}


def vlm_folders(folder: Path, vlm: str | None) -> list[Path]:
    """Where configuration and tokenizer of the underlying model may lie, the likeliest place last."""
    if vlm is not None:
        return [(folder / Path(vlm).expanduser()).resolve()]
    return [folder, folder / VLM]


# What both kinds may be configured to do, and do not do here.
PLAIN = {
    "n_obs_steps": 1,
    "adapt_to_pi_aloha": False,
    "use_delta_joint_actions_aloha": False,
    "use_relative_actions": False,
}


def refuse(path: Path, document: Mapping[str, Any], **more: Any) -> None:
    """Raise CheckpointError for a setting of the authors, of those above and more, that is not known here."""
    for name, value in (PLAIN | more).items():
        if document.get(name, value) != value:
            raise CheckpointError(
                f"{path}: {name} is {shown(document[name])}, and only {shown(value)} is known here; take another "
                "release"
            )
