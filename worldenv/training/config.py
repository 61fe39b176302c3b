"""How the weights of the embedded default are made: the fields of `worldenv-train --scratch.*`."""

from dataclasses import dataclass, field, fields, replace

from worldenv.fields import ADDED, COUNT, FieldError, Within, check_fields
from worldenv.policy.small import SmallPolicyConfig
from worldenv.suites.libero.tasks import SMALL as LIBERO
from worldenv.suites.tabletop.physics import HORIZON
from worldenv.training.fit import Schedule
from worldenv.worlds.causal.network import CausalConfig
from worldenv.worlds.composer.network import ComposerConfig
from worldenv.worlds.levels import check_levels

MOST_EPISODES = 100_000  # of a kind, or of a kind and task; the numbers of their start states are that far apart
MOST_STILLS = 100_000  # 1.2 GB in memory
SCRATCH_WORLDS = ("composer", "causal")  # the world models that `--from-scratch` can make
SCRATCH_PRESETS = {  # for each suite whose models it can make, the preset with this suite's settings
    "tabletop": "tabletop",
    "metaworld": "metaworld",
    **dict.fromkeys(LIBERO, "libero-small"),
}
STILLS = tuple(name for name, (benchmark, _) in LIBERO.items() if benchmark == "libero_object")  # suites that have any
TOKENIZER_FRAMES = 512  # that the tokenizer of the causal world model is fitted to


