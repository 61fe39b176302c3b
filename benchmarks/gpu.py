"""On a CUDA machine, network or not: build, `gpu` tests, `gpu` benchmarks, one JSON file in benchmarks/results/.

    make gpu        (or: python3 benchmarks/gpu.py; with --only NAMES some steps of it, build first where there is none)

Takes less than ten minutes: every step has a limit, and all together have one. The package is built into build/gpu, so
the Python that runs this is not changed. It needs torch with CUDA, nvcc if there are .cu files, setuptools >= 77,
pybind11, pytest, pytest-benchmark, h5py, pillow, rich and safetensors. Only test files with the mark `gpu` are run, so
packages that other tests import may be missing. The JSON reports failed steps too, and build/gpu-logs has their output.
The exit status is 0 only if no step failed. The steps most likely to hang come last, so they cost no other step.
"""

import argparse
import json
import os
import platform
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
BUILT, RESULTS, LOGS = ROOT / "build" / "gpu", ROOT / "benchmarks" / "results", ROOT / "build" / "gpu-logs"
TRITON = "tests/kernels/triton_ops"  # its conftest.py marks what is in it
PACKAGES = (
    "torch",
    "triton",
    "numpy",
    "safetensors",
    "h5py",
    "rich",
    "tyro",
    "tensorboard",
    "matplotlib",
    "pytest",
    "pytest-benchmark",
    "pybind11",
    "setuptools",
    "ninja",
    "transformers",
)
TAIL = 4000  # characters of a step's output that the JSON keeps
TOTAL_S = 560.0


@dataclass
class Step:
    """A command with a time limit; what came of it once it has run."""

    name: str
    command: list[str]
    limit_s: float
    needs: str | None = None  # the step without which this one is not tried
    environment: dict[str, str] = field(default_factory=dict)
    report: Path | None = None  # where its benchmarks write
    exit_status: int | None = None
    seconds: float | None = None
    problem: str | None = "not run"  # None: it went well
    output_tail: str = field(default="", repr=False)


def marked(folder: str, pattern: str) -> list[str]:
    """Files of a folder that mark something `gpu`, relative to the root."""
    paths = sorted(path for path in (ROOT / folder).rglob(pattern) if "pytest.mark.gpu" in path.read_text())
    return [str(path.relative_to(ROOT)) for path in paths]


def steps(reports: Path) -> list[Step]:
    """What `make gpu` does; the benchmarks write to the folder `reports`, a file each."""
    pip = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--no-index",
        "--no-build-isolation",
        "--no-deps",
        "--upgrade",
        "--disable-pip-version-check",
        "--target",
        str(BUILT),
        str(ROOT),
    ]
    pytest = [
        sys.executable,
        "-P",
        "-m",
        "pytest",
        "-q",
        "-rs",
        "--tb=short",
        "-m",
        "gpu",
        "--rootdir",
        str(ROOT),
        "--continue-on-collection-errors",
    ]
    many = ["-n", "8"] if find_spec("xdist") else []  # most of the time is Triton's compiler's
    triton = {"WORLDENV_BACKEND": "triton"}  # else CUDA C++ is tested in its place
    out = [
        Step("build", pip, 300, environment={"WORLDENV_CUDA": "1"}),
        Step("tests", [*pytest, "-k", "not hopper", *marked("tests", "test_*.py")], 120, "build"),
        Step("tests of triton", [*pytest, *many, TRITON], 150, "build", triton),
    ]
    if find_spec("tyro"):  # the command line: every stage, practice and evaluation
        command = [sys.executable, "-P", "-m", "worldenv", "tabletop-causal-tiny", "--device", "cuda"]
        out.append(Step("training", [*command, "--run", str(reports / "run")], 200, "build"))
    hopper = [*pytest, "-k", "hopper", "tests/kernels/test_cuda_on_device.py"]
    for path in sorted(marked("benchmarks", "bench_*.py"), key=lambda path: "kernels" in path):  # the engine first
        report = reports / f"{Path(path).stem}.json"
        only = ["--benchmark-only", "--benchmark-json", str(report)]
        out.append(Step(Path(path).stem, [*pytest, *only, path], 200, "build", report=report))
    return [*out[:-1], Step("tests of wgmma", hopper, 60, "build"), out[-1]]  # the last takes the longest


