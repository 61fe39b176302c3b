"""Parts that nothing needs for a while wait in host memory, where a card is too small for all of them at a time."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.rollout.modes import network_of

HOST = torch.device("cpu")


@contextmanager
def in_host_memory(parts: Iterable[Any], needed: nn.Module, device: torch.device) -> Iterator[None]:
    """Inside, the networks of `parts` are in host memory; after it, they are on `device` again, with the same bits.

    A network that shares a tensor with `needed` stays where it is.
    """
    stay = {*map(id, _tensors(needed))}
    found = [network for part in parts if (network := network_of(part)) is not None]
    networks = [network for network in found if stay.isdisjoint(map(id, _tensors(network)))]
    try:
        for network in networks:
            network.to(HOST)
        yield
    finally:
        for network in networks:
            network.to(device)


def _tensors(network: nn.Module) -> Iterator[Tensor]:
    yield from network.parameters()
    yield from network.buffers()
