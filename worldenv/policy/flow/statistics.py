"""How state and actions were normalised: by LeRobot's processors, older buffers, or transformers' processor."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor, nn

from worldenv.files import read_json
from worldenv.policy.flow.config import FlowConventions
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import Release, check_finite, header
from worldenv.robot.kinematics import is_number

BEFORE, AFTER, PROCESSOR = "policy_preprocessor.json", "policy_postprocessor.json", "processor_config.json"
STEPS = {BEFORE: "normalizer_processor", AFTER: "unnormalizer_processor"}  # the names of LeRobot's registry
FEATURES = {"state": "observation.state", "action": "action"}
TYPES = {"state": "STATE", "action": "ACTION"}
BUFFERS = ("normalize_inputs.buffer_", "unnormalize_outputs.buffer_", "normalize_targets.buffer_")  # before 0.4
MODES = {  # -> the statistics that say it
    "MEAN_STD": ("mean", "std"),
    "MIN_MAX": ("min", "max"),
    "QUANTILES": ("q01", "q99"),
    "QUANTILE10": ("q10", "q90"),
}
TINY = 1e-8  # that LeRobot adds to a deviation, or puts in the place of a range of 0
LEAST_FACTOR = 1e-3  # |factor| of an action, for its scale: a number that never moved has a deviation of 0
COPY = "copy the file again"


@dataclass(frozen=True)
class Scale:
    """normalised = (x - offset) / factor, for each of n numbers."""

    factor: tuple[float, ...]
    offset: tuple[float, ...]

    def __len__(self) -> int:
        return len(self.factor)


def read_statistics(
    release: Release,
    sizes: Mapping[str, int | None],  # numbers of "state" and "action"; None: as many as there are
) -> dict[str, Scale]:
    """How the folder's policy was normalised.

    Raises CheckpointError if that is not there, or of another size or kind.
    """
    folder = release.folder
    if (folder / BEFORE).exists():
        said = {"state": _step(folder, BEFORE), "action": _step(folder, AFTER if (folder / AFTER).exists() else BEFORE)}
    elif any(key.startswith(BUFFERS) for key in release.entries):
        said = dict.fromkeys(FEATURES, _buffers(release))
    elif (folder / PROCESSOR).exists():
        said = dict.fromkeys(FEATURES, _processor(folder / PROCESSOR))
    else:
        raise CheckpointError(
            f"{folder} has neither {BEFORE} nor {PROCESSOR}, so state and actions have no units; copy the processors' "
            "files from the release, the .safetensors among them"
        )
    return {part: _scale(*said[part], part, sizes[part]) for part in FEATURES}


Said = tuple[Path, Mapping[str, Any], Mapping[str, list[float]]]  # file, mode by type, numbers by "feature.statistic"


def _step(folder: Path, name: str) -> Said:
    """What the step of a processor of LeRobot says that normalises."""
    steps = read_json(folder / name).get("steps")
    steps = [step for step in steps if isinstance(step, dict)] if isinstance(steps, list) else []
    step = next((step for step in steps if step.get("registry_name") in STEPS.values()), None)
    file = step and step.get("state_file")
    if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
        raise CheckpointError(f"{folder / name} has no step {STEPS[name]} with a file of statistics beside it; {COPY}")
    if not (folder / file).is_file():
        raise CheckpointError(f"{folder} lacks {file}, the statistics that {name} names; copy it from the release")
    modes = (step.get("config") or {}).get("norm_map")
    if not isinstance(modes, dict):
        raise CheckpointError(f"{folder / name}: {STEPS[name]} has no norm_map; {COPY}")
    if (kind := modes.get("VISUAL", "IDENTITY")) != "IDENTITY":
        raise CheckpointError(f"{folder / name}: pictures are normalised by {kind!r}; only IDENTITY is known here")
    header(folder / file)  # says what is wrong with it
    with safe_open(folder / file, framework="pt", device="cpu") as opened:
        tensors = {key: opened.get_tensor(key) for key in opened.keys()}  # noqa: SIM118
    return folder / file, modes, _lists(folder / file, tensors)


def _buffers(release: Release) -> Said:
    """What LeRobot before 0.4 kept among the weights."""
    found: dict[str, list[float]] = {}
    for key, entry in release.entries.items():
        if key.startswith(BUFFERS):
            with safe_open(entry.file, framework="pt", device="cpu") as opened:
                numbers = _lists(entry.file, {key: opened.get_tensor(key)})[key]
            feature, _, statistic = key.removeprefix(next(b for b in BUFFERS if key.startswith(b))).rpartition(".")
            found.setdefault(f"{feature.replace('observation_state', 'observation.state')}.{statistic}", numbers)
    modes = release.config.get("normalization_mapping")
    if not isinstance(modes, dict):
        raise CheckpointError(f"{release.folder / 'config.json'} has no normalization_mapping; {COPY}")
    return next(iter(release.entries.values())).file, modes, found


def _processor(path: Path) -> Said:
    """What the processor of transformers' pi0 says."""
    document, found = read_json(path), {}
    for part, name in {"state": "state", "action": "actions"}.items():
        for statistic in ("mean", "std"):
            numbers = document.get(f"{name}_{statistic}")
            if isinstance(numbers, list) and all(map(is_number, numbers)):
                found[f"{FEATURES[part]}.{statistic}"] = [float(x) for x in numbers]
    return path, dict.fromkeys(TYPES.values(), "MEAN_STD"), found