def run(step: Step, limit_s: float) -> None:
    """Run a step; a limit that is over ends it and everything that it has started."""
    began = time.monotonic()
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"  # ninja may lie beside this Python
    packages = f"{BUILT}{os.pathsep}{os.environ.get('PYTHONPATH', '')}".rstrip(os.pathsep)
    environment = os.environ | {"PYTHONPATH": packages, "PATH": path} | step.environment
    environment.pop("TORCH_CUDA_ARCH_LIST", None)  # built for this card
    process = subprocess.Popen(
        step.command,
        cwd=ROOT,
        env=environment,
        text=True,
        errors="replace",
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        output, _ = process.communicate(timeout=limit_s)
        step.problem = f"exit status {process.returncode}" if process.returncode else None
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        step.problem = f"took longer than its {limit_s:.3g} s"
    step.exit_status, step.seconds = process.returncode, time.monotonic() - began
    step.output_tail = output[-TAIL:]
    LOGS.mkdir(parents=True, exist_ok=True)
    (LOGS / f"{step.name.replace(' ', '-')}.txt").write_text(output)


def run_all(todo: Sequence[Step], total_s: float, save: Callable[[], object] = lambda: None) -> None:
    """One after the other, with `save` after each; a step whose need went wrong is left out and says so, and so is one
    without time."""
    wrong, end = {step.name for step in todo if step.problem}, time.monotonic() + total_s
    for step in todo:
        left_s = end - time.monotonic()
        if step.needs in wrong:
            step.problem = f"not run: {step.needs} went wrong"
        elif left_s < 1:
            step.problem = f"not run: the {total_s:g} s for all steps were over"
        else:
            print(f"== {step.name}: {' '.join(step.command)}", flush=True)
            run(step, min(step.limit_s, left_s))
            print(step.output_tail)
        print(f"== {step.name}: {step.problem or 'ok'}", flush=True)
        if step.problem is None:
            wrong.discard(step.name)
        save()


def document(todo: Sequence[Step], card: dict) -> dict:
    """What goes to the JSON file: pytest-benchmark's layout with the steps beside it."""
    measured = [one for step in todo if step.report and (one := reported(step.report))]
    first = measured[0] if measured else {}
    return {
        "datetime": datetime.now(UTC).isoformat(),
        "ok": all(step.problem is None for step in todo),
        "card": card,
        "versions": {"python": platform.python_version()} | {name: version(name) for name in PACKAGES},
        "steps": [{k: v for k, v in asdict(step).items() if k != "report"} for step in todo],
        "machine_info": first.get("machine_info", {}),
        "commit_info": first.get("commit_info", {}),
        "benchmarks": [benchmark for one in measured for benchmark in one["benchmarks"]],
    }


def reported(path: Path) -> dict | None:
    """What a step's benchmarks wrote; None if it ended before: pytest-benchmark may make the file first."""
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return None


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
    return {
        "name": found.name,
        "capability": f"{found.major}.{found.minor}",
        "memory_bytes": found.total_memory,
        "multiprocessors": found.multi_processor_count,
        "cuda": torch.version.cuda,
    }


def main(arguments: Sequence[str] = ()) -> int:
    began, parser = time.monotonic(), argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", nargs="+", metavar="NAME", help="steps to run, of those that a whole run names")
    only = parser.parse_args(arguments).only
    if reason := why_no_card():
        print(f"make gpu: {reason}; it needs a machine with a CUDA device. Nothing was built or run.", file=sys.stderr)
        return 2
    card = describe_card()
    name = f"gpu-{re.sub('[^a-z0-9]+', '-', card['name'].lower())}-{datetime.now(UTC):%Y%m%d-%H%M%S}.json"
    reports = ROOT / "build" / name.removesuffix(".json")
    every = steps(reports)
    if unknown := set(only or ()) - {step.name for step in every}:
        parser.error(f"no step {sorted(unknown)}; there are {[step.name for step in every]}")
    todo = [step for step in every if not only or step.name in only]
    reports.mkdir(parents=True)
    RESULTS.mkdir(exist_ok=True)

    def save() -> dict:
        found = document(todo, card)
        text = json.dumps(found, indent=1).replace(str(ROOT), ".")  # paths that mean something elsewhere
        (RESULTS / name).write_text(text + "\n")
        return found

    run_all(todo, TOTAL_S - (time.monotonic() - began), save)
    print(RESULTS / name)
    return 0 if save()["ok"] else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
