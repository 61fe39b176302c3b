"""The weights of the models that imagine: whether the caller changed or replaced them since the last look."""

from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from worldenv.nn.int8 import is_copy, renew
from worldenv.rollout.modes import network_of, put_in_evaluation


class Weights:
    """Those of some parts of a run: each an `nn.Module`, or an object whose `network` is one."""

    def __init__(self, *parts: Any):
        self.networks = [network for network in map(network_of, parts) if network is not None]
        self.copies = [module for network in self.networks for module in network.modules() if is_copy(module)]
        self.places: list[tuple] | None = None

    def renew(self, on_gpu: bool) -> bool:
        """Pack changed layers in 8 bits again. Returns, on a GPU, whether a tensor moved in memory since the last call.

        Networks in training mode are put into evaluation mode. Raises UserError where a change cannot be followed.
        """
        for network in self.networks:
            put_in_evaluation(network)
        renew(self.copies)
        if not on_gpu:
            return False
        modules = [module for network in self.networks for module in network.modules()]
        before, self.places = self.places, [(t.data_ptr(), t.dtype, t.shape, t.stride()) for t in _tensors(modules)]
        return before is not None and before != self.places


def _tensors(modules: list[nn.Module]) -> Iterator[Tensor]:
    for module in modules:
        for owned in (module._parameters, module._buffers, vars(module)):
            yield from (value for value in owned.values() if isinstance(value, Tensor))
