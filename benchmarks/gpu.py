"""On a CUDA machine, network or not: build, `gpu` tests, `gpu` benchmarks, one JSON file in benchmarks/results/.

    make gpu        (or: python3 benchmarks/gpu.py)

Takes less than ten minutes: every step has a limit, and they add up to less. The package is built into build/gpu, so
the Python that runs this stays as it is; it needs torch with CUDA, nvcc where there are .cu files, setuptools,
pybind11, pytest and pytest-benchmark. Only files that mark something `gpu` are run, so what the others import may be
missing. The JSON tells of failed steps too; the exit status is 0 only if none failed.
"""

import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT, RESULTS = ROOT / "build" / "gpu", ROOT / "benchmarks" / "results"
PACKAGES = ("torch", "triton", "numpy", "safetensors", "h5py", "rich", "tyro", "tensorboard", "matplotlib", "pytest",
            "pytest-benchmark", "pybind11", "setuptools", "ninja", "transformers")  # fmt: skip
TAIL = 4000  # characters of a step's output that are kept


@dataclass
class Step:
    """A command with a time limit; what came of it once it has run."""

    name: str
    command: list[str]  # empty: there is nothing to run, which counts as a failure
    limit_s: float
    needs: str | None = None  # the step without which this one is not tried
    exit_status: int | None = None
    seconds: float | None = None
    problem: str | None = "not run"  # None: it went well
    output_tail: str = field(default="", repr=False)


def marked(folder: str, pattern: str) -> list[str]:
    """Files of a folder that mark something `gpu`."""
    return [str(path) for path in sorted((ROOT / folder).rglob(pattern)) if "mark.gpu" in path.read_text()]


def steps(report: Path) -> list[Step]:
    """What `make gpu` does; the benchmarks write `report`."""
    pip = ["-m", "pip", "install", "--no-build-isolation", "--no-deps", "--upgrade", "--target", str(BUILT), str(ROOT)]
    pytest = [sys.executable, "-P", "-m", "pytest", "-q", "-m", "gpu", "--rootdir", str(ROOT)]
    report_to = ["--benchmark-only", "--benchmark-json", str(report)]
    tests, benchmarks = marked("tests", "test_*.py"), marked("benchmarks", "bench_*.py")
    return [
        Step("build", [sys.executable, *pip], 180),
        Step("tests", tests and [*pytest, *tests], 150, "build"),
        Step("benchmarks", benchmarks and [*pytest, *report_to, *benchmarks], 240, "build"),
    ]


def run(step: Step) -> None:
    """Run a step; a limit that is over ends it and everything that it has started."""
    began = time.monotonic()
    environment = os.environ | {"PYTHONPATH": str(BUILT)}
    process = subprocess.Popen(
        step.command, cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        start_new_session=True,
    )  # fmt: skip
    try:
        output, _ = process.communicate(timeout=step.limit_s)
        step.problem = f"exit status {process.returncode}" if process.returncode else None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        step.problem = f"took longer than its {step.limit_s:g} s"
    step.exit_status, step.seconds = process.returncode, time.monotonic() - began
    step.output_tail = output[-TAIL:]


def run_all(todo: Sequence[Step]) -> None:
    """One after the other; a step whose need went wrong is left out and says so."""
    wrong = {step.name for step in todo if step.problem}
    for step in todo:
        if step.needs in wrong:
            step.problem = f"not run: {step.needs} went wrong"
        elif not step.command:
            step.problem = "not run: no file marks anything gpu"
        else:
            print(f"== {step.name}: {' '.join(step.command)}", flush=True)
            run(step)
            print(step.output_tail)
        print(f"== {step.name}: {step.problem or 'ok'}", flush=True)
        if step.problem is None:
            wrong.discard(step.name)


def document(todo: Sequence[Step], card: dict, report: Path) -> dict:
    """What goes to the JSON file: pytest-benchmark's layout with the steps beside it."""
    measured = json.loads(report.read_text()) if report.exists() else {}
    return {
        "datetime": datetime.now(UTC).isoformat(),
        "ok": all(step.problem is None for step in todo),
        "card": card,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "steps": [asdict(step) for step in todo],
        "machine_info": measured.get("machine_info", {}),
        "commit_info": measured.get("commit_info", {}),
        "benchmarks": measured.get("benchmarks", []),
    }


def version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def why_no_card() -> str | None:
    """Why nothing can run here; None where it can."""
    try:
        import torch
    except ImportError as error:
        return f"torch cannot be imported ({error})"
    if torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    return None if torch.cuda.is_available() else "torch finds no CUDA device"


def describe_card() -> dict:
    import torch

    found = torch.cuda.get_device_properties(0)
    return {"name": found.name, "capability": f"{found.major}.{found.minor}", "memory_bytes": found.total_memory,
            "multiprocessors": found.multi_processor_count, "cuda": torch.version.cuda}  # fmt: skip


def main() -> int:
    if reason := why_no_card():
        print(f"make gpu: {reason}; it needs a machine with a CUDA device. Nothing was built or run.", file=sys.stderr)
        return 2
    card = describe_card()
    name = f"gpu-{re.sub('[^a-z0-9]+', '-', card['name'].lower())}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    report = ROOT / "build" / f"report-{name}"
    report.parent.mkdir(exist_ok=True)
    todo = steps(report)
    run_all(todo)
    found = document(todo, card, report)
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / name).write_text(json.dumps(found, indent=1) + "\n")
    print(RESULTS / name)
    return 0 if found["ok"] else 1


if __name__ == "__main__":
    sys.exit(main())