@dataclass(frozen=True)
class ScratchConfig:
    """How the weights of the default are made (`--from-scratch`): one entry a stage, in order."""

    pretraining_episodes: int = 4000
    action_episodes: int = 75  # of them have actions
    # Single pictures that the base also learns from, with the things put somewhere else; many have the actions that the
    # expert would take next. Only for LIBERO Object.
    stills: int = field(default=0, metadata=ADDED)
    base: Schedule = Schedule(steps=4500, batch=64, learning_rate=1.5e-3)
    demonstrations: int = 5  # per task
    finetune: Schedule = Schedule(steps=300, batch=64, learning_rate=2e-4)
    # Whether each step of fine-tuning takes a batch of the pretraining data beside one of the demonstrations.
    cotrain: bool = field(default=False, metadata=ADDED)
    adapt: Schedule = Schedule(steps=1600, batch=64, learning_rate=5e-4)  # to imagined frames
    exploration: int = 150  # episodes per task
    perturb: float = 2.0  # largest scale of the Laplace noise of exploration, 1 = the policy's own
    again: int = 150  # episodes per task that carry out the actions of explored successes again, with a little noise
    again_noise: float = 0.15  # largest scale of their Laplace noise, in units of the action
    teacher_pretraining: Schedule = Schedule(steps=600, batch=32, learning_rate=1.2e-3, weight_decay=1e-3)
    teacher: Schedule = Schedule(steps=5000, batch=16, learning_rate=1e-3, weight_decay=1e-3)
    student: Schedule = Schedule(steps=1800, batch=8, learning_rate=4e-4, weight_decay=1e-3)
    contact: Schedule = Schedule(steps=12_000, batch=128, learning_rate=2e-3, weight_decay=1e-2)
    beside: int = 6  # at most so many times a recorded chunk is tried again after an offset of the gripper
    unroll: int = 5  # chunks that the student imagines in a row while it learns
    causal: CausalConfig = CausalConfig()  # sizes of the causal world model
    causal_teacher: Schedule = Schedule(steps=30_000, batch=64, learning_rate=5e-4, weight_decay=1e-3)
    causal_student: Schedule = Schedule(steps=5000, batch=32, learning_rate=1e-4, weight_decay=1e-3)
    causal_chunks: int = 4  # chunks in a row that the causal network is trained on
    causal_levels: tuple[float, ...] = (1.0, 0.5)  # noise levels of the distilled causal network: one or two passes
    head: Schedule = Schedule(steps=2000, batch=64, learning_rate=1e-3)
    # Whether the encoder of the reflector learns, too, together with the head, once the head has learned alone.
    train_encoder: bool = field(default=False, metadata=ADDED)
    encoder: Schedule = field(default=Schedule(steps=800, batch=24, learning_rate=5e-4), metadata=ADDED)
    imagined_share: float = (
        0.5  # of the episodes are also shown to policy and reflector as the world model imagines them
    )
    extra_data: bool = True  # False: world model and reflector see the demonstrations only (the paper's ablation)

    def __post_init__(self) -> None:
        episodes = Within(1, MOST_EPISODES)
        check_fields(
            self,
            pretraining_episodes=episodes,
            action_episodes=episodes,
            stills=Within(0, MOST_STILLS),
            demonstrations=episodes,
            exploration=episodes,
            perturb=Within(0, 100),
            again=episodes,
            again_noise=Within(0, 100),
            beside=Within(0, 100),
            unroll=Within(1, HORIZON // ComposerConfig.chunk),
            causal_chunks=COUNT,
            causal_levels=Within(0, 1, open_low=True),
            imagined_share=Within(0, 1, open_low=True),
        )
        check_levels(self.causal_levels)
        if self.action_episodes > self.pretraining_episodes:
            raise FieldError(
                f"action_episodes is {self.action_episodes}; it should not exceed pretraining_episodes, "
                f"{self.pretraining_episodes}"
            )
        if self.adapt.batch < 2:
            raise FieldError("adapt is of batch 1; it should be at least 2: half of it are true frames, half imagined")
        self._check_causal()

    def _check_causal(self) -> None:
        """Raise FieldError for settings with which training the causal world model would fail only after hours."""
        size, chunk = self.causal.image_size, self.causal.chunk
        if size != CausalConfig.image_size:
            raise FieldError(
                f"causal is of image_size {size}; the pictures of the suite are of {CausalConfig.image_size}"
            )
        if SmallPolicyConfig.chunk % chunk:
            raise FieldError(
                f"causal is of chunk {chunk}; the policy acts in chunks of {SmallPolicyConfig.chunk}, which should be "
                "a multiple of it"
            )
        if self.causal.channels > TOKENIZER_FRAMES * self.causal.tokens:
            raise FieldError(
                f"causal is of {self.causal.channels} channels; the tokenizer is fitted to only "
                f"{TOKENIZER_FRAMES * self.causal.tokens} patches: take smaller patches or fewer channels"
            )
        if self.causal_chunks * chunk > HORIZON:
            raise FieldError(f"causal_chunks is {self.causal_chunks}; an episode has {HORIZON // chunk} chunks")

    def describe(self) -> str:
        """For a model card: what differs from the default."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        changed = [f"{name}={value}" for name, value in pairs if value != getattr(ScratchConfig, name)]
        return ", ".join(changed) or "the default"


@dataclass(frozen=True)
class RefreshConfig:
    """What world model and reflector learn between two rounds of practice: the fields of `worldenv-train --refresh.*`.

    The rates are a tenth of those with which the models were made.
    """

    episodes: int = 10  # true episodes per task, recorded with the policy as it is then
    contact: Schedule = Schedule(steps=400, batch=128, learning_rate=2e-4, weight_decay=1e-2)
    student: Schedule = Schedule(steps=100, batch=8, learning_rate=4e-5, weight_decay=1e-3)
    head: Schedule = Schedule(steps=300, batch=64, learning_rate=1e-4)

    def __post_init__(self) -> None:
        check_fields(self, episodes=Within(1, MOST_EPISODES))


def command_for(suite: str) -> str:
    """The command with a suite's preset, for a model card."""
    preset = SCRATCH_PRESETS[suite]
    return f"worldenv-train {preset}" + ("" if preset == suite else f" --suite {suite}")


def round_name(number: int) -> str:
    """The folder of the models that a round of practice begins with, and of the true episodes recorded before it."""
    return f"round-{number}"


TINY = Schedule(steps=4, batch=8, learning_rate=1e-3)


def tiny_refresh() -> RefreshConfig:
    """As `tiny_scratch`."""
    return RefreshConfig(episodes=1, contact=TINY, student=TINY, head=TINY)


def tiny_scratch() -> ScratchConfig:
    """Every stage with few episodes and steps: to see that everything works."""
    return ScratchConfig(
        pretraining_episodes=8,
        action_episodes=8,
        base=TINY,
        demonstrations=1,
        finetune=TINY,
        adapt=TINY,
        exploration=2,
        again=1,
        teacher_pretraining=TINY,
        teacher=TINY,
        student=TINY,
        contact=TINY,
        beside=1,
        causal=CausalConfig(width=64, layers=2, heads=2, key_heads=1),
        causal_teacher=TINY,
        causal_student=TINY,
        causal_chunks=2,
        head=TINY,
        encoder=TINY,
    )


def metaworld_scratch() -> ScratchConfig:
    """All models of the suite metaworld in a quarter of an hour on two cores, with a small causal world model."""
    return ScratchConfig(
        pretraining_episodes=120,
        action_episodes=120,
        base=Schedule(steps=600, batch=64, learning_rate=1.5e-3),
        finetune=Schedule(steps=300, batch=64, learning_rate=4e-4),
        adapt=Schedule(steps=300, batch=64, learning_rate=5e-4),
        exploration=50,
        again=30,
        causal=CausalConfig(patch=16, channels=96, width=128),
        causal_teacher=Schedule(steps=1000, batch=16, learning_rate=1e-3, weight_decay=1e-3),
        causal_student=Schedule(steps=100, batch=8, learning_rate=2e-4, weight_decay=1e-3),
        causal_levels=(1.0,),
        head=Schedule(steps=1000, batch=64, learning_rate=1e-3),
    )


def tiny_metaworld_scratch() -> ScratchConfig:
    """As `tiny_scratch`, with fewer episodes: pictures take longer than on the tabletop."""
    causal = CausalConfig(patch=16, channels=16, width=64, layers=2, heads=2, key_heads=1)
    few = {"pretraining_episodes": 4, "action_episodes": 4, "exploration": 1}
    return replace(tiny_scratch(), causal=causal, causal_levels=(1.0,), **few)


def libero_scratch() -> ScratchConfig:
    """All models of shuffled LIBERO Object in hours on two cores; benchmarks/LOG.md has the times.

    `pretraining_episodes` says how good the base is: with few, practice has something to improve.
    """
    return ScratchConfig(
        pretraining_episodes=240,
        action_episodes=240,
        stills=16_000,
        base=Schedule(steps=6500, batch=64, learning_rate=1e-3),
        finetune=Schedule(steps=800, batch=64, learning_rate=4e-4),
        cotrain=True,
        adapt=Schedule(steps=1000, batch=64, learning_rate=5e-4),
        exploration=50,
        again=30,
        contact=Schedule(steps=5000, batch=128, learning_rate=2e-3, weight_decay=1e-2),
        causal=CausalConfig(width=192, window=4),
        causal_teacher=Schedule(steps=12_000, batch=8, learning_rate=7e-4, weight_decay=1e-3),
        causal_student=Schedule(steps=600, batch=8, learning_rate=2e-4, weight_decay=1e-3),
        causal_chunks=3,
        causal_levels=(1.0,),
        head=Schedule(steps=2000, batch=64, learning_rate=1e-3),
        train_encoder=True,
        imagined_share=0.3,
    )


def tiny_libero_scratch() -> ScratchConfig:
    """As `tiny_scratch`, but with more exploration, because its suite has one task, and one episode of pretraining."""
    causal = CausalConfig(patch=16, channels=16, width=64, layers=2, heads=2, key_heads=1)
    few = {"pretraining_episodes": 1, "action_episodes": 1, "stills": 2, "exploration": 10, "again": 8, "unroll": 2}
    return replace(tiny_scratch(), causal=causal, causal_levels=(1.0,), cotrain=True, train_encoder=True, **few)
