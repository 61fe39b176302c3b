"""RLinf's folders of a world model: how their pictures lie, and what their files do not say."""

from dataclasses import dataclass
from typing import Literal

from worldenv.data.orientation import Orientation
from worldenv.fields import COUNT, LARGEST, SHARE, FieldError, Within, check_fields

GROUP = 4  # frames that the video autoencoder makes one latent of, but for the first


@dataclass(frozen=True)
class RlinfConfig:
    """How such a folder is used. It may lie there as worldenv.json, with the fields that differ.

    The defaults are those of the authors' evaluation on LIBERO.
    """

    size: int = 256  # pixels of a side
    chunk: int = 8  # frames of a pass, a multiple of 4
    steps: int = 5  # denoising steps of a pass
    shift: float = 5.0  # of the noise levels towards noise: sigma = shift s / (1 + (shift - 1) s)
    head: int = 128  # numbers of an attention head
    # What a pass knows of the past, beside the first frame. frames: the last four, decoded, rounded to 8 bits and
    # encoded anew, as the authors do. latents: the last latent as it came out, which saves both, but for what is shown.
    context: Literal["frames", "latents"] = "frames"
    # Which passes of a chunk are shown. last: that before the policy looks again; the frames before it repeat the
    # picture that the chunk began with.
    decode: Literal["all", "last"] = "all"
    orientation: Orientation = "turned"  # of their pictures; here they are upright
    threshold: float = 0.5  # the reward above which the reward model says that the task is done
    dtype: Literal["stored", "float32", "bfloat16"] = "stored"

    def __post_init__(self) -> None:
        size, shift = Within(1, LARGEST), Within(0.0, LARGEST, open_low=True)
        check_fields(self, size=size, chunk=COUNT, steps=Within(1, 1000), shift=shift, head=size, threshold=SHARE)
        if self.chunk % GROUP:
            raise FieldError(f"chunk is {self.chunk}; it should be a multiple of the {GROUP} frames of a latent")
