"""Tensors in shards on disk, by torch.distributed.checkpoint: a folder with a safetensors file of each rank."""

import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor
from torch.distributed import checkpoint
from torch.distributed.checkpoint.api import CheckpointException

from worldenv.errors import UserError
from worldenv.launch.ranks import Ranks
from worldenv.records.checkpoint import CheckpointError


def save_shards(folder: Path, tensors: Mapping[str, Tensor], ranks: Ranks) -> None:
    """Write a folder: of every rank its parts, and what all have once. It is whole when this returns, at any rank.

    All ranks call it. Raises UserError if the folder cannot be written.
    """
    if ranks.first:
        shutil.rmtree(folder, ignore_errors=True)  # of a session that was killed while it wrote
    ranks.every(None)
    try:
        writer = checkpoint.HuggingFaceStorageWriter(str(folder), save_distributed=True)
        rows = {name: tensor.contiguous() for name, tensor in tensors.items()}  # as safetensors has them
        checkpoint.save(rows, storage_writer=writer)
    except CheckpointException as error:
        raise UserError(f"{folder} cannot be written ({_reason(error)}): mend that, then resume the run") from error


def load_shards(folder: Path, like: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of these names, shapes and kinds of numbers, from a folder that any number of ranks wrote.

    Each comes whole, or in shards, as it is in `like`; all ranks call it then. Raises CheckpointError for a folder that
    is missing, damaged or of other tensors.
    """
    out = {name: torch.empty_like(tensor) for name, tensor in like.items()}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*assuming the intent is to load in a single process")
            checkpoint.load(out, storage_reader=checkpoint.HuggingFaceStorageReader(str(folder)))
    except CheckpointException as error:
        raise CheckpointError(
            f"{folder}: missing, damaged, or of another policy ({_reason(error)}); restore it from a copy, or begin "
            "again with another --run"
        ) from error
    return out


def _reason(error: CheckpointException) -> str:
    """What failed at the first rank that failed."""
    first, _ = next(iter(error.failures.values()))
    return " ".join(str(first).split())[:200] or type(first).__name__
