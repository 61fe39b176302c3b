"""What the caller does to a command's streams, and when it interrupts it, ends in one line and no lost result."""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest

from worldenv.commands import cli

ROOT = str(Path(cli.__file__).parents[2])
RESULT = {"run": "/there/é", "value": 1.5}
# The command, with a job that prints progress as the real one does, and returns at once.
PROGRAM = f"""
import sys
from worldenv.commands import cli

def work(words, command):
    print("progress", file=sys.stderr, flush=True)
    return {RESULT!a}

cli._main(work, "worldenv-eval", sys.argv[1:])
"""
LINE = "worldenv-eval: the result could not be printed to stdout ({}); it is in /there/"


def shell(redirection: str, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess:
    """Run PROGRAM under a shell with this redirection; {broken} is a pipe that nobody reads."""
    reading, broken = os.pipe()
    os.close(reading)
    command = f'"$0" -P -c "$1" {redirection.format(broken=broken)}'
    path = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))
    try:
        return subprocess.run(
            ["bash", "-c", command, sys.executable, PROGRAM],
            capture_output=True,
            text=True,
            env=os.environ | {"PYTHONPATH": path} | (environment or {}),
            pass_fds=[broken],
            timeout=60,
        )
    finally:
        os.close(broken)


@pytest.mark.parametrize(
    ("redirection", "reason"),
    [
        (">&-", "stdout is closed"),
        (">/dev/full", "No space left on device"),
        (">&{broken}", "Broken pipe"),
    ],
)
def test_result_that_stdout_does_not_take_is_named_and_the_code_says_so(redirection, reason):
    ended = shell(redirection)
    assert ended.returncode == 1 and ended.stdout == ""
    assert ended.stderr.splitlines()[0] == "progress" and ended.stderr.count("\n") == 2
    assert ended.stderr.splitlines()[1].startswith(LINE.format(reason))


@pytest.mark.parametrize("redirection", ["2>&-", "2>/dev/full", "2>&{broken}", "<&-", "2>&- <&-"])
def test_stderr_that_takes_nothing_costs_nothing(redirection):
    ended = shell(redirection)
    assert ended.returncode == 0 and json.loads(ended.stdout) == RESULT


def test_both_streams_may_be_closed():
    assert shell(">&- 2>&-").returncode == 1


def test_descriptor_that_the_caller_closed_is_not_that_of_the_next_file(tmp_path):
    program = (
        "import os, sys\nfrom worldenv.terminal import patient_streams\nwith patient_streams():\n"
        f"    file = open({str(tmp_path / 'file')!r}, 'w')\n    os.write(1, b'noise'); os.write(2, b'noise')\n"
        "    file.write(str(file.fileno()))"
    )
    command = ["bash", "-c", '"$0" -P -c "$1" >&- 2>&- <&-', sys.executable, program]
    subprocess.run(command, env=os.environ | {"PYTHONPATH": ROOT}, timeout=60)
    assert int((tmp_path / "file").read_text()) > 2


def test_plain_locale_prints_everything():
    plain = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    ended = shell("", plain)
    assert ended.returncode == 0 and json.loads(ended.stdout) == RESULT
    ended = shell(">&-", plain)
    assert ended.returncode == 1 and "/there/\\xe9/result.json" in ended.stderr


@pytest.mark.parametrize("word", [["--help"], ["tabletop", "--run", "\N{SNOWMAN}" * 200]])
def test_help_and_messages_are_printed_in_a_plain_locale(word, monkeypatch, capsys):
    import io

    out = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr("sys.stdout", out)
    with pytest.raises(SystemExit) as end:
        cli.train(word)
    assert end.value.code == (0 if word == ["--help"] else 2)
    out.flush()
    assert word != ["--help"] or b"tabletop-quick" in out.buffer.getvalue()


def interrupted(program: str) -> subprocess.CompletedProcess:
    """Run a program that sends itself a signal."""
    return subprocess.run(
        [sys.executable, "-P", "-c", program],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": ROOT},
        timeout=60,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),  # jobs in the background ignore it
    )


