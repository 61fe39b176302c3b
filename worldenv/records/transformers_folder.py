"""Weights that transformers reads by itself, giving tensors of older files their new names: all fit, or are refused.

The library only logs what is missing or unexpected, and fills what is missing with random numbers.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

from worldenv.records.checkpoint import CheckpointError, one_line
from worldenv.records.released import AGAIN, CONFIG, INDEX, WEIGHTS, Release, check_shapes, library

WRONG = (ValueError, TypeError, RuntimeError, LookupError, ArithmeticError, AttributeError, AssertionError)
REMEDY = f"{AGAIN}, or give weights and {CONFIG} that belong together"


@contextmanager
def quiet() -> Iterator[ModuleType]:
    """transformers, without its progress bars and reports: our errors say what is wrong with weights."""
    transformers, _ = library("transformers"), library("accelerate")
    logging = transformers.utils.logging
    level, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL)
    logging.disable_progress_bar()
    try:
        yield transformers
    finally:
        logging.set_verbosity(level)
        if bars:
            logging.enable_progress_bar()


def read_configuration(release: Release, config_class: type) -> Any:
    """transformers' own object of a folder's config.json. Raises CheckpointError if it does not take it."""
    try:
        return config_class.from_dict({k: v for k, v in release.config.items() if k != "auto_map"})
    except Exception as error:  # the classes check their fields with errors of their own
        raise CheckpointError(
            f"{release.folder / CONFIG} is no configuration of {config_class.__name__} ({one_line(error)}); {AGAIN}"
        ) from error


def check_weights(release: Release, network_class: type, config: Any) -> None:
    """Load the shapes alone, on the device meta, with the library's own renaming: no weight is read.

    Raises CheckpointError for a tensor that is missing, unexpected or of another shape.
    """
    shapes = {name: torch.empty(entry.shape, device="meta") for name, entry in release.entries.items()}
    try:
        _, info = network_class.from_pretrained(
            None,
            config=config,
            state_dict=shapes,
            device_map={"": "meta"},
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # they are reported, as what is missing is
        )
    except WRONG as error:
        raise CheckpointError(f"{release.folder / CONFIG} makes no model ({one_line(error)}); {AGAIN}") from error
    check_info(release, info)


def check_info(release: Release, info: dict[str, Any]) -> None:
    """Raise CheckpointError for what the library would only log."""
    different = {name: (tuple(mine), tuple(theirs)) for name, mine, theirs in info["mismatched_keys"]}
    found = dict.fromkeys(info["unexpected_keys"], ()) | {name: mine for name, (mine, _) in different.items()}
    wanted = dict.fromkeys(info["missing_keys"], ()) | {name: theirs for name, (_, theirs) in different.items()}
    where = release.folder / (INDEX if (release.folder / INDEX).exists() else WEIGHTS)
    if found:
        where = _file_of(release, min(found))
    check_shapes(where, found, wanted, REMEDY)
    if problems := [*(info.get("error_msgs") or ()), *(info.get("conversion_errors") or {}).values()]:
        raise CheckpointError(f"{where} cannot be read ({str(problems[0])[:200]}); {AGAIN}")


def _file_of(release: Release, name: str) -> Path:
    """The file with a tensor that the library knows by another name: the one whose name ends most alike."""

    def alike(stored: str) -> int:
        pairs = zip(reversed(stored.split(".")), reversed(name.split(".")), strict=False)
        return next((i for i, (a, b) in enumerate(pairs) if a != b), len(name))

    return release.entries[max(release.entries, key=alike)].file