def _lists(file: Path, tensors: Mapping[str, Tensor]) -> dict[str, list[float]]:
    for key, tensor in tensors.items():
        check_finite(file, key, tensor)
    return {key: tensor.double().flatten().tolist() for key, tensor in tensors.items()}


def _scale(
    path: Path, modes: Mapping[str, Any], found: Mapping[str, list[float]], part: str, size: int | None
) -> Scale:
    mode, feature = modes.get(TYPES[part], "IDENTITY"), FEATURES[part]
    if mode == "IDENTITY":
        if size is None:
            raise CheckpointError(f"{path} does not say how many numbers {feature} has; {COPY}")
        return Scale((1.0,) * size, (0.0,) * size)
    if mode not in MODES:
        raise CheckpointError(f"{path}: {feature} is normalised by {mode!r}; known are {', '.join(MODES)}")
    first, second = (found.get(f"{feature}.{name}") for name in MODES[mode])
    if not first or not second:
        missing = [f"{feature}.{n}" for n, v in zip(MODES[mode], (first, second), strict=True) if not v]
        raise CheckpointError(f"{path} lacks {' and '.join(missing)}, by which {mode} normalises; {COPY}")
    wanted = len(first) if size is None else size
    if not len(first) == len(second) == wanted:
        raise CheckpointError(
            f"{path}: {feature} has statistics of {len(first)} and {len(second)} numbers, and the policy has {wanted} "
            f"of it; {COPY}"
        )
    if mode == "MEAN_STD":
        if min(second) < 0:
            raise CheckpointError(f"{path}: {feature}.std has numbers below 0; {COPY}")
        return Scale(tuple(std + (TINY if part == "state" else 0.0) for std in second), tuple(first))
    ranges = [high - low or TINY for low, high in zip(first, second, strict=True)]
    if min(ranges) < 0:
        raise CheckpointError(f"{path}: {MODES[mode][0]} of {feature} is above {MODES[mode][1]}; {COPY}")
    return Scale(tuple(r / 2 for r in ranges), tuple(low + r / 2 for low, r in zip(first, ranges, strict=True)))


class Units(nn.Module):
    """Between the policy's normalised numbers and those of the environment: an affine map of each number."""

    def __init__(self, scales: Mapping[str, Scale], conventions: FlowConventions):
        super().__init__()
        factor, offset = (
            torch.tensor(x, dtype=torch.float64) for x in (scales["action"].factor, scales["action"].offset)
        )
        times, more = conventions.gripper
        factor[-1], offset[-1] = factor[-1] * times, offset[-1] * times + more
        rows = {
            "factor": factor,  # [A]
            "offset": offset,  # [A]
            "index": torch.tensor(conventions.proprio),  # [n]
            "times": torch.tensor(conventions.proprio_factor),
            "state_factor": torch.tensor(scales["state"].factor),
            "state_offset": torch.tensor(scales["state"].offset),
        }
        for name, row in rows.items():
            self.register_buffer(name, row.float() if row.is_floating_point() else row, persistent=False)

    def action(self, normalised: Tensor) -> Tensor:  # [B, K, A] -> [B, K, A] float32, the environment's
        """What the environment is to do."""
        return normalised.float() * self.factor + self.offset

    def log_scale(self, beta: Tensor) -> Tensor:  # [B, K, A] -> [B, K, A] float32
        """The logarithm of a scale, in the environment's units."""
        return beta.float() + self.factor.abs().clamp(min=LEAST_FACTOR).log()

    def state(self, proprio: Tensor) -> Tensor:  # [B, P] float32 -> [B, n] float32
        """Proprioception as the policy reads it."""
        return (proprio[:, self.index] * self.times - self.state_offset) / self.state_factor