@pytest.mark.parametrize(("number", "code", "how"), [("SIGINT", 130, "interrupted"), ("SIGTERM", 143, "terminated")])
@pytest.mark.parametrize("module", ["torch", "torch.nn"])
def test_interruption_is_answered_in_one_line_also_while_torch_is_imported(number, code, how, module):
    program = f"""
import os, signal, sys

class Interrupts:
    def find_spec(self, name, path, target=None):
        if name == {module!r}:
            os.kill(os.getpid(), signal.{number})

sys.meta_path.insert(0, Interrupts())
from worldenv.commands import cli
cli.train(["tabletop", "--run", "/nowhere/x"])
"""
    ended = interrupted(program)
    assert ended.returncode == code and ended.stderr.strip() == f"worldenv-train: {how}; run it again"


@pytest.fixture
def open_folder():
    """A folder that every user can get to, unlike `tmp_path`."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user")
def test_what_another_user_may_not_read_or_write_is_named(open_folder):
    locked = open_folder / "locked"
    (locked / "models").mkdir(parents=True)
    locked.chmod(0o700)
    program = (  # imported first: another user may not be able to read the package
        "import os, sys\nfrom worldenv.commands import cli, job, options\nos.environ.pop('HOME', None)\n"
        "os.setgroups([]); os.setgid(65534); os.setuid(65534)\ngetattr(cli, sys.argv[1])(sys.argv[2:])"
    )

    def as_nobody(*words: str) -> str:
        command = [sys.executable, "-P", "-c", program, *words]
        ended = subprocess.run(
            command, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": ROOT}, cwd=open_folder, timeout=60
        )
        assert ended.returncode in (1, 2) and ended.stdout == "" and ended.stderr.count("\n") == 1, ended.stderr
        return ended.stderr

    assert f"{locked}/models" in as_nobody("evaluate", "--models", str(locked / "models"))
    assert f"{locked}/run" in as_nobody("train", "--resume", "--run", str(locked / "run"))
    assert f"{locked}" in as_nobody("evaluate", "--eval.weights", str(locked))


@pytest.mark.parametrize(("number", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_signal_that_arrives_in_a_destructor_is_not_lost(number, code):
    program = f"""
import os, signal, time
from worldenv.commands import cli

class Slow:
    def __del__(self):
        os.kill(os.getpid(), signal.{number})
        time.sleep(5)

def work(words, command):
    Slow()
    time.sleep(20)

cli._main(work, "worldenv-train", [])
"""
    ended = interrupted(program)
    assert ended.returncode == code and ended.stderr.count("\n") == 2, ended.stderr


@pytest.mark.parametrize(
    "hidden_by", [ImportError, SystemError, OSError]
)  # the last: as of a library that is half there
def test_signal_that_an_import_swallows_is_what_ended_the_command(monkeypatch, capsys, hidden_by):
    def work(words, command):
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)
        except BaseException:
            raise hidden_by("half imported") from None

    with pytest.raises(SystemExit) as end:
        cli._main(work, "worldenv-train", [])
    assert end.value.code == 143 and "worldenv-train: terminated" in capsys.readouterr().err


def test_handler_of_the_caller_stays(monkeypatch):
    before = signal.getsignal(signal.SIGTERM)
    with cli._signals_kept(), pytest.raises(cli.Terminated):
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert signal.getsignal(signal.SIGTERM) is before

    def mine(*_):
        raise ZeroDivisionError

    signal.signal(signal.SIGTERM, mine)
    try:
        with cli._signals_kept():
            assert signal.getsignal(signal.SIGTERM) is mine
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PermissionError(13, "Permission denied", "/x/y"), 1, "worldenv-eval: /x/y: Permission denied"),
        (OSError(28, "No space left on device"), 1, "worldenv-eval: No space left on device"),
        (MemoryError("Unable to allocate 9 TiB"), 2, "out of memory: lower --eval.episodes, --rl.starts"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 2, "out of memory: lower"),
    ],
)
def test_world_that_fails_is_said_in_one_line(monkeypatch, capsys, error, code, line):
    def fail(*_):
        raise error

    monkeypatch.setattr("worldenv.commands.job.evaluate", fail)
    with pytest.raises(SystemExit) as end:
        cli.evaluate([])
    err = capsys.readouterr().err
    assert end.value.code == code and line in err and err.count("\n") == 1


@pytest.mark.parametrize("error", [RuntimeError("a bug"), OSError("a bug"), KeyError("a bug")])
def test_bug_still_shows_itself(monkeypatch, error):
    def fail(*_):
        raise error

    monkeypatch.setattr("worldenv.commands.job.evaluate", fail)
    with pytest.raises(type(error)):
        cli.evaluate([])
