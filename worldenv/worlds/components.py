"""Parts of a released pipeline: folders in the layout of diffusers or transformers, checked before they are read."""

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.nn import attention
from worldenv.records.checkpoint import CheckpointError, one_line
from worldenv.records.released import AGAIN, CONFIG, Release, check_finite, check_shapes, inspect, library
from worldenv.records.transformers_folder import check_info, check_weights, quiet, read_configuration


@dataclass(frozen=True)
class Component:
    """A folder of one network, of whose tensors only names and shapes have been read."""

    release: Release
    module: nn.Module  # on the device meta

    def read(self, dtype: torch.dtype | None) -> nn.Module:
        """Read the weights, frozen; dtype None: as stored. Raises CheckpointError for a tensor that is not finite."""
        self.release.fill(self.module, {name: name for name in self.module.state_dict()}, dtype)
        attend(self.module)
        return self.module.requires_grad_(False).eval()


def inspect_diffusers(folder: Path, classes: Collection[str]) -> Component:
    """A network that diffusers wrote, of one of these classes.

    Raises CheckpointError naming the file if it is missing, damaged, of another class or if any tensor is missing,
    unexpected or of another shape.
    """
    release = inspect(folder, classes, "diffusers")
    kind = getattr(library("diffusers"), release.config["_class_name"])
    try:
        with torch.device("meta"):
            module = kind.from_config(release.config)
    except (TypeError, ValueError, KeyError, ArithmeticError, RuntimeError) as error:
        raise CheckpointError(f"{folder / CONFIG} is not valid ({one_line(error)}); {AGAIN}") from error
    wanted = {name: tuple(tensor.shape) for name, tensor in module.state_dict().items()}
    check_shapes(folder, release.shapes, wanted, AGAIN)
    if made := [name for name, buffer in module.named_buffers() if name not in wanted]:
        raise CheckpointError(f"{folder}: {made[0]} is in no file; take another version of diffusers")
    return Component(release, module)


@dataclass(frozen=True)
class Encoder:
    """A folder of an encoder of transformers, of whose tensors only names and shapes have been read."""

    release: Release
    kind: str  # class
    config: Any  # transformers' own object

    def outline(self) -> nn.Module:
        """The network without its weights, on the device meta."""
        with torch.device("meta"):
            return getattr(library("transformers"), self.kind)(self.config).requires_grad_(False).eval()

    def read(self, dtype: torch.dtype | None) -> nn.Module:
        """Read it, frozen. Raises CheckpointError for a tensor that is not finite."""
        where, attends = self.release.folder, attention.name_in("transformers")
        with quiet() as transformers:
            try:
                module, info = getattr(transformers, self.kind).from_pretrained(
                    where,
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    dtype="auto" if dtype is None else dtype,
                    attn_implementation=attends,
                )
            except Exception as error:  # of the library, which has classes of its own
                raise CheckpointError(f"{where} cannot be read ({one_line(error)}); {AGAIN}") from error
        check_info(self.release, info)
        for name, parameter in module.named_parameters():
            check_finite(where, name, parameter)
        return module.requires_grad_(False).eval()


def inspect_transformers(folder: Path, models: dict[str, str]) -> Encoder:
    """A network that transformers wrote: `models` has the class for each type of model.

    Raises CheckpointError as above; the library gives tensors of older files their new names.
    """
    release = inspect(folder, models)
    kind = models[release.config["model_type"]]
    with quiet() as transformers:
        network = getattr(transformers, kind)
        config = read_configuration(release, network.config_class)
        check_weights(release, network, config)
    return Encoder(release, kind, config)


def attend(network: nn.Module) -> None:
    """Let the layers of attention of a network of diffusers use what WORLDENV_ATTENTION asks for.

    Raises UserError if it cannot be used, or if the network cannot use it.
    """
    if attention.WANTED == "sdpa":  # as it was made
        return
    name, parts = attention.name_in("diffusers"), library("diffusers.models.attention_processor")
    kinds = parts.Attention, library("diffusers.models.attention").AttentionModuleMixin
    processors = [module.processor for module in network.modules() if isinstance(module, kinds)]
    if all(hasattr(processor, "_attention_backend") for processor in processors):
        network.set_attention_backend(name)
    elif name == "xformers":
        network.enable_xformers_memory_efficient_attention()
    else:
        raise UserError(
            f"WORLDENV_ATTENTION is {attention.WANTED}, which {type(network).__name__} of diffusers cannot use; it can "
            "use sdpa and xformers"
        )
