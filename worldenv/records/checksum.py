"""What a document and its tensors are known by, so that a file that changed on the disk is not taken for sound."""

import hashlib
import json
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

CHECKSUM = "sha256"  # the entry of a document that holds its checksum


def checksum(document: Any, tensors: Mapping[str, Tensor]) -> str:
    """SHA-256, in hexadecimal digits, of a JSON document and of the names, dtypes, shapes and bytes of tensors.

    The order of the tensors does not count, nor where they are or how they lie in memory.
    """
    found = hashlib.sha256(json.dumps(document).encode())
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        found.update(f"\n{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()
