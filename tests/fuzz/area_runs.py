"""Run folders in which a file was damaged, removed, exchanged or locked, and then read, resumed, evaluated or shown."""

import atexit
import copy
import io
import json
import os
import random
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, suppress
from functools import cache
from pathlib import Path
from typing import Any

from cases import Case, Silent
from safetensors.torch import load_file
from small_job import is_same, make_models, outcome, train

from worldenv.commands import job
from worldenv.records.report import write_report
from worldenv.records.run_folder import RunFolder
from worldenv.rl import loop

STATE, POLICY = "checkpoints/post_train.state.safetensors", "checkpoints/policy.safetensors"
TEXTS = ("config.json", "result.json", "metrics.jsonl")
WRONG = (None, True, -1, 0.5, 10**30, "x", "\ud800", "a\nb", [], [None], {}, {"a": 1}, float("nan"), float("inf"))
SECRET = "nobody else's business"
Damage = Callable[[random.Random, Path], None]


@cache
def pristine() -> Path:
    """A folder with models, `whole`, a run that is finished, and `half`, one that was interrupted in iteration 3 of 3.

    Removed when this process ends; the processes of the cases leave it.
    """
    folder = Path(tempfile.mkdtemp(prefix="runs-"))
    atexit.register(shutil.rmtree, folder)
    make_models(folder / "models")
    iterate = loop._iterate

    def interrupted(*given: Any) -> dict:
        if given[5] == 2:  # the iteration
            raise KeyboardInterrupt
        return iterate(*given)

    with redirect_stderr(io.StringIO()):
        train(folder / "models", folder / "whole")
        loop._iterate = interrupted
        with suppress(KeyboardInterrupt):
            train(folder / "models", folder / "half")
        loop._iterate = iterate
    assert (folder / "half" / STATE).exists() and not (folder / "half" / "result.json").exists()
    return folder


def cases(rng: random.Random) -> Iterator[Case]:
    """Endless; the pristine runs are made before the first."""
    while True:
        seed, use = rng.getrandbits(32), rng.choice(list(USES))
        draw = random.Random(seed)
        of = "half" if use == "resume" else "whole"
        file = draw.choice(
            [*TEXTS, POLICY, *(2 * [STATE])] if of == "whole" else ["config.json", "metrics.jsonl", STATE]
        )
        damage = draw.choice(list(ANY) + list(TEXT if file in TEXTS else BINARY))
        if draw.random() < 0.25:
            file, damage = "", draw.choice(list(FOLDER))
        yield Case(f"{of}: {damage} {file} (seed {seed}), then {use}", _case(draw, pristine() / of, file, damage, use))


