"""Convolutions and linear layers in 8 bits, for imagining on a CPU; training computes in floats.

Weights are quantised with one scale per output channel, and again by `renew` after they changed. Inputs are quantised
to 256 levels, with a scale and a zero point per layer that were calibrated beforehand, so that an episode does not
depend on the batch it runs in. The op `conv_int8` multiplies, or an op that fuses several layers and takes their
`layer`.
"""

import copy
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import NamedTuple, TypeVar

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
SLOWER = "avx2"  # with it alone, 8 bits can still be faster than floats; without it they are slow
Module = TypeVar("Module", bound=nn.Module)
Ranges = dict[str, tuple[float, float] | None]  # module name -> least and greatest input; None: the input is pixels


def is_fast() -> bool:
    """Whether this CPU has instructions for 8-bit products, so that `auto` takes 8 bits."""
    return _has(*FAST)


def is_allowed() -> bool:
    """Whether `--precision int8` is allowed: on a CPU that is fast, or has AVX2."""
    return _has(*FAST, SLOWER)


def _has(*names: str) -> bool:
    has = getattr(torch.cpu, "get_capabilities", dict)()
    return any(has.get(name) for name in names)


def check_precision(precision: str) -> None:
    """Raise UserError for an unknown precision, and for int8 on a CPU on which it would be slow."""
    if precision not in PRECISIONS:
        raise UserError(f"precision is {precision!r}; it should be one of {', '.join(PRECISIONS)}")
    if precision == "int8" and not is_allowed():
        raise UserError("--precision int8 is slow on a CPU without AVX2, such as this one; take auto or float32")


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


class Origin(NamedTuple):
    """The module that a copy was made of, and what it consisted of then."""

    module: nn.Module
    children: dict[str, nn.Module | None]
    parameters: tuple[str, ...]

    @classmethod
    def of(cls, module: nn.Module) -> "Origin":
        return cls(module, dict(module._modules), tuple(module._parameters))

    def check(self) -> None:
        """Raise UserError if another module took the place of a child, or a parameter came or went."""
        if (self.module._modules, tuple(self.module._parameters)) != (self.children, self.parameters):
            raise UserError(
                f"the layers of a {type(self.module).__name__} were replaced after its copy in 8 bits was made: make "
                "the engine or the environment again"
            )


class Int8(nn.Module):
    """The 8-bit replacement of a `Conv` or `Linear`; it shares the weight and bias of that layer.

    A layer whose input is pixels (range None) reads the bytes with scale 2 / 255 and zero point 128. The exact zero
    point is 127.5; the bias makes up for the half. Only the padding of a convolution is then half a level off.
    """

    def __init__(self, layer: Conv | Linear, low_high: tuple[float, float] | None):
        super().__init__()
        self._origin, self._parameters = Origin.of(layer), layer._parameters
        self.range = low_high
        self.stride = _stride(layer) if isinstance(layer, Conv) else None
        self.packed = self._packed()

    @property
    def layer(self) -> Layer:
        return self.packed[0]

    def renew(self) -> None:
        """Pack the layer again if its weight or bias is not what it was. Raises UserError if it cannot be."""
        _, weight, bias = self.packed
        if not (_same(self.weight, weight) and _same(self.bias, bias)):
            self.packed = self._packed()

    def _packed(self) -> tuple[Layer, Tensor, Tensor | None]:  # and the weight and bias that it was made of
        weight, bias = (None if given is None else given.detach().clone() for given in (self.weight, self.bias))
        if weight.dtype != torch.float32 or weight.device.type != "cpu":
            raise UserError(
                f"a weight is {weight.dtype} on {weight.device}; layers in 8 bits are made of torch.float32 on the "
                "CPU: take precision float32, or float32 models on the CPU"
            )
        if not torch.isfinite(weight).all():
            raise UserError("a weight is not finite; it cannot be rounded to 8 bits")
        low, high = self.range or (-1.0, 1.0)
        low, high = min(low, 0.0), max(high, 1e-6)
        step, zero = (high - low) / 255, round(-low * 255 / (high - low))
        scale = weight.flatten(1).abs().amax(1).clamp(min=1e-12) / 127
        levels = (weight / scale.view(-1, *[1] * (weight.ndim - 1))).round()
        below = zero - (0.5 if self.range is None else 0.0)  # what the bias makes up for, in levels
        summand = (0.0 if bias is None else bias) - step * scale * below * levels.flatten(1).sum(1)
        return Layer(pack(levels.to(torch.int8), step * scale, summand), step, zero), weight, bias

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


def _same(now: Tensor | None, then: Tensor | None) -> bool:
    """Whether both hold the same bits; what was written through `.data` changes no version counter."""
    if now is None or then is None:
        return now is then
    alike = now.dtype == then.dtype and now.device == then.device
    return alike and torch.equal(now, then)


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
        self._origin, self._parameters = Origin.of(layer), layer._parameters

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
        self._origin, self._parameters = Origin.of(gru), gru._parameters

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
    """A copy of the module that computes in 8 bits and shares all parameters; `renew` makes it follow their changes.

    Every `Conv` and `Linear` with a range is replaced by `Int8`; every other `nn.Linear` and GRU by one whose rows do
    not depend on the batch.
    """
    new = copy.copy(module)
    new._origin, new._modules = Origin.of(module), {}
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


def is_copy(module: nn.Module) -> bool:
    """Whether `in_int8` made this module."""
    return "_origin" in vars(module)


def renew(modules: Iterable[nn.Module]) -> None:
    """Make modules that `in_int8` made follow what happened since then to the weights that they share.

    It reads all weights of 8-bit layers: 1.6 ms for the shipped models. Raises UserError if layers were replaced, or if
    weights can no longer be rounded to 8 bits.
    """
    for module in modules:
        module._origin.check()
        if isinstance(module, Int8):
            module.renew()


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
