"""Convolutions and linear layers in 8 bits, for imagining on a CPU; training computes in floats.

Weights are quantised once, with one scale per output channel. Inputs are quantised to 256 levels, with a scale and a
zero point per layer that were calibrated beforehand, so that an episode does not depend on the batch it runs in. The op
`conv_int8` multiplies, or an op that fuses several layers and takes their `layer`.
"""

import copy
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.ops.conv_int8 import conv_int8
from worldenv.ops.packed import Layer, pack
from worldenv.ops.patchify import unit
from worldenv.ops.rowwise_linear import rowwise_linear

PRECISIONS = ("auto", "float32", "int8")  # of networks that imagine; auto: int8 if the CPU is fast at it
FAST = ("avx512_vnni", "avx_vnni")  # with any of them a CPU multiplies 8 bits fast
Module = TypeVar("Module", bound=nn.Module)
Ranges = dict[str, tuple[float, float] | None]  # module name -> least and greatest input; None: the input is pixels


def is_fast() -> bool:
    """Whether this CPU has instructions for 8-bit products; without them 8 bits are slow."""
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name) for name in FAST)


def check_precision(precision: str) -> None:
    """Raise UserError for an unknown precision, and for int8 on a CPU without instructions for it."""
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; it should be one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not is_fast():
        raise UserError("this CPU has no instructions for --precision int8; take auto or float32")


AT_ONCE = 32  # numbers that torch's sigmoid and SiLU compute together: two registers of AVX-512


class Conv(nn.Conv2d):
    """A convolution that can be replaced by one in 8 bits; this one computes in floats. uint8 input is pixels."""

    def forward(self, x: Tensor, relu: bool = False, onto: Tensor | None = None) -> Tensor:
        y = super().forward(unit(x))
        y = F.relu(y) if relu else y
        return y if onto is None else onto + y


class Linear(nn.Linear):
    """Like `Conv`, for linear layers."""

    def forward(self, x: Tensor, onto: Tensor | None = None) -> Tensor:
        y = super().forward(unit(x))
        return y if onto is None else onto + y


class Int8(nn.Module):
    """The 8-bit replacement of a `Conv` or `Linear`; it shares the weight and bias of that layer.

    A layer whose input is pixels (range None) reads the bytes with scale 2 / 255 and zero point 128. The exact zero
    point is 127.5; the bias makes up for the half. Only the padding of a convolution is then half a level off.
    """

    def __init__(self, layer: Conv | Linear, low_high: tuple[float, float] | None):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias
        weight = layer.weight.detach()
        if not torch.isfinite(weight).all():
            raise ValueError("a weight is not finite; it cannot be rounded to 8 bits")
        low, high = low_high or (-1.0, 1.0)
        low, high = min(low, 0.0), max(high, 1e-6)
        step, zero = (high - low) / 255, round(-low * 255 / (high - low))
        scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        levels = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round()
        below = zero - (0.5 if low_high is None else 0.0)  # what the bias makes up for, in levels
        bias = 0.0 if layer.bias is None else layer.bias.detach()
        packed = pack(levels.to(torch.int8), step * scale, bias - step * scale * below * levels.flatten(1).sum(1))
        self.layer = Layer(packed, step, zero)
        self.stride = _stride(layer) if isinstance(layer, Conv) else None

    def forward(
        self,
        x: Tensor,  # of a convolution [B, I, H, W], of a linear layer [..., I]; float32, or quantised uint8
        relu: bool = False,
        onto: Tensor | None = None,  # float32, to be added to the result
    ) -> Tensor:  # float32
        outputs = len(self.weight)
        if self.stride is not None:
            onto = None if onto is None else onto.permute(0, 2, 3, 1)
            y = conv_int8(x.permute(0, 2, 3, 1), self.layer, outputs, self.stride, relu, onto)
            return y.permute(0, 3, 1, 2)
        images = len(x) if x.ndim > 2 else 1
        rows = images, 1, x.shape[x.ndim > 2 : -1].numel()
        onto = None if onto is None else onto.reshape(*rows, outputs)
        y = conv_int8(x.reshape(*rows, x.shape[-1]), self.layer, outputs, 1, relu, onto)
        return y.view(*x.shape[:-1], outputs)


def _stride(conv: Conv) -> int:
    """The stride. Raises ValueError unless the window is odd and square with a padding of half its width."""
    window, (stride, other) = conv.kernel_size, conv.stride
    plain = conv.dilation == (1, 1) and conv.groups == 1 and conv.padding_mode == "zeros"
    plain = plain and conv.padding == (window[0] // 2, window[0] // 2)
    if window[0] % 2 == 0 or window[0] != window[1] or stride != other or not plain:
        raise ValueError(f"{conv} has no 8-bit version: its window should be odd and square, its padding half of that")
    return stride


class Rowwise(nn.Module):
    """A linear layer in floats whose rows do not depend on the batch, with the parameters of the layer it replaces.

    torch rounds a row a little differently in another batch. A later 8-bit layer would enlarge that difference: an
    input that crosses the boundary between two of its 256 levels changes by a whole level.
    """

    def __init__(self, layer: nn.Linear):
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, x: Tensor) -> Tensor:
        return rowwise_linear(x, self.weight, self.bias)


def by_rows(function: Callable[[Tensor], Tensor], x: Tensor) -> Tensor:  # [..., D] -> [..., D]
    """function(x), elementwise, with a result for each row that does not depend on the other rows.

    torch computes AT_ONCE numbers together, and the rest at the end of a tensor by other instructions, which round
    differently. So rows are padded to a multiple of AT_ONCE.
    """
    width = x.shape[-1]
    return function(F.pad(x, (0, -width % AT_ONCE)))[..., :width] if width % AT_ONCE else function(x)


class RowwiseGRU(nn.Module):
    """Like `Rowwise`, for a GRU [B, L, C] -> [B, L, D], of one layer and one direction."""

    def __init__(self, gru: nn.GRU):
        super().__init__()
        if gru.num_layers != 1 or gru.bidirectional or not gru.batch_first or not gru.bias:
            raise ValueError(f"{gru} is another kind: it should have one layer, one direction, biases and batch_first")
        for name, parameter in gru.named_parameters():
            self.register_parameter(name, parameter)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:  # [B, L, D], and the last step [1, B, D]
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
    """Whether all layers are in 8 bits; an `nn.Identity` counts as one that is."""
    return all(isinstance(layer, Int8 | nn.Identity) for layer in layers)


def in_int8(module: Module, ranges: Ranges, prefix: str = "") -> Module:
    """A copy of the module that computes in 8 bits and shares all parameters.

    Every `Conv` and `Linear` with a range is replaced by `Int8`; every other `nn.Linear` and GRU by one whose rows do
    not depend on the batch.
    """
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
    """Record the least and greatest input of every `Conv` and `Linear` while the module is used, in any thread."""
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
