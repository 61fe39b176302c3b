"""`worldenv-train` and the other commands: parse, run, and end stdout with one JSON line.

What needs torch is imported late, so that an interruption is answered in one line from the first moment on.
"""

import json
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from worldenv.errors import Terminated, UserError, exit_code
from worldenv.terminal import not_printed, patient_streams, print_result

SOON_S = 0.01  # until a signal that was lost is sent again
LESS_MEMORY = "lower --eval.episodes, --rl.starts, --rl.siblings or --engine.capacity"


def train(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-train PRESET [options]`."""

    def work(words: Sequence[str], command: str) -> dict | None:
        return _on_ranks("train", words, command)

    _main(work, "worldenv-train", arguments)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-eval [options]`."""

    def work(words: Sequence[str], command: str) -> dict | None:
        return _on_ranks("eval", words, command)

    _main(work, "worldenv-eval", arguments)


def reflector(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-reflector --vlm FOLDER --data FOLDER --run FOLDER [options]`."""

    def work(words: Sequence[str], command: str) -> dict:
        from worldenv.commands import options
        from worldenv.training.train_vlm import train_vlm

        return _with_memory(train_vlm, options.reflector(words), advice="lower --memory-mb or --batch")

    _main(work, "worldenv-reflector", arguments)


def distill(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-distill --world KIND:FOLDER --data FOLDER --run FOLDER [options]`."""

    def work(words: Sequence[str], command: str) -> dict:
        from worldenv.commands import distill as module
        from worldenv.commands import options

        return _with_memory(module.train_student, options.distillation(words), advice="lower --batch")

    _main(work, "worldenv-distill", arguments)


def convert(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-convert SOURCE TARGET [options]`."""

    def work(words: Sequence[str], command: str) -> dict:
        from worldenv.commands import convert as module

        return module.convert(module.parsed(words))

    _main(work, "worldenv-convert", arguments)


def collect(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-collect SUITE [options]`."""

    def work(words: Sequence[str], command: str) -> dict:
        from worldenv.commands import collect as module

        return module.collect(module.parsed(words))

    _main(work, "worldenv-collect", arguments)


def export(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-export FOLDER [options]`."""

    def work(words: Sequence[str], command: str) -> dict:
        from worldenv.commands import export as module

        return module.run(module.parsed(words))

    _main(work, "worldenv-export", arguments)


def info(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-info [PRESET] [--json]`."""
    try:
        _check_place()
        from worldenv.commands.info import main
    except (UserError, ImportError) as error:
        _end(f"worldenv-info: {_in_one_line(error)}", 2)
    main(arguments)


def _on_ranks(what: str, words: Sequence[str], command: str) -> dict | None:
    """Do a job in this process, in the ranks that it belongs to, or in those that the words ask for."""
    if os.environ.get("WORLD_SIZE", "1") != "1":
        os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")  # warnings with stacks about ranks that are gone
    from worldenv.commands import job, options
    from worldenv.launch.join import joined
    from worldenv.launch.ray_rank import is_worker
    from worldenv.launch.start import start

    parse, run = {"train": (options.training, job.train), "eval": (options.evaluation, job.evaluate)}[what]
    with joined(f"worldenv-{what}") as ranks:
        config = parse(words)
        if config.launch.ray.workers and not is_worker():
            raise SystemExit(_on_ray(what, words, config))
        if config.launch.count > 1 and ranks.count == 1:
            raise SystemExit(start([what, *words], config.launch))
        result = _with_memory(run, config, command, ranks)
        return result if ranks.first else None


def _on_ray(what: str, words: Sequence[str], config: Any) -> int:
    from worldenv.evaluation.videos import file_name
    from worldenv.launch import on_ray, ray_rank
    from worldenv.records.run_folder import default_run_path

    command, name = {"train": (train, file_name(str(config.suite))), "eval": (evaluate, "eval")}[what]
    run = config.run or default_run_path(name)  # fixed before the ranks start: ranks that Ray starts again continue it
    words = words if config.run else [*words, "--run", str(run)]
    work = ray_rank.Work(command, f"worldenv-{what}", words, run.absolute())
    return on_ray.start(work, config.launch.ray, config.device or "cpu")


def _with_memory(run: Callable[..., dict], config: Any, *more: Any, advice: str = LESS_MEMORY) -> dict:
    from worldenv.rollout.memory import keep_freed_memory, out_of_memory_says

    keep_freed_memory()
    with out_of_memory_says(advice):
        return run(config, *more)


def _main(work: Callable[[Sequence[str], str], dict | None], program: str, arguments: Sequence[str] | None) -> None:
    words = list(sys.argv[1:] if arguments is None else arguments)
    logging.getLogger("matplotlib").setLevel(logging.ERROR)  # it warns where it cannot write to the home folder
    with patient_streams(), _signals_kept() as came:
        try:
            _check_place()
            result = work(words, " ".join([program, *words]))
        except KeyboardInterrupt as stop:
            _end_interrupted(program, stop)
        except Exception as error:
            is_told = isinstance(error, UserError | Warning)  # a warning where PYTHONWARNINGS makes it an error
            is_of_system = isinstance(error, OSError) and error.errno is not None
            if came and not (is_told or is_of_system):  # a library's import swallowed the signal, and is incomplete
                _end_interrupted(program, came[-1])
            if is_told or isinstance(error, ImportError):
                _end(f"{program}: {_in_one_line(error)}", 2)
            if not is_of_system:
                raise
            place = "" if error.filename is None else f"{error.filename}: "
            _end(f"{program}: {_in_one_line(f'{place}{error.strerror}')}", 1)
        else:
            if result is not None and (problem := print_result(json.dumps(result, allow_nan=False))):
                _end(f"{program}: {not_printed(problem, result.get('run'))}", 1)


def _check_place() -> None:
    try:
        os.getcwd()
    except OSError as error:  # torch would not start
        raise UserError(
            "the working directory was deleted, or you may not read it; change to another folder"
        ) from error


def _advice(program: str, stop: KeyboardInterrupt) -> str:
    kept = getattr(stop, "__notes__", None)
    if kept and program == "worldenv-train":
        return f"continue with: {program} --resume --run {kept[0]}"
    if program in ("worldenv-reflector", "worldenv-distill"):
        return "continue with the same options and --resume"
    return "run it again" + ", and it goes on" * (program == "worldenv-collect")


def _in_one_line(message: object) -> str:
    # File names may hold line breaks, NumPy explains in paragraphs, and strangers' files commands of a terminal.
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in " ".join(str(message).split()))


def _end_interrupted(program: str, stop: KeyboardInterrupt) -> None:
    how = "terminated" if isinstance(stop, Terminated) else "interrupted"
    _end(f"\n{program}: {how}; {_advice(program, stop)}", exit_code(stop))


def _end(line: str, code: int) -> None:
    print(line, file=sys.stderr)
    raise SystemExit(code) from None


@contextmanager
def _signals_kept() -> Iterator[list[KeyboardInterrupt]]:
    """Inside, SIGTERM raises Terminated, unless the caller handles it. Yields the exceptions raised so far."""
    came: list[KeyboardInterrupt] = []

    def stop(number: int, _: object) -> None:
        came.append(Terminated() if number == signal.SIGTERM else KeyboardInterrupt())
        raise came[-1]

    def stop_again(ignored: Any) -> None:
        """Send the signal again if it arrived in a destructor or the like, whose exceptions Python ignores."""
        if isinstance(ignored.exc_value, KeyboardInterrupt):
            number = signal.SIGTERM if isinstance(ignored.exc_value, Terminated) else signal.SIGINT
            threading.Timer(SOON_S, signal.pthread_kill, [threading.main_thread().ident, number]).start()
        else:
            hook(ignored)

    is_ours = threading.current_thread() is threading.main_thread()
    if not is_ours or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield came
        return
    hook = sys.unraisablehook
    sys.unraisablehook = stop_again
    usual = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    ours = {number: handler for number, handler in usual.items() if signal.getsignal(number) is handler}
    for number in ours:
        signal.signal(number, stop)
    try:
        yield came
    finally:
        for number, handler in ours.items():
            signal.signal(number, handler)
        sys.unraisablehook = hook
