"""What a part of a run needs, by arithmetic from its sizes: parameters, memory, FLOPs. Nothing here is measured.

A product of matrices of m x k and k x n counts as 2 m k n FLOPs, attention of T tokens of width D as 4 T^2 D for each
layer; norms, activations and copies are left out.
"""

from dataclasses import dataclass

from torch import nn

from worldenv.nn.int8 import Linear

FLOAT32 = 4  # bytes


@dataclass(frozen=True)
class Cost:
    """Of one part. What is not counted is None: a report says so, and leaves it out of sums."""

    parameters: int
    weight_bytes: int
    learns: int = 0  # parameters that practice changes, float32; `parameters` counts them, too
    chunk: int | None = None  # K, of a policy
    slot_bytes: int | None = 0  # that a resident episode keeps in this part
    record_bytes: int | None = 0  # that the update will need of a chunk
    chunk_flops: float | None = None  # of an episode's chunk, without a gradient
    update_flops: float | None = None  # of a chunk that is learnt from once
    update_bytes: int | None = 0  # activations that the gradient of one chunk needs


def size_of(module: nn.Module, number: int | None = None) -> tuple[int, int]:
    """Parameters of a module and their bytes; it may be on the device meta. number: bytes of each; None: as it is."""
    tensors = list(module.parameters())
    return sum(t.numel() for t in tensors), sum(t.numel() * (number or t.element_size()) for t in tensors)


def matrices(module: nn.Module) -> int:
    """Numbers of all weights of linear layers: the multiply-adds of a token that goes through each once."""
    return sum(part.weight.numel() for part in module.modules() if isinstance(part, nn.Linear))


def picture_flops(*modules: nn.Module, places: int) -> float:
    """A pass of one picture through convolutions that make `places` pixels each, or through layers of its tokens.

    A plain linear layer among them reads what is one for the whole picture.
    """
    parts = [part for module in modules for part in module.modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    return 2.0 * sum(p.weight.numel() * (places if isinstance(p, nn.Conv2d | Linear) else 1) for p in parts)


def transformer_flops(numbers: int, tokens: int, layers: int, width: int) -> float:
    """A pass of `tokens` that all see each other through layers with `numbers` weights in their matrices together."""
    return 2.0 * numbers * tokens + 4.0 * layers * tokens**2 * width
