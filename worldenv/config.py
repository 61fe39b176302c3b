"""What a run is: frozen dataclasses composed of the stages' own, and named presets with their budget and result."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig
from worldenv.fields import FieldError, Within, check_fields
from worldenv.launch.config import LaunchConfig
from worldenv.nn.int8 import check_precision
from worldenv.rl.config import PostTrainConfig
from worldenv.rollout.engine import EngineConfig
from worldenv.training.config import (
    SCRATCH_PRESETS,
    SCRATCH_WORLDS,
    STILLS,
    RefreshConfig,
    ScratchConfig,
    libero_scratch,
    metaworld_scratch,
    tiny_libero_scratch,
    tiny_metaworld_scratch,
    tiny_refresh,
    tiny_scratch,
)

PARTS = ("suite", "policy", "world", "reflector")
# What rounds can train again, of the suites whose models can be made.
REFRESHED = {"suite": (*SCRATCH_PRESETS,), "policy": ("small",), "world": ("composer",), "reflector": ("small",)}
FOLDER = "FOLDER"  # in a preset: the user is to name the folder of a released model
# Kinds of released models: a part may be named KIND:FOLDER.
RELEASED = ("openvla-oft", "pi0", "smolvla", "rlinf-wan", "svd", "causal-latents", "vlm")
LARGE = {"spatial": "libero_spatial", "object": "libero_object", "goal": "libero_goal", "long": "libero_10"}
PACKAGE = Path(__file__).resolve().parent
MOST_ROUNDS = 1000  # the start states of their true episodes have numbers of 31 bits
SEEDS = {"seed": Within(0, 2**32 - 1), "start_seed": Within(-(2**31), 2**31 - 1)}


@dataclass(frozen=True)
class TrainConfig:
    """Improve a policy inside its world model, and measure it in the true environment before and after."""

    seed: int = 0  # of all randomness
    start_seed: int = 0  # of 32 bits: other held-out start states for the evaluations
    run: Path | None = None  # run folder; default: runs/<suite>-<date>-<time>
    resume: bool = False  # continue the run in --run, with its settings; --rl.iterations may be more than before
    from_scratch: bool = False  # first make all models (tabletop, metaworld, small LIBERO); with --help: the options
    # folder with the models' files; default: the weights in the package; with --from-scratch: base and finetuned only
    models: Path | None = None
    suite: str = "tabletop"  # true environment; as the next three: a name, or module:function of your own (docs/)
    policy: str = "small"  # what acts and is improved; pi0:FOLDER, say: a released policy (docs/your_checkpoint.md)
    world: str = "composer"  # world model: composer (CPU), causal (CPU, GPU); released: rlinf-wan:FOLDER, svd:FOLDER
    reflector: str = "small"  # reward and stop: small, zero-shot (pretrained answer, no head), vlm:FOLDER (docs/vlm.md)
    precision: Literal["auto", "float32", "int8"] = "auto"  # of imagining; auto: int8 if the CPU is fast at it
    device: Literal["cpu", "cuda"] = "cpu"  # where the networks imagine, practise and act
    rl: PostTrainConfig = field(default_factory=PostTrainConfig)
    engine: EngineConfig = field(default_factory=EngineConfig)
    eval: EvalConfig = field(default_factory=EvalConfig)
    rounds: int = 1  # between two rounds of practice, true episodes refresh the models; with --help: how
    refresh: RefreshConfig = field(default_factory=RefreshConfig)
    scratch: ScratchConfig = field(default_factory=ScratchConfig)
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        check_fields(self, rounds=Within(1, MOST_ROUNDS), **SEEDS)
        _check_run(self.run, self.models)
        self._check_rounds()
        if self.resume and self.run is None:
            raise UserError("--resume needs --run: the folder of the run to continue")
        if self.from_scratch and not (self.suite in SCRATCH_PRESETS and self.world in SCRATCH_WORLDS):
            raise UserError(
                f"--from-scratch makes the models of the suites {', '.join(SCRATCH_PRESETS)}, with --world composer or "
                "causal; train your own models yourself and name them with --policy, --world and --reflector"
            )
        if self.from_scratch and self.scratch.stills and self.suite not in STILLS:
            raise UserError(
                f"--scratch.stills is {self.scratch.stills}, and only these suites have stills: {', '.join(STILLS)}; "
                "set it to 0"
            )
        if self.from_scratch and self.world == "composer" and self.device == "cuda":
            raise UserError(
                "the composer has no GPU kernels: train it with --device cpu, or take --world causal (tabletop-causal)"
            )
        _check_device(self.device, self.precision)

    def _check_rounds(self) -> None:
        if self.rounds > self.rl.iterations:
            raise FieldError(
                f"rounds is {self.rounds}; it should not exceed the iterations that the rounds share, "
                f"--rl.iterations {self.rl.iterations}"
            )
        if self.rounds > 1 and self.rl.off_policy:
            raise FieldError(
                f"rounds is {self.rounds}; a round begins with models that were trained further, and with "
                "--rl.off-policy the old ones have already imagined its first iteration: take rounds 1, or leave out "
                "--rl.off-policy"
            )
        other = [f"--{name} {getattr(self, name)}" for name in PARTS if getattr(self, name) not in REFRESHED[name]]
        if self.rounds > 1 and other:
            raise FieldError(
                f"rounds is {self.rounds}; between rounds only these parts can be trained again: policy small, world "
                f"composer, reflector small, of the suites {', '.join(SCRATCH_PRESETS)}; the run has "
                f"{', '.join(other)}: take rounds 1"
            )

    def round_of(self, iteration: int) -> int:
        """The round (from 0) of an iteration (from 0); round r begins at iteration floor(r * iterations / rounds)."""
        return ((iteration + 1) * self.rounds - 1) // self.rl.iterations


def check_given(**names: str) -> None:
    """Raise UserError, in one line with all that lacks, for parts of a preset whose folders the user is to name."""
    lacking = {part: name for part, name in names.items() if is_placeholder(name)}
    if lacking:
        options = " ".join(f"--{part} {name}" for part, name in lacking.items())
        raise UserError(
            f"this preset needs folders that you have downloaded: give {options}, each with its path for {FOLDER} "
            "(docs/your_checkpoint.md says where they come from)"
        )


def is_placeholder(name: object) -> bool:
    """Whether it stands in a preset for a released model whose folder the user is to name: KIND:FOLDER."""
    found = released(name) if isinstance(name, str) else None
    return found is not None and found[1] == FOLDER


def released(name: str) -> tuple[str, str] | None:
    """Kind and folder of a released model, KIND:FOLDER; None for any other name of a part."""
    kind, colon, folder = name.partition(":")
    return (kind, folder) if colon and kind in RELEASED else None


@dataclass(frozen=True)
class EvaluateConfig:
    """Measure a policy in the true environment and in imagination.

    None means what the run used, if `models` is a run, or else the default of worldenv-train.
    """

    models: Path | None = None  # a run folder, or a folder with the models; default: the weights in the package
    run: Path | None = None  # folder for the results; default: runs/eval-<date>-<time>
    suite: str | None = None  # this and all that follows: as in worldenv-train; default: what the run used
    policy: str | None = None
    world: str | None = None
    reflector: str | None = None
    seed: int | None = None
    start_seed: int | None = None  # of 32 bits: fresh held-out start states
    precision: Literal["auto", "float32", "int8"] | None = None
    device: Literal["cpu", "cuda"] | None = None
    engine: EngineConfig | None = None
    eval: EvalConfig | None = None
    launch: LaunchConfig = field(default_factory=LaunchConfig)

    def __post_init__(self) -> None:
        check_fields(self, **SEEDS)
        _check_run(self.run, self.models)
        _check_device(self.device, self.precision)


def _check_run(run: Path | None, models: Path | None) -> None:
    if run is None:
        return
    if run.resolve().is_relative_to(PACKAGE):
        raise FieldError(f"run is {run}, in the folder of the package itself; choose another one")
    if models is not None and run.resolve() == models.resolve():
        raise FieldError(f"run and models are one folder, {run}; the results need a folder of their own")


def _check_device(device: str | None, precision: str | None) -> None:
    if precision is not None:
        check_precision(precision)
    if device == "cuda" and not torch.cuda.is_available():
        raise UserError("--device is cuda, but torch finds no CUDA device; take --device cpu")
    if device == "cuda" and precision == "int8":
        raise UserError("--precision int8 is for the CPU, and --device is cuda; take --precision auto")


def _with_folders() -> dict[str, tuple[str, TrainConfig]]:
    """Presets of released models: whose folders the user names."""
    # N, eps, both rates and the batch are the paper's; iterations: where it stops gaining. Starts, one epoch and no
    # threshold on the signal are ours. Rank 32, eta 0.5 and 32 frames are the defaults of the parts.
    paper = PostTrainConfig(
        iterations=20,
        starts=8,
        siblings=8,
        clip=0.1,
        learning_rate=1e-4,
        head_learning_rate=1e-5,
        warmup=1,
        epochs=1,
        minibatch=4,
        accumulate=1,
        signal=0.0,
    )
    given = {
        "suite": "libero_spatial-official",
        "policy": f"openvla-oft:{FOLDER}",
        "reflector": f"vlm:{FOLDER}",
        "rl": paper,
        "engine": EngineConfig(graphs=False),  # a vision-language model cannot be recorded
        "eval": EvalConfig(episodes=100, imagined=100, quality=10),
    }
    return {
        "paper-libero": (
            "the paper's system on LIBERO: OpenVLA-OFT, a video-diffusion U-Net, a vision-language judge; your folders",
            TrainConfig(world=f"svd:{FOLDER}", **given),
        ),
        "rlinf-wan-libero": (
            "RLinf's world model and one-view policy on LIBERO, our reflector and LOOP; your folders",
            TrainConfig(world=f"rlinf-wan:{FOLDER}", **given),
        ),
        **{
            f"libero-{name}": (
                f"as paper-libero, on {suite}; your folders",
                TrainConfig(world=f"svd:{FOLDER}", **given | {"suite": f"{suite}-official"}),
            )
            for name, suite in LARGE.items()
        },
    }


def _small_libero(quick: PostTrainConfig) -> dict[str, tuple[str, TrainConfig]]:
    """Presets that make all models of some tasks of LIBERO."""
    given = {"world": "composer", "from_scratch": True}
    return {
        "libero-small": (
            "six tasks of LIBERO Object, things shuffled (pip install worldenv[libero,sentences]), all models: hours",
            TrainConfig(
                **given,
                suite="libero_object-shuffled",
                # Many iterations at a low rate: the gradients of practice are noisy (benchmarks/LOG.md, 2026-12-01).
                rl=PostTrainConfig(iterations=300, learning_rate=8e-5, critic=True, needs_hold=True),
                eval=EvalConfig(episodes=204, imagined=102, quality=24),
                scratch=libero_scratch(),
            ),
        ),
        "libero-small-tiny": (
            "one of them with tiny networks and few steps, a minute or two: to see that everything works",
            TrainConfig(
                **given,
                suite="libero_object-tiny",
                rl=quick,
                eval=EvalConfig(episodes=10, imagined=4, quality=2, videos=1),
                refresh=tiny_refresh(),
                scratch=tiny_libero_scratch(),
            ),
        ),
    }


def presets() -> dict[str, tuple[str, TrainConfig]]:
    """Name -> (description, configuration) of `worldenv-train`."""
    quick = {"rl": PostTrainConfig(iterations=2, starts=4, siblings=4), "scratch": tiny_scratch()}
    quick["eval"] = EvalConfig(episodes=60, imagined=20, quality=10, videos=1)
    metaworld = {"suite": "metaworld", "world": "causal", "from_scratch": True}
    return {
        "tabletop": ("the default: ten tasks, the shipped weights", TrainConfig()),
        "tabletop-quick": (
            "15 seconds: two iterations and small evaluations, to see that everything works",
            TrainConfig(**quick, refresh=tiny_refresh()),
        ),
        "tabletop-causal": (
            "all models from scratch, with the causal world model: hours; made for a GPU (--device cuda)",
            TrainConfig(from_scratch=True, world="causal"),
        ),
        "tabletop-causal-tiny": (
            "the same with tiny networks and few steps, a minute or two: to see that everything works",
            TrainConfig(from_scratch=True, world="causal", **quick),
        ),
        "metaworld": (
            "three tasks of Meta-World (pip install worldenv[metaworld]), all models from scratch: 16 minutes",
            TrainConfig(
                **metaworld,
                rl=PostTrainConfig(iterations=24, starts=16),
                eval=EvalConfig(episodes=150, imagined=99, quality=30),
                scratch=metaworld_scratch(),
            ),
        ),
        "metaworld-tiny": (
            "the same with tiny networks and few steps, under a minute: to see that everything works",
            TrainConfig(
                **metaworld,
                rl=quick["rl"],
                eval=EvalConfig(episodes=12, imagined=6, quality=3, videos=1),
                scratch=tiny_metaworld_scratch(),
            ),
        ),
        **_small_libero(quick["rl"]),
        **_with_folders(),
    }