def _case(draw: random.Random, source: Path, file: str, damage: str, use: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        warnings.simplefilter("ignore")
        run, secret = folder / "run", folder / "secret"
        shutil.copytree(source, run)
        secret.mkdir()
        (secret / "a.txt").write_text(SECRET)
        try:
            (ANY | TEXT | BINARY | FOLDER)[damage](draw, run / file)
            USES[use](run, damage in MAY_PASS or (use != "resume" and damage in READ_AS_IT_IS))
        finally:
            if [path.name for path in secret.iterdir()] != ["a.txt"] or (secret / "a.txt").read_text() != SECRET:
                raise Silent("a file outside the run was touched")
        report = run / "report.html"
        if not report.is_symlink() and report.is_file() and SECRET in report.read_text():
            raise Silent("the report shows a file from outside the run")

    return act


def read(run: Path, may_differ: bool) -> None:
    """Everything that a RunFolder reads."""
    folder, whole = RunFolder(run), RunFolder(pristine() / "whole")
    found = [folder.config, folder.result(), [folder.metrics(stage) for stage in folder.stages()]]
    expected = [whole.config, whole.result(), [whole.metrics(stage) for stage in whole.stages()]]
    json.dumps(found, allow_nan=False).encode()
    if found != expected and not may_differ:
        raise Silent(f"read {str(found)[:500]}")


def show(run: Path, may_differ: bool) -> None:
    """The report, and what it is made of."""
    write_report(RunFolder(run)).read_text(encoding="utf-8")
    read(run, may_differ)


def evaluate(run: Path, may_differ: bool) -> None:
    """The parts that an evaluation of the run takes."""
    weights, expected = job.load_run(run).policy.state_dict(), load_file(pristine() / "whole" / POLICY)
    if not all(weights[name].equal(expected[name]) for name in expected):
        raise Silent("another policy is evaluated")


def resume(run: Path, may_differ: bool) -> None:
    """Go on with the run to its end."""
    train(pristine() / "models", run, is_there=True)
    found, expected = outcome(run), outcome(pristine() / "whole")
    if not is_same(found, expected) and not (may_differ and is_same((found[0], 0), (expected[0], 0))):
        raise Silent("the resumed run ends otherwise")


def begin(run: Path, may_differ: bool) -> None:
    """A new run in the folder of another: always refused, unless the other had not begun."""
    RunFolder.create(run, {"seed": 3})
    raise Silent("a run folder was taken by another run")


USES = {"read": read, "report": show, "evaluate": evaluate, "resume": resume, "begin": begin}


def _remove(path: Path) -> None:
    shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()


def _instead(make: Callable[[Path], Any]) -> Damage:
    def damage(draw: random.Random, path: Path) -> None:
        _remove(path)
        make(path)

    return damage


def _bytes(change: Callable[[random.Random, bytes], bytes]) -> Damage:
    return lambda draw, path: path.write_bytes(change(draw, path.read_bytes()))


def _cut(draw: random.Random, content: bytes) -> bytes:
    return content[: draw.randrange(len(content))]


def _insert(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + draw.choice((b"\0", b"\xff", b"\n", b"[" * 5000, b"}", b'"')) + content[at:]


def _flip(draw: random.Random, content: bytes) -> bytes:
    at = draw.randrange(len(content))
    return content[:at] + bytes([content[at] ^ 1 << draw.randrange(8)]) + content[at + 1 :]


def _value(draw: random.Random, path: Path) -> None:
    """One value of a document, anywhere in it, becomes something else."""
    text = path.read_text()
    documents = [json.loads(text)] if path.suffix == ".json" else [json.loads(line) for line in text.splitlines()]
    changed = copy.deepcopy(documents)
    places = [place for document in changed for place in _places(document)]
    inside, key = draw.choice(places)
    inside[key] = draw.choice(WRONG)
    indent = 2 if path.suffix == ".json" else None
    path.write_text("".join(json.dumps(document, indent=indent) + "\n" for document in changed))


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    keys = value.keys() if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ()
    for key in keys:
        yield value, key
        yield from _places(value[key])


def _exchange(draw: random.Random, path: Path) -> None:
    shutil.copy(pristine() / "whole" / (STATE if path.name == Path(POLICY).name else POLICY), path)


def _of_another_seed(draw: random.Random, path: Path) -> None:
    from worldenv.records.checkpoint import load_state, save_state

    if path.name != Path(STATE).name:
        return _exchange(draw, path)
    state = load_state(path)
    save_state(path, **state | {"run": state["run"] | {"seed": 9}})


def _link_out(name: str) -> Damage:
    """A name in the run becomes a link to a folder that is somebody else's."""

    def damage(draw: random.Random, run: Path) -> None:
        path = run / name
        if os.path.lexists(path):
            _remove(path)
        path.symlink_to(run.parent / "secret")

    return damage


def _held(draw: random.Random, run: Path) -> None:
    HELD.append(RunFolder.resume(run))


def _video(draw: random.Random, run: Path) -> None:
    (run / "videos").mkdir(exist_ok=True)
    (run / "videos" / "b.webp").write_bytes(draw.randbytes(draw.choice((0, 9, 500))))


def _caption(draw: random.Random, run: Path) -> None:
    caption = next((run / "videos").glob("*.txt"))
    caption.unlink()
    caption.symlink_to(run.parent / "secret" / "a.txt")


HELD: list[RunFolder] = []
ANY: dict[str, Damage] = {
    "removed": lambda draw, path: path.unlink(),
    "emptied": _bytes(lambda draw, content: b""),
    "cut": _bytes(_cut),
    "noise": _bytes(lambda draw, content: draw.randbytes(draw.choice((1, 100, len(content))))),
    "zeros": _bytes(lambda draw, content: bytes(len(content))),
    "end of zeros": _bytes(lambda draw, content: (kept := _cut(draw, content)) + bytes(len(content) - len(kept))),
    "doubled": _bytes(lambda draw, content: content + content),
    "folder": _instead(Path.mkdir),
    "pipe": _instead(os.mkfifo),
    "device": _instead(lambda path: path.symlink_to("/dev/zero")),
    "loop": _instead(lambda path: path.symlink_to(path.name)),
    "dangling": _instead(lambda path: path.symlink_to("nowhere")),
    "huge": lambda draw, path: os.truncate(path, 1 << 42),
}
TEXT: dict[str, Damage] = {
    "inserted": _bytes(_insert),
    "value": _value,
    "another type": _bytes(lambda draw, content: json.dumps(draw.choice(WRONG)).encode() + b"\n"),
    "utf-16": _bytes(lambda draw, content: content.decode().encode("utf-16")),
}
BINARY: dict[str, Damage] = {"flipped": _bytes(_flip), "exchanged": _exchange, "of another seed": _of_another_seed}
FOLDER: dict[str, Damage] = {
    "no checkpoints": lambda draw, run: _remove(run / "checkpoints"),
    "no videos": lambda draw, run: _remove(run / "videos"),
    "file for checkpoints": lambda draw, run: (_remove(run / "checkpoints"), (run / "checkpoints").touch()),
    "file for videos": lambda draw, run: (_remove(run / "videos"), (run / "videos").touch()),
    "file for tensorboard": lambda draw, run: (_remove(run / "tensorboard"), (run / "tensorboard").touch()),
    "link for .lock": lambda draw, run: ((run / ".lock").unlink(), (run / ".lock").symlink_to("../secret/new")),
    "folder for .lock": lambda draw, run: ((run / ".lock").unlink(), (run / ".lock").mkdir()),
    "link for report.html": lambda draw, run: (
        (run / "report.html").unlink(missing_ok=True),
        (run / "report.html").symlink_to("../secret/a.txt"),
    ),
    "old temporary file": lambda draw, run: (run / ".config.json.partial").symlink_to("../secret/a.txt"),
    "open elsewhere": _held,
    "damaged video": _video,
    "caption that is a link": _caption,
    "tensorboard elsewhere": _link_out("tensorboard"),
}
READ_AS_IT_IS = {"doubled", "another type"}  # lines twice, and an empty object for a configuration
# Nothing tells that a value was another one, or that the last line or a whole file was longer or there.
MAY_PASS = {"value", "removed", "emptied", "cut", "end of zeros", "inserted"}
