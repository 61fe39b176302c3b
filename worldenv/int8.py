"""Convolutions and linear layers in 8 bits, for imagining on a CPU; training keeps its floats.

Weights are rounded once, a scale for each output channel; inputs as `quantise` rounds them, on a grid that was measured
beforehand, so that an episode does not depend on the batch it runs in. oneDNN multiplies, three times as fast as in
floats, or an op that does more than one layer at a time and takes its `layer` (benchmarks/LOG.md).
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.ops.patchify import unit
from worldenv.ops.quantise import quantise
from worldenv.ops.rowwise_linear import rowwise_linear
from worldenv.packed import Layer, pack

PRECISIONS = ("auto", "float32", "int8")  # of networks that imagine; auto: int8 where the CPU is made for it
FAST = ("avx512_vnni", "avx_vnni", "amx_int8")  # with any of them a CPU multiplies 8 bits exactly and fast
Module = TypeVar("Module", bound=nn.Module)
Ranges = dict[str, tuple[float, float] | None]  # module name -> least and greatest input; None: it reads pixels


def is_fast() -> bool:
    """Whether this CPU multiplies 8 bits with instructions of their own; without them it is slow and may saturate."""
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name) for name in FAST)


def check_precision(precision: str) -> None:
    """Raise UserError if it is none, or int8 where the CPU is not made for it."""
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; it should be one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not is_fast():
        raise UserError("this CPU has no instructions for --precision int8; take auto or float32")


ACTIVATIONS = {"none": lambda x: x, "relu": F.relu, "gelu": partial(F.gelu, approximate="tanh")}
Grid = tuple[float, int]  # step and zero of 256 levels
NO_GRID = (0.0, 0)
AT_ONCE = 32  # numbers that torch's sigmoid and SiLU take together: two registers of AVX-512


class Conv(nn.Conv2d):
    """A convolution that can be replaced by one in 8 bits; this one computes in floats. uint8 input is pixels."""

    grid: Grid = NO_GRID  # the levels that its input is wanted on

    def forward(self, x: Tensor, activation: str = "none", onto: Tensor | None = None, to: Grid = NO_GRID) -> Tensor:
        y = ACTIVATIONS[activation](super().forward(unit(x)))
        return y if onto is None else onto + y


class Linear(nn.Linear):
    """As `Conv`, for linear layers."""

    grid: Grid = NO_GRID

    def forward(self, x: Tensor, activation: str = "none", onto: Tensor | None = None, to: Grid = NO_GRID) -> Tensor:
        y = ACTIVATIONS[activation](super().forward(unit(x)))
        return y if onto is None else onto + y


class Int8(nn.Module):
    """What `in_int8` puts in the place of a `Conv` or `Linear`; weight and bias are still that layer's own.

    A layer that reads pixels (range None) takes the bytes as they are, on the grid (2 / 255, 128). Half a step is left
    to the bias, so that only beyond the border of a convolution 0 is read as that half step.
    """

    def __init__(self, layer: Conv | Linear, low_high: tuple[float, float] | None):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        weight = layer.weight.detach()
        if not torch.isfinite(weight).all():
            raise ValueError("a weight is not finite; it cannot be rounded to 8 bits")
        low, high = low_high or (-1.0, 1.0)
        low, high = min(low, 0.0), max(high, 1e-6)
        self.grid = step, zero = (high - low) / 255, round(-low * 255 / (high - low))
        scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        levels = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round()
        self.summand = None if layer.bias is None else layer.bias.detach()
        if low_high is None:
            half = step / 2 * levels.flatten(1).sum(1) * scale
            self.summand = half if layer.bias is None else half + layer.bias.detach()
        self.window = (layer.stride, layer.padding, [1, 1], 1) if isinstance(layer, Conv) else ()
        levels = levels.to(torch.int8)
        if self.window:
            packed = torch.ops.onednn.qconv_prepack(levels, scale, step, zero, *self.window)
        else:
            packed = torch.ops.onednn.qlinear_prepack(levels, None)
        self.packed = packed, scale, torch.zeros(len(scale), dtype=torch.int32)
        bias = 0.0 if self.summand is None else self.summand
        bytes_ = pack(levels, step * scale, bias - step * scale * zero * levels.flatten(1).sum(1))
        self.layer = Layer(bytes_, step, zero)  # for the ops that do more than this layer

    def forward(
        self,
        x: Tensor,  # float32, or uint8 on `grid` already
        activation: str = "none",  # none, relu or gelu
        onto: Tensor | None = None,  # float32, to be added to the result
        to: Grid = NO_GRID,  # the levels that the result is wanted on
    ) -> Tensor:  # float32, or uint8 on `to`
        step, zero = self.grid
        x = x if x.dtype == torch.uint8 else quantise(x, step, zero)
        given = (x, step, zero, *self.packed)
        multiply = torch.ops.onednn.qconv_pointwise if self.window else torch.ops.onednn.qlinear_pointwise
        result = (to[0], to[1], torch.uint8) if to[0] else (1.0, 0, torch.float32)
        shape = "tanh" if activation == "gelu" else ""
        y = multiply(*given, self.summand, *self.window, *result, activation, [], shape)
        return y if onto is None else y.add_(onto)  # oneDNN's own sum copies its result


class Rowwise(nn.Module):
    """What `in_int8` puts in the place of a linear layer that stays in floats, parameters and all: rounding by the
    batch would grow, for what it brings to the next of 256 levels is a whole level off."""

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return rowwise_linear(x, self.weight, self.bias)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # [..., D] -> [..., D]
    """function(x), number by number, and the same for a row among others: torch computes AT_ONCE numbers together, and
    those that are left over at the end another way."""
    width = x.shape[-1]
    return function(F.pad(x, (0, -width % AT_ONCE)))[..., :width] if width % AT_ONCE else function(x)


class RowwiseGRU(nn.Module):
    """As `Rowwise`, in the place of a GRU [B, L, C] -> [B, L, D], of one layer and one direction."""

    def __init__(self, gru: nn.GRU):
        super().__init__()
        if gru.num_layers != 1 or gru.bidirectional or not gru.batch_first or not gru.bias:
            raise ValueError(f"{gru} is another kind: it should have one layer, one direction, biases and batch_first")
        for name, parameter in gru.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, L, D] and the last of them, [1, B, D]
        hidden = x.new_zeros(len(x), self.weight_hh_l0.shape[1])
        seen, out = rowwise_linear(x, self.weight_ih_l0, self.bias_ih_l0), []
        for new in seen.unbind(1):
            old = rowwise_linear(hidden, self.weight_hh_l0, self.bias_hh_l0)
            (a, b, c), (d, e, f) = new.chunk(3, dim=1), old.chunk(3, dim=1)
            candidate = torch.tanh(c + by_rows(torch.sigmoid, a + d) * f)
            hidden = candidate + by_rows(torch.sigmoid, b + e) * (hidden - candidate)
            out.append(hidden)
        return torch.stack(out, dim=1), hidden[None]


def in_8_bits(*layers: nn.Module) -> bool:
    """Whether all layers are in 8 bits; one that does nothing is in whatever is wanted."""
    return all(isinstance(layer, Int8 | nn.Identity) for layer in layers)


def in_int8(module: Module, ranges: Ranges, prefix: str = "") -> Module:
    """The same module with every `Conv` and `Linear` that has a range in 8 bits, every `nn.Linear` and GRU
    made independent of the batch; all else, parameters included, is shared."""
    new = copy.copy(module)
    new._modules = {}
    for name, child in module._modules.items():
        path = prefix + name
        if isinstance(child, Conv | Linear) and path in ranges:
            new._modules[name] = Int8(child, ranges[path])
        elif type(child) is nn.Linear:
            new._modules[name] = Rowwise(child)
        elif isinstance(child, nn.GRU):
            new._modules[name] = RowwiseGRU(child)
        else:
            new._modules[name] = None if child is None else in_int8(child, ranges, path + ".")
    return new


@contextmanager
def measured(module: nn.Module) -> Iterator[Ranges]:
    """Note the least and greatest input of every `Conv` and `Linear` while the module is used; threads may share it."""
    ranges: Ranges = {}
    lock = threading.Lock()

    def note(name: str):
        def hook(_, inputs: tuple[Tensor]) -> None:
            if inputs[0].dtype == torch.uint8:
                ranges[name] = None
                return
            low, high = (value.item() for value in inputs[0].detach().aminmax())
            with lock:
                seen = ranges.get(name, (low, high))
                ranges[name] = min(low, seen[0]), max(high, seen[1])

        return hook

    hooks = [m.register_forward_pre_hook(note(n)) for n, m in module.named_modules() if isinstance(m, Conv | Linear)]
    try:
        yield ranges
    finally:
        for hook in hooks:
            hook.remove()
