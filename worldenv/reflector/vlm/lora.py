"""Low-rank adapters of the language model (LoRA, arXiv 2106.09685) through peft, in peft's own folder."""

from pathlib import Path
from typing import Any

from torch import nn

from worldenv.errors import UserError
from worldenv.files import read_json
from worldenv.records.checkpoint import CheckpointError, one_line
from worldenv.records.released import Shape, check_shapes, header, library
from worldenv.reflector.vlm.model import Vlm

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
PLACES = r".*\.(language_model|text_model)\..*\.(q_proj|k_proj|v_proj|o_proj|gate_proj|up_proj|down_proj)"


def check_adapter(folder: Path) -> dict[str, Shape]:
    """What the adapter of a folder has, by its header. Raises UserError for a pickle, and for another kind."""
    if not (folder / WEIGHTS).exists():
        raise CheckpointError(f"{folder} lacks {WEIGHTS}; save the adapter as safetensors")
    kind = read_json(folder / CONFIG).get("peft_type")
    if kind != "LORA":
        raise CheckpointError(f"{folder / CONFIG} is of an adapter of type {kind!r}; LORA was expected")
    return header(folder / WEIGHTS)


class Adapter:
    """The adapter of a model; `peft` shares the model's modules, of which some have been replaced in place."""

    def __init__(self, peft: Any):
        self.peft = peft

    @classmethod
    def new(cls, vlm: Vlm, rank: int) -> "Adapter":
        """One that changes nothing yet: its second matrices are zero."""
        peft = library("peft")
        config = peft.LoraConfig(r=rank, lora_alpha=2 * rank, target_modules=PLACES, bias="none")
        return cls(peft.get_peft_model(vlm.network, config))

    @classmethod
    def load(cls, vlm: Vlm, folder: Path) -> "Adapter":
        """One that `save` or peft wrote. Raises UserError as `check_adapter` does, and for one of another model."""
        peft, stored = library("peft"), check_adapter(folder)
        try:
            config = peft.LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            made = cls(peft.get_peft_model(vlm.network, config))
        except (ValueError, TypeError, KeyError) as error:
            raise CheckpointError(f"{folder / CONFIG} does not fit the model ({one_line(error)})") from error
        wanted = {name: tuple(t.shape) for name, t in peft.get_peft_model_state_dict(made.peft).items()}
        remedy = "give the adapter of this model, or take it out of the folder"
        check_shapes(folder / WEIGHTS, stored, wanted, remedy)
        peft.set_peft_model_state_dict(made.peft, peft.load_peft_weights(str(folder), device="cpu"))
        return made

    def save(self, folder: Path) -> None:
        """Write it as peft does. Raises UserError if it cannot be written."""
        try:
            self.peft.save_pretrained(str(folder), safe_serialization=True)
        except OSError as error:
            raise UserError(f"{folder} cannot be written: {error.strerror or one_line(error)}") from error

    def parameters(self) -> list[nn.Parameter]:
        """What is trained of it, in order."""
        return [parameter for name, parameter in self.peft.named_parameters() if "lora_" in name]
