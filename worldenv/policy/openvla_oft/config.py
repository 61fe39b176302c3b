"""What the authors' evaluation does to pictures and numbers, and how a policy is to be used: data, saved with it."""

import re
from dataclasses import dataclass, field
from typing import Literal

from worldenv.data.orientation import Orientation
from worldenv.fields import COUNT, LARGEST, FieldError, Within, check_fields


@dataclass(frozen=True)
class OpenVLAConventions:
    """Those of the authors' evaluation on LIBERO.

    Pictures here are upright. LIBERO's renderer gives them upside down, and the authors turn that by 180 degrees: what
    their policies look at is `turned`, an upright picture with its columns reversed.
    """

    orientation: Orientation = "turned"
    resize: Literal["lanczos", "bicubic"] = "lanczos"  # both antialiased, and rounded to 8 bits
    crop: float = 0.9  # share of the picture's area, in the middle, that is looked at; 1: all
    # Which number of proprioception each of theirs is, and times what: position, axis-angle, and the two fingers (m),
    # which an opening of 1 moves 0.04 m each way.
    proprio: tuple[int, ...] = (0, 1, 2, 3, 4, 5, 6, 6)
    proprio_factor: tuple[float, ...] = (1.0, 1.0, 1.0, 1.0, 1.0, 1.0, 0.04, -0.04)
    gripper: tuple[float, float] = (-2.0, 1.0)  # factor and offset of the last number: 0 close, 1 open -> 1, -1
    bounds: tuple[str, str] = ("q01", "q99")  # the statistics that become -1 and 1
    stop: bool = True  # whether </s> follows the places of the actions

    def __post_init__(self) -> None:
        any_number = Within(-LARGEST, LARGEST)
        share = Within(0.0, 1.0, open_low=True)
        check_fields(self, crop=share, proprio=Within(0, LARGEST), proprio_factor=any_number, gripper=any_number)
        if len(self.proprio) != len(self.proprio_factor):
            raise FieldError(f"proprio has {len(self.proprio)} numbers, proprio_factor {len(self.proprio_factor)}")
        if self.gripper[0] == 0:
            raise FieldError("gripper is a factor of 0, which leaves no action; it should be another number")


@dataclass(frozen=True)
class OpenVLAConfig:
    """How a checkpoint of OpenVLA-OFT is used: what its files do not say. It may lie beside them, as worldenv.json."""

    chunk: int = 8  # K, actions per decision: 8 on LIBERO
    views: tuple[str, ...] | None = None  # cameras; None: two with proprioception, else one (the scene, the wrist)
    statistics: str | None = None  # entry of dataset_statistics.json; None: that of the suite's name, or the only one
    temperature: float = 1.6  # of the draws of a policy with action tokens
    lora: int = 32  # rank of the new low-rank layers that learn; 0: none, the heads alone learn
    layers: str = r".*"  # regular expression: the names of the linear layers that get one
    scale: float = 0.1  # exp(beta) of a new scale head, in normalised actions
    scale_low: float = 0.02  # bounds of exp(beta), in normalised actions
    scale_high: float = 0.5
    base: str | None = None  # folder of the model under an adapter, seen from the folder that has the adapter alone
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"  # of the frozen network; what learns is float32
    conventions: OpenVLAConventions = field(default_factory=OpenVLAConventions)

    def __post_init__(self) -> None:
        positive = Within(0.0, LARGEST, open_low=True)
        rank = Within(0, LARGEST)
        check_fields(
            self, chunk=COUNT, temperature=positive, lora=rank, scale=positive, scale_low=positive, scale_high=positive
        )
        if not self.scale_low < self.scale < self.scale_high:
            raise FieldError(
                f"scale is {self.scale}; it should lie between scale_low, {self.scale_low}, and scale_high, "
                f"{self.scale_high}"
            )
        if self.views is not None and (not self.views or len(set(self.views)) < len(self.views)):
            raise FieldError(f"views is {self.views}; it should be distinct names of cameras")
        try:
            re.compile(self.layers)
        except re.error as error:
            raise FieldError(f"layers is {self.layers!r}, no regular expression: {error}") from None
