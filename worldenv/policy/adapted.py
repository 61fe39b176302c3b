"""What released policies have in common: what of them learns and is saved, their settings, and how they are written."""

from collections.abc import Callable, Mapping
from dataclasses import asdict
from json import dumps
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.fields import from_document
from worldenv.files import new_folder, read_json

FILE = "worldenv.json"  # in the folder of a policy: its configuration, as far as it differs from the defaults

Config = TypeVar("Config")


class Adapted(nn.Module):
    """A released network with low-rank adapters and heads that learn; all else is frozen.

    Only what learns is in the `state_dict`: a run need not save billions of frozen numbers with every iteration. By
    `frozen`, a number that those are known by, saved weights tell whether they belong to the same checkpoint.
    """

    def __init__(self, folder: Path, known: int):
        super().__init__()
        self.folder = folder
        self.register_buffer("frozen", torch.tensor([known], dtype=torch.int64))

    def finish(self) -> None:
        """When all modules are there: from here on, `state_dict` has what learns."""
        learns = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
        self._kept = learns | {"frozen"}
        self.register_state_dict_post_hook(_keep_what_learns)
        self.register_load_state_dict_pre_hook(_add_what_is_frozen)
        self.eval()

    def trainable(self) -> list[nn.Parameter]:
        """Adapters and heads."""
        return [parameter for parameter in self.parameters() if parameter.requires_grad]

    def head_parameters(self) -> list[nn.Parameter]:
        """Of these, what is no low-rank part of a layer: it may have a learning rate of its own."""
        return [p for name, p in self.named_parameters() if p.requires_grad and ".lora_" not in name]


def _keep_what_learns(policy: Adapted, state: dict[str, Tensor], prefix: str, metadata: object) -> None:
    for name in [name for name in state if name.startswith(prefix) and name.removeprefix(prefix) not in policy._kept]:
        del state[name]


def _add_what_is_frozen(policy: Adapted, state: dict[str, Tensor], prefix: str, *rest: object) -> None:
    """Saved weights lack what is frozen: it stays. Raises UserError if they were learnt on another checkpoint."""
    frozen = state.get(f"{prefix}frozen")
    if frozen is not None and not torch.equal(frozen.cpu(), policy.frozen.cpu()):
        raise UserError(
            f"these weights were learnt on another checkpoint than that in {policy.folder}; give the folder that they "
            "were learnt on"
        )
    for name, parameter in policy.named_parameters():
        if name not in policy._kept:
            state.setdefault(prefix + name, parameter)


def config_in(folder: Path, kind: type[Config]) -> Config:
    """The configuration in a folder's worldenv.json: what it does not say is as by default.

    Raises UserError for a field that is unknown or holds what it may not.
    """
    if not (folder / FILE).exists():
        return kind()
    said = _over(asdict(kind()), read_json(folder / FILE))
    return from_document(kind, said, str(folder / FILE))


def _over(defaults: dict[str, Any], said: Mapping[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in said.items() if isinstance(value, dict)}
    return {**defaults, **said, **{name: _over(defaults.get(name) or {}, value) for name, value in inner.items()}}


def write_folder(target: Path | str, config: dict[str, Any], fill: Callable[[Path], None]) -> Path:
    """Make a folder of a policy, whole or not at all: `fill` writes its files, `config` becomes its worldenv.json.

    Raises UserError if there is something already.
    """
    with new_folder(target) as made:
        fill(made)
        (made / FILE).write_text(dumps(config, indent=1) + "\n", encoding="utf-8")
    return Path(target).expanduser()
