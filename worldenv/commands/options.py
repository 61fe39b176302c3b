"""From the words of a command line to the configuration of a run."""

import io
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, TypeVar

import tyro

from worldenv.commands.distill import Distillation
from worldenv.commands.saved import check_weights, resolved, saved_config
from worldenv.config import PARTS, EvaluateConfig, TrainConfig, presets
from worldenv.errors import UserError, nearest
from worldenv.fields import FieldError, shown
from worldenv.records.run_folder import RunFolder
from worldenv.training.config import SCRATCH_PRESETS, RefreshConfig, ScratchConfig
from worldenv.training.train_vlm import VlmTraining

TRAIN_HELP = """Improve a vision-language-action policy by reinforcement learning inside a learned world model.

Start with:  worldenv-train tabletop            (minutes on two CPU cores)
             worldenv-train tabletop-quick      (15 seconds, to see that everything works)
Go on with:  worldenv-train --resume --run RUN  (settings are those of the run; --rl.iterations may be more)
"""
EVALUATE_HELP = """Measure a policy in the true environment and in imagination, on held-out start states.

With --models RUN every setting is the run's own unless it is given, so its last measurement comes out again.
"""
REFLECTOR_HELP = """Train a released vision-language model to judge.

The recordings must say for every step whether the task is done.

Then:  worldenv-train tabletop --reflector vlm:RUN
"""
DISTILL_HELP = """Train a student: a copy of a released world model that needs only one or a few denoising steps.

Then:  worldenv-train ... --world KIND:RUN/world
"""
WHERE = re.compile(r"Error parsing (?:__tyro-dummy-inner__\.)?([a-z][\w.-]*):")  # in what tyro prints
LONGEST_PROBLEM = 200  # characters; it may quote a number of thousands of digits
PROBLEM = re.compile(
    "(?:Value error|Invalid choice|Missing argument) (?:Error parsing )?(.*?)"
    " (?:Got errors:|Argument helptext:|For full helptext)"
)
Config = TypeVar("Config", TrainConfig, EvaluateConfig)


@dataclass(frozen=True)
class _Short(TrainConfig):
    """Without the many options of the stages that make the models, or train them again."""

    refresh: Annotated[RefreshConfig, tyro.conf.Suppress] = field(default_factory=RefreshConfig)
    scratch: Annotated[ScratchConfig, tyro.conf.Suppress] = field(default_factory=ScratchConfig)


def training(words: Sequence[str]) -> TrainConfig:
    """The configuration that `worldenv-train` is given. Raises UserError, or SystemExit at --help and bad options."""
    given, words = _given(words), list(words)
    chosen = presets()
    if words and not words[0].startswith("-") and words[0] not in chosen:
        raise UserError(f"unknown preset {words[0]!r}{nearest(words[0], chosen)}")
    if words and words[0].startswith("--") and not given.keys() & {"resume", "help"}:
        raise UserError(f"the first word is {words[0]!r:.50}; it should be a preset: {', '.join(chosen)}")
    makes_models = any(name.startswith(("from-scratch", "scratch", "rounds", "refresh")) for name in given)
    if "resume" not in given:
        if not makes_models:
            chosen = {name: (about, _Short(**vars(config))) for name, (about, config) in chosen.items()}
        parsed = _parsed(
            lambda: tyro.extras.overridable_config_cli(
                chosen, args=words, prog="worldenv-train", description=TRAIN_HELP
            )
        )
        config = TrainConfig(**vars(parsed))
        _check_preset(words[0], config)
        return config
    if "run" not in given:
        raise UserError("--resume needs --run: the folder of the run to continue")
    base = _saved(Path(given["run"]), given)
    shown = TrainConfig if base.from_scratch or base.rounds > 1 or makes_models else _Short
    words = words[1:] if words[0] in chosen else words  # what the run used counts, and no preset
    return TrainConfig(**vars(_parsed(lambda: _cli(shown, shown(**vars(base)), words, "worldenv-train", TRAIN_HELP))))


