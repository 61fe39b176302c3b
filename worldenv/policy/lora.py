"""Low-rank adapters (LoRA) on a frozen network, through peft: new ones, and those of a checkpoint, which are merged."""

import re
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.files import read_json
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import Shape, check_finite, check_shapes, header, library, mixed

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."  # that peft puts before the name of a layer
STRONGEST = 16  # lora_alpha of the authors of OpenVLA: the rank, and 16 at most
PLAIN = {"peft_type": ("LORA",), "bias": ("none",), "use_dora": (False,), "modules_to_save": (None, [])}


def add_lora(network: nn.Module, rank: int, layers: str, but: str = "") -> None:
    """Give linear layers a low-rank part that learns, in place; all else is frozen. It changes nothing at first.

    `layers` is a regular expression that the whole name of a layer fits; what `but` fits is left out. The first
    weights are always the same, so that a network made anew takes up saved ones. Raises UserError if no layer fits.
    """
    peft, chosen = library("peft"), fitting(network, layers, but)
    network.requires_grad_(False)
    config = peft.LoraConfig(
        r=rank, lora_alpha=min(rank, STRONGEST), target_modules=chosen, init_lora_weights="gaussian"
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        peft.inject_adapter_in_model(config, network)
    for parameter in network.parameters():
        if parameter.requires_grad:
            parameter.data = parameter.data.float()


def fitting(network: nn.Module, layers: str, but: str = "") -> list[str]:
    """The names of the linear layers that the first expression fits and the other does not.

    Raises UserError if there is none.
    """
    linear = [name for name, part in network.named_modules() if isinstance(part, nn.Linear)]
    names = [name for name in linear if not re.fullmatch(but, name)]
    if not (chosen := [name for name in names if re.fullmatch(layers, name)]):
        raise UserError(f"layers is {layers!r}, which fits no linear layer; there are {', '.join(names[:4])} ...")
    return chosen


def numbers(network: nn.Module, rank: int, layers: str, but: str = "") -> int:
    """How many numbers `add_lora` would add; 0 for a rank of 0."""
    if not rank:
        return 0
    parts = [network.get_submodule(name) for name in fitting(network, layers, but)]
    return sum(rank * (part.in_features + part.out_features) for part in parts)


def adapted(network: nn.Module) -> list[str]:
    """The names of the weights that have a low-rank part beside them."""
    layer = library("peft.tuners.lora").LoraLayer
    return [f"{name}.weight" for name, part in network.named_modules() if isinstance(part, layer)]


def whole(network: nn.Module, name: str) -> Tensor:
    """A weight of the network, with its low-rank part if there is one, in the dtype of the weight."""
    part = network.get_submodule(name.removesuffix(".weight"))
    if not hasattr(part, "get_base_layer"):
        return part.weight.detach()
    weight = part.get_base_layer().weight.detach()
    return (weight.float() + part.get_delta_weight("default").detach().float()).to(weight.dtype)


def inspect_adapter(
    folder: Path,
    weights: Mapping[str, Shape],  # of the network that it belongs to
) -> dict[str, Shape]:  # of the adapter, without peft's prefix
    """Check an adapter's configuration and the shapes of its tensors against the network, before any is read.

    Raises CheckpointError for an adapter of another kind or another network, and for pickles.
    """
    if not (folder / WEIGHTS).exists():
        found = ", ".join(sorted(path.name for path in folder.iterdir())) if folder.is_dir() else "nothing"
        raise CheckpointError(f"{folder} has no {WEIGHTS}, but {found[:200]}; save the adapter again as safetensors")
    config = read_json(folder / CONFIG)
    for name, plain in PLAIN.items():
        if config.get(name, plain[0]) not in plain:
            raise CheckpointError(
                f"{folder / CONFIG}: {name} is {config[name]!r}; only plain LoRA is read here: merge the adapter with "
                "its authors' own script"
            )
    shapes = {key.removeprefix(PREFIX): shape for key, shape in header(folder / WEIGHTS).items()}
    wanted = {}
    for layer in {re.sub(r"\.lora_[AB]\.weight$", "", key) for key in shapes}:
        if (whole := weights.get(f"{layer}.weight")) is None:
            raise CheckpointError(
                f"{folder / WEIGHTS} has {layer}, which the network under it does not; give the `base` that it was "
                "trained on"
            )
        rank = shapes.get(f"{layer}.lora_A.weight", (0,))[0]
        wanted[f"{layer}.lora_A.weight"] = (rank, *whole[1:])
        wanted[f"{layer}.lora_B.weight"] = (whole[0], rank, *[1] * len(whole[2:]))
    check_shapes(folder / WEIGHTS, shapes, wanted, "give the `base` that the adapter was trained on")
    return shapes


def merge_adapter(network: nn.Module, folder: Path) -> tuple[list[str], int]:
    """Add a checkpoint's adapter to the weights under it, in place; layers that the network lacks are left out.

    Returns the names of the changed weights, and a number that the adapter is known by. `inspect_adapter` comes before.
    """
    peft = library("peft")
    tensors = {key.removeprefix(PREFIX): tensor for key, tensor in load_file(folder / WEIGHTS).items()}
    known = 0
    for key in sorted(tensors):
        check_finite(folder / WEIGHTS, key, tensors[key])
        known = mixed(known, tensors[key])
    here = {name for name, _ in network.named_modules()}
    layers = sorted({key.rpartition(".lora_")[0] for key in tensors} & here)
    config = peft.LoraConfig.from_pretrained(str(folder))
    config.target_modules, config.inference_mode = set(layers), True
    tuner = peft.LoraModel(network, config, "default")
    kept = {key: tensor for key, tensor in tensors.items() if key.rpartition(".lora_")[0] in here}
    peft.set_peft_model_state_dict(tuner.model, {f"{PREFIX}{key}": tensor for key, tensor in kept.items()})
    changed = adapted(network)
    for name in changed:
        network.get_submodule(name.removesuffix(".weight")).get_base_layer().weight.data = whole(network, name)
    tuner.unload()
    vars(network).pop("peft_config", None)  # else peft takes the next adapter for a second one
    return changed, known
