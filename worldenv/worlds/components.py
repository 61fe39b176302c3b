"""Parts of a released pipeline: folders in the layout of diffusers or transformers, checked before they are read."""

from collections.abc import Collection, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.nn import attention
from worldenv.records.checkpoint import CheckpointError, one_line
from worldenv.records.released import AGAIN, CONFIG, Release, check_finite, check_shapes, inspect, library


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

    def outline(self) -> nn.Module:
        """The network without its weights, on the device meta. Raises CheckpointError for sizes that make none."""
        kind = getattr(library("transformers"), self.kind)
        try:
            with torch.device("meta"):
                return kind(kind.config_class.from_dict(self.release.config)).requires_grad_(False).eval()
        except Exception as error:  # of the library, which has classes of its own
            raise CheckpointError(
                f"{self.release.folder / CONFIG} is not valid ({one_line(error)}); {AGAIN}"
            ) from error

    def read(self, dtype: torch.dtype | None) -> nn.Module:
        """Read it as the library does, which gives tensors of older files their new names; frozen.

        The library itself only logs what is missing and makes it up. Raises CheckpointError for tensors that are
        missing, unexpected, of another shape or not finite.
        """
        where, said, attends = self.release.folder, {}, attention.name_in("transformers")
        with _quiet():
            try:
                module, found = getattr(library("transformers"), self.kind).from_pretrained(
                    where,
                    local_files_only=True,
                    use_safetensors=True,
                    ignore_mismatched_sizes=True,
                    output_loading_info=True,
                    dtype="auto" if dtype is None else dtype,
                    attn_implementation=attends,
                )
            except Exception as error:  # as above
                raise CheckpointError(f"{where} cannot be read ({one_line(error)}); {AGAIN}") from error
        for name, what in (
            ("missing", "lacks"),
            ("unexpected", "does not know"),
            ("mismatched", "has another shape of"),
        ):
            if keys := sorted(str(key[0] if isinstance(key, tuple) else key) for key in found[f"{name}_keys"]):
                said[what] = f"{keys[0]}" + (f" and {len(keys) - 1} more" if len(keys) > 1 else "")
        if said:
            raise CheckpointError(f"{where}: {self.kind} {'; '.join(f'{w} {k}' for w, k in said.items())}; {AGAIN}")
        for name, parameter in module.named_parameters():
            check_finite(where, name, parameter)
        return module.requires_grad_(False).eval()


def inspect_transformers(folder: Path, models: dict[str, str]) -> Encoder:
    """A network that transformers wrote: `models` has the class for each type of model. Raises as above."""
    release = inspect(folder, models)
    library("transformers")
    return Encoder(release, models[release.config["model_type"]])


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


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and reports: what they say is said by errors here."""
    logging = library("transformers").utils.logging
    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()