def _check_preset(preset: str, config: TrainConfig) -> None:
    """Raise UserError if the models of a suite are to be made with the settings of another suite's preset."""
    own = presets()[preset][1].suite
    if config.from_scratch and SCRATCH_PRESETS.get(own) != (wanted := SCRATCH_PRESETS[config.suite]):
        raise UserError(
            f"the preset {preset} has settings for the suite {own}, not for making the models of {config.suite}: take "
            f"`worldenv-train {wanted} --from-scratch --suite {config.suite}`"
        )


def _saved(run: Path, given: dict[str, str]) -> TrainConfig:
    run = _parsed(lambda: TrainConfig(run=run)).run  # checks the path, and finds ~
    folder = RunFolder(run)
    device = "cpu" if "device" in given else folder.config.get("device", "cpu")
    config = saved_config(folder, device=device)
    if "eval.weights" not in given:
        check_weights(folder, config)
    return replace(config, run=run, resume=True)


def evaluation(words: Sequence[str]) -> EvaluateConfig:
    """The configuration that `worldenv-eval` is given; as `training`."""
    given = _given(words)
    known = {name: given[name] for name in ("models", *PARTS, "precision", "device") if name in given}
    base = _parsed(lambda: resolved(EvaluateConfig(**known), has_weights="eval.weights" in given))
    return _parsed(lambda: _cli(EvaluateConfig, base, words, "worldenv-eval", EVALUATE_HELP))


def reflector(words: Sequence[str]) -> VlmTraining:
    """The configuration that `worldenv-reflector` is given; as `training`."""
    _given(words)  # no empty words
    flat = (tyro.conf.OmitArgPrefixes,)  # --mode for --ask.mode, --steps for --schedule.steps
    return _parsed(
        lambda: tyro.cli(VlmTraining, args=words, prog="worldenv-reflector", description=REFLECTOR_HELP, config=flat)
    )


def distillation(words: Sequence[str]) -> Distillation:
    """The configuration that `worldenv-distill` is given; as `training`."""
    _given(words)  # no empty words
    flat = (tyro.conf.OmitArgPrefixes,)  # --batch for --schedule.batch
    return _parsed(
        lambda: tyro.cli(Distillation, args=words, prog="worldenv-distill", description=DISTILL_HELP, config=flat)
    )


def _cli(kind: type, default: Any, words: Sequence[str], program: str, about: str) -> Any:
    flat = (tyro.conf.AvoidSubcommands,)  # engine and eval are options, though they may be None
    return tyro.cli(kind, default=default, args=words, prog=program, description=about, config=flat)


def _given(words: Sequence[str]) -> dict[str, str]:
    """Option -> the word after it. Raises UserError for a word that is empty: an unset variable of a script."""
    given, before = {}, "the first word"
    for word, after in zip(words, [*words, ""][1:], strict=True):
        name, equals, value = word.partition("=")
        if not word or (equals and not value and name.startswith("--")):
            raise UserError(f"{shown(name) if equals else before} is empty; give it a value, or leave it out")
        before = shown(word)
        if name.startswith("--"):
            given[name[2:].replace("_", "-")] = value if equals else after
    return given


def _parsed(parse: Callable[[], Config]) -> Config:
    # When a configuration raises, tyro prints the error in a box with its own inner types, and exits.
    said = io.StringIO()
    try:
        with redirect_stderr(said):
            return parse()
    except FieldError as error:
        raise UserError(_as_option(error, "")) from None
    except SystemExit as end:
        cause: BaseException | None = end
        while cause is not None and not isinstance(cause, UserError):
            cause = cause.__cause__ or cause.__context__
        if isinstance(cause, FieldError):
            raise UserError(_as_option(cause, said.getvalue())) from None
        if cause is not None:
            raise cause from None
        if problem := PROBLEM.search(_unboxed(said.getvalue())):
            raise UserError(problem[1][:LONGEST_PROBLEM]) from None
        sys.stderr.write(said.getvalue())
        raise


def _unboxed(box: str) -> str:
    return " ".join(re.sub("[│─╭╮╰╯]|-{9,}", " ", box).split())


def _as_option(error: FieldError, box: str) -> str:
    """The message with the name of the option for that of the field; tyro says in its box where the field is."""
    place = WHERE.search(_unboxed(box))
    field, _, rest = str(error).partition(" ")
    return f"--{f'{place[1]}.{field}' if place else field} ".replace("_", "-") + rest
