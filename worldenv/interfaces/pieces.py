"""What a part offers for export: computations from tensors to tensors, for any number of rows."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor, nn


@dataclass(frozen=True)
class Piece:
    """One computation of a part. The first dimension of every input and output is the batch.

    A part that can be exported offers `pieces(size) -> dict[str, Piece]`, for frames of `size` (H, W) pixels.
    """

    network: nn.Module  # with all parameters that `call` uses
    call: Callable[..., Tensor | tuple[Tensor, ...]]
    example: Callable[[int], dict[str, Tensor]]  # rows -> inputs by name, in the order of `call`, drawn by torch.rand..
    outputs: tuple[str, ...]
    # Rows up to which `call` takes one way through its code. diffusers copies pictures from 64 on: no number changes.
    most: int = 63
