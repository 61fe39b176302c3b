"""`worldenv-train` and `worldenv-eval`: parse, run, and end stdout with one JSON line."""

import io
import json
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from worldenv import job
from worldenv.config import EvaluateConfig, TrainConfig, presets
from worldenv.errors import UserError, nearest
from worldenv.rollout.memory import keep_freed_memory
from worldenv.training.config import ScratchConfig

TRAIN_HELP = """Improve a vision-language-action policy by reinforcement learning inside a learned world model.

Start with:  worldenv-train tabletop            (3 to 5 minutes on two CPU cores)
             worldenv-train tabletop-quick      (15 seconds, to see that everything works)
"""


@dataclass(frozen=True)
class _Short(TrainConfig):
    """Without the many options of the stages that make the models."""

    scratch: Annotated[ScratchConfig, tyro.conf.Suppress] = field(default_factory=ScratchConfig)


def train(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-train PRESET [options]`."""
    words = list(sys.argv[1:] if arguments is None else arguments)

    def parse() -> TrainConfig:
        chosen = presets()
        if words and not words[0].startswith("-") and words[0] not in chosen:
            raise UserError(f"unknown preset {words[0]!r}{nearest(words[0], chosen)}")
        if not any(word.startswith(("--from-scratch", "--scratch")) for word in words):
            chosen = {name: (about, _Short(**vars(config))) for name, (about, config) in chosen.items()}
        config = tyro.extras.overridable_config_cli(chosen, args=words, prog="worldenv-train", description=TRAIN_HELP)
        return TrainConfig(**vars(config))

    _main(parse, "worldenv-train", words)


def evaluate(arguments: Sequence[str] | None = None) -> None:
    """Entry point of `worldenv-eval [options]`."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    about = "Measure a policy in the true environment and in imagination, on held-out start states."
    _main(lambda: tyro.cli(EvaluateConfig, args=words, prog="worldenv-eval", description=about), "worldenv-eval", words)


def _refused_in_one_line(parse: Callable[[], TrainConfig | EvaluateConfig]) -> TrainConfig | EvaluateConfig:
    # When a configuration raises, tyro prints the error in a box with its own inner types, and exits.
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse()
    except SystemExit as end:
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if cause is not None:
            raise cause from None
        sys.stderr.write(said.getvalue())
        raise


def _main(parse: Callable[[], TrainConfig | EvaluateConfig], program: str, words: Sequence[str]) -> None:
    try:
        config = _refused_in_one_line(parse)
        keep_freed_memory()
        run = job.train if isinstance(config, TrainConfig) else job.evaluate
        result = run(config, " ".join([program, *words]))
    except UserError as error:
        print(f"{program}: {error}", file=sys.stderr)
        raise SystemExit(2) from None
    except KeyboardInterrupt:
        advice = (
            "continue with --resume and --run, the folder of this run"
            if program == "worldenv-train"
            else "run it again"
        )
        print(f"\n{program}: interrupted; {advice}", file=sys.stderr)
        raise SystemExit(130) from None
    print(json.dumps(result, allow_nan=False))
