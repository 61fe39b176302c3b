"""A training run on a disk that gets full: it ends in one line, leaves nothing torn, and goes on once there is room.

    python -P tests/fuzz/full_disk.py --sizes 12 --moments 12 --seed 0

--sizes mounts disks of so many sizes, up to what the run takes (needs root). --moments needs nothing: from a random
file operation on, the system refuses files that grow beyond a few bytes.
"""

import argparse
import os
import random
import resource
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = "1"  # a forked process cannot use the threads of its parent
sys.path.insert(0, str(Path(__file__).resolve().parent))

import torch  # noqa: E402

torch.set_num_threads(1)

from file_steps import before_step, count_steps  # noqa: E402
from safetensors.torch import load_file  # noqa: E402
from small_job import is_same, make_models, outcome, session  # noqa: E402

from worldenv.files import read_json  # noqa: E402
from worldenv.records.run_folder import PROBE_BYTES  # noqa: E402

SMALLEST, ROOM = PROBE_BYTES * 3 // 4, 256 << 20  # bytes: a disk that has not even room to begin, and one with room


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sizes", type=int, default=12, help="of disks; 0 without root")
    parser.add_argument("--moments", type=int, default=12, help="at which writing begins to fail")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    rng, wrong = random.Random(given.seed), 0
    with tempfile.TemporaryDirectory(prefix="full-disk-") as name:
        folder = Path(name)
        models, steps, whole = make_models(folder / "models"), folder / "steps", folder / "whole"
        session(models, whole, lambda: count_steps(folder, steps))
        count, size = int(steps.read_text()), sum(path.stat().st_size for path in whole.rglob("*"))
        for i in range(given.sizes):
            limit = SMALLEST + (size - SMALLEST) * i // max(1, given.sizes - 1)
            with disk(folder / f"disk-{i}", limit) as place:
                full = session(models, place / "run")
                found = [*problems(place / "run", *full)]
                subprocess.run(["mount", "-o", f"remount,size={ROOM}", place], check=True)
                wrong += report(f"disk of {limit:,} bytes", full, [*found, *resumed(models, place / "run", whole)])
        for i in range(given.moments):
            run, moment, limit = folder / f"run-{i}", rng.randrange(count), rng.choice((0, 500, 5_000, 50_000))
            full = session(models, run, lambda m=moment, n=limit: before_step(folder, m, lambda: refuse_beyond(n)))
            found = [*problems(run, *full)]
            wrong += report(f"{limit} bytes from operation {moment}", full, [*found, *resumed(models, run, whole)])
    print(f"wrong: {wrong} of {given.sizes + given.moments}")
    sys.exit(bool(wrong))


@contextmanager
def disk(place: Path, size: int) -> Iterator[Path]:
    """A file system of `size` bytes, until the end of the block."""
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", place], check=True)
    try:
        yield place
    finally:
        subprocess.run(["umount", place], check=True)


def refuse_beyond(size: int) -> None:
    """Let the system refuse, in this process, every write that makes a file larger."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, resource.RLIM_INFINITY))


def problems(run: Path, code: int, said: str) -> Iterator[str]:
    """What is wrong about how a session on a full disk ended, and about what it left."""
    lines = [line for line in said.splitlines() if line.startswith("error: ")]
    if code == 2 and (len(lines) != 1 or str(run) not in lines[0] or "free some space" not in lines[0]):
        yield f"the error is {lines}"
    if code not in (0, 2) or "Traceback" in said:
        yield f"exit {code}: {said[-2000:]}"
    try:
        for path in run.rglob("*.safetensors"):
            load_file(path)
        for path in run.glob("*.json"):
            read_json(path)
    except Exception as error:
        yield f"torn: {error}"


def resumed(models: Path, run: Path, whole: Path) -> Iterator[str]:
    """What is wrong about the run once there is room."""
    code, said = session(models, run)
    if code:
        yield f"the resume ends with {code}: {said[-2000:]}"
    elif not is_same(outcome(run), outcome(whole)):
        yield "the resumed run differs"


def report(what: str, full: tuple[int, str], found: list[str]) -> int:
    """Print how a case ended; 1 if anything is wrong."""
    code, said = full
    words = next((line for line in said.splitlines() if line.startswith("error: ")), "enough room")
    print(f"{'WRONG' if found else 'right'}  {what}: {words}", *found, sep="\n      ", flush=True)
    return bool(found)


if __name__ == "__main__":
    main()
