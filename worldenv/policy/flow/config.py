"""What the authors' evaluation does to pictures and numbers, and how a flow policy is used: data, saved with it."""

import re
from dataclasses import dataclass, field
from typing import Literal

from worldenv.data.orientation import Orientation
from worldenv.fields import COUNT, LARGEST, FieldError, Within, check_fields

MOST_STEPS = 250  # of an integration


@dataclass(frozen=True)
class FlowConventions:
    """Those of LeRobot's evaluation of pi0 on LIBERO.

    Pictures here are upright. LeRobot turns those of LIBERO's renderer, which are upside down, by 180 degrees: what a
    policy looks at is `turned`, an upright picture with its columns reversed.
    """

    orientation: Orientation = "turned"
    resize: Literal["bilinear", "bicubic"] = "bilinear"  # bicubic: antialiased
    # A picture that is no square is made as large as it fits; where it lies in the square, and what is beside it.
    place: Literal["middle", "left-top", "right-bottom"] = "middle"
    fill: float = -3.0  # where colours are -1 .. 1: LeRobot fills pi0's pictures with -1 before 0 .. 1 becomes -1 .. 1
    # Which number of proprioception each of theirs is, and times what: position, axis-angle, and the two fingers (m),
    # which an opening of 1 moves 0.04 m each way.
    proprio: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 6)
    proprio_factor: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.04, -0.04)
    gripper: tuple[float, float] = (1.0, 0.0)  # factor and offset of the last number of an action: -1 open, 1 close

    def __post_init__(self) -> None:
        any_number = Within(-LARGEST, LARGEST)
        check_fields(self, fill=any_number, proprio=Within(0, LARGEST), proprio_factor=any_number, gripper=any_number)
        if len(self.proprio) != len(self.proprio_factor):
            raise FieldError(f"proprio has {len(self.proprio)} numbers, proprio_factor {len(self.proprio_factor)}")
        if self.gripper[0] == 0:
            raise FieldError("gripper is a factor of 0, which leaves no action; it should be another number")


@dataclass(frozen=True)
class FlowConfig:
    """How a checkpoint is used: what its files do not say. It may lie beside them, as worldenv.json."""

    chunk: int | None = None  # K, actions that are carried out of those predicted; None: n_action_steps of config.json
    steps: int | None = None  # S, of the integration; None: as config.json says
    views: tuple[str, ...] | None = None  # cameras; None: the suite's first ones, as many as the policy looks at
    vlm: str | None = (
        None  # folder of the model that it grew from, seen from this one; None: `vlm` in it, if it is there
    )
    exploration: Literal["laplace", "sde"] = "laplace"  # around the last step; or noise in one step, flow-SDE
    noise_level: float = 0.5  # of flow-SDE
    lora: int = 32  # rank of the new low-rank layers that learn; 0: none, the heads alone learn
    layers: str | None = None  # regular expression: the names of the linear layers that get one; None: the expert's
    scale: float = 0.1  # exp(beta) of a new scale head, in normalised actions
    scale_low: float = 0.02  # bounds of exp(beta), in normalised actions
    scale_high: float = 0.5
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"  # of the frozen network; what learns is float32
    conventions: FlowConventions = field(default_factory=FlowConventions)

    def __post_init__(self) -> None:
        positive = Within(0.0, LARGEST, open_low=True)
        scales = dict.fromkeys(("noise_level", "scale", "scale_low", "scale_high"), positive)
        check_fields(self, chunk=COUNT, steps=Within(1, MOST_STEPS), lora=Within(0, LARGEST), **scales)
        if not self.scale_low < self.scale < self.scale_high:
            raise FieldError(
                f"scale is {self.scale}; it should lie between scale_low, {self.scale_low}, and scale_high, "
                f"{self.scale_high}"
            )
        if self.views is not None and (not self.views or len(set(self.views)) < len(self.views)):
            raise FieldError(f"views is {self.views}; it should be distinct names of cameras")
        try:
            re.compile(self.layers or "")
        except re.error as error:
            raise FieldError(f"layers is {self.layers!r}, no regular expression: {error}") from None


@dataclass(frozen=True)
class Pi0Config(FlowConfig):
    """How a checkpoint of pi0 is used."""


@dataclass(frozen=True)
class SmolVLAConfig(FlowConfig):
    """How a checkpoint of SmolVLA is used: the same, with the conventions of its own evaluation."""

    conventions: FlowConventions = field(default_factory=lambda: FlowConventions(place="left-top", fill=-1.0))
