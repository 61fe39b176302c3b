"""What result.json may hold: the fields that are read again, by the report and by a resumed run, with their types."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from worldenv.errors import UserError
from worldenv.files import read_json

LARGEST = 1e12
EVERY = "*"  # the form of every value whose name is not listed


def read_result(path: Path) -> dict[str, Any]:
    """The result in a file.

    A field may be absent or null, and there may be others. Raises UserError as `read_json` does, and naming the file
    and the field if a field has a wrong type or is out of range.
    """
    result = read_json(path)
    try:
        _check(result, RESULT)
        for name in EVALUATIONS:
            if result.get(name) and result[name].get("n") is None:
                raise ValueError(f"{name}.n is missing")
    except ValueError as error:
        raise UserError(f"{path}: {error}; it is damaged: restore it from a copy, or resume the run") from error
    return result


def _check(value: Any, form: Any, name: str = "") -> None:
    """Forms: a function that raises ValueError; {field: form}; [form, form] for each of so many values, [form] for any
    number; (form, {...}) for one value alone, or one by name."""
    if isinstance(form, tuple):
        form = form[isinstance(value, dict)]
    if isinstance(form, dict):
        if not isinstance(value, dict):
            raise ValueError(f"{name or 'it'} should be an object")
        for key, part in value.items():
            inner = form.get(key, form.get(EVERY))
            if inner and (part is not None or EVERY in form and isinstance(form[EVERY], dict | list)):
                _check(part, inner, f"{name}.{key[:80]!r}" if name else key)
    elif isinstance(form, list):
        if not isinstance(value, list) or len(form) > 1 and len(value) != len(form):
            raise ValueError(f"{name} should be a list" + (f" of {len(form)}" if len(form) > 1 else ""))
        for i, part in enumerate(value):
            if part is not None or len(form) > 1:
                _check(part, form[i % len(form)], f"{name}[{i}]")
    else:
        try:
            form(value)
        except ValueError as error:
            raise ValueError(f"{name} is {str(value)[:80]!r} and {error}") from None


def _number(low: float, high: float, kind: type | tuple = (int, float), what: str = "a number") -> Callable:
    def check(value: Any) -> None:
        if isinstance(value, bool) or not isinstance(value, kind) or not low <= value <= high:
            raise ValueError(f"should be {what} from {low:g} to {high:g}")

    return check


def _text(value: Any) -> None:
    if not isinstance(value, str):
        raise ValueError("should be a string")


SHARE, GAP, ANY = _number(0, 1), _number(-1, 1), _number(-LARGEST, LARGEST)
SECONDS = _number(0, LARGEST)
WHOLE, COUNT = (_number(low, LARGEST, int, "a whole number") for low in (-LARGEST, 0))
EVALUATIONS = ("success_before", "success_after", "success")
RATES = {"oracle": SHARE, "own_stop": SHARE, "no_stop": SHARE, "n": _number(1, LARGEST, int, "a whole number")}
INTERVALS = {"intervals": {EVERY: [SHARE, SHARE]}}
SUCCESS = RATES | INTERVALS | {"per_task": {EVERY: RATES | {"imagined": SHARE, "instruction": _text}}}
THINGS = {
    "moved_thing": {EVERY: {EVERY: SHARE, "n": COUNT}},
    "by_chunk": {EVERY: {EVERY: {EVERY: [SHARE], "n": [COUNT]}}},
}
AGREEMENT = {
    **dict.fromkeys(("share", "mean_gap", "mean_gap_by_chance", "largest_gap"), SHARE),
    "n": COUNT,
    "begins": {EVERY: COUNT},
}
REFLECTOR = {EVERY: {**dict.fromkeys(("ece", "false_stop", "missed_stop"), SHARE)}}
GUARD = {**dict.fromkeys(("auroc", "right", "wrong"), SHARE), "interval": [SHARE, SHARE], "n": COUNT, "n_wrong": COUNT}
CONSISTENCY = {"agreement": AGREEMENT, "guard": GUARD, "reflector": REFLECTOR, "things": THINGS}
RESULT = {
    **dict.fromkeys(EVALUATIONS, SUCCESS),
    **dict.fromkeys(("imagined_success", "false_stop", "missed_stop"), (SHARE, {EVERY: SHARE, "n": COUNT})),
    "imagined_minus_true": (GAP, {EVERY: GAP, "n": COUNT}),
    "world_model": {**dict.fromkeys(("psnr", "ssim", "lpips"), [ANY]), "fid": ANY, "fvd": ANY},
    "consistency": CONSISTENCY | {"before": CONSISTENCY, "after": CONSISTENCY},
    "counts": {EVERY: COUNT},
    "rounds": {EVERY: COUNT},
    "time_shares": {EVERY: SHARE},
    "stages_s": {EVERY: SECONDS},
    "wall_s": SECONDS,
    "seed": WHOLE,
    "start_seed": WHOLE,
    "run": _text,
    "command": _text,
}
