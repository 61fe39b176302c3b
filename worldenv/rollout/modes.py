"""In which modes models imagine, act and judge, whatever modes their caller is in."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn


def network_of(part: Any) -> nn.Module | None:
    """The network of a part: the part itself, or its attribute `network`, if that is an `nn.Module`."""
    network = part if isinstance(part, nn.Module) else getattr(part, "network", None)
    return network if isinstance(network, nn.Module) else None


def put_in_evaluation(network: nn.Module) -> None:
    """Put a network into evaluation mode for good, where any of its modules is in training mode."""
    if any(module.training for module in network.modules()):
        network.eval()


@contextmanager
def own_modes(device: torch.device, *parts: Any) -> Iterator[None]:
    """Compute without gradients and without the caller's autocast. The parts are put into evaluation mode for good."""
    for network in map(network_of, parts):
        if network is not None:
            put_in_evaluation(network)
    kind = "cuda" if device.type == "cuda" else "cpu"
    with torch.inference_mode(False), torch.no_grad(), torch.autocast(kind, enabled=False):
        yield
