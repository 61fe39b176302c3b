"""How the weights of the embedded default are made: the fields of `worldenv-train --scratch.*`."""

from dataclasses import dataclass, fields

from worldenv.errors import UserError
from worldenv.training.fit import Schedule
from worldenv.worlds.causal.network import CausalConfig
from worldenv.worlds.levels import check_levels


@dataclass(frozen=True)
class ScratchConfig:
    """How the weights of the default are made (`--from-scratch`): one entry a stage, in order."""

    pretraining_episodes: int = 4000
    action_episodes: int = 75  # of them have actions
    base: Schedule = Schedule(steps=4500, batch=64, learning_rate=1.5e-3)
    demonstrations: int = 5  # per task
    finetune: Schedule = Schedule(steps=300, batch=64, learning_rate=2e-4)
    adapt: Schedule = Schedule(steps=1600, batch=64, learning_rate=5e-4)  # to imagined frames
    exploration: int = 150  # episodes per task
    perturb: float = 2.0  # largest scale of the Laplace noise of exploration, 1 = the policy's own
    again: int = 150  # episodes per task that act out explored successes again, a little beside
    again_noise: float = 0.15  # largest scale of their Laplace noise, in units of the action
    teacher_pretraining: Schedule = Schedule(steps=600, batch=32, learning_rate=1.2e-3, weight_decay=1e-3)
    teacher: Schedule = Schedule(steps=5000, batch=16, learning_rate=1e-3, weight_decay=1e-3)
    student: Schedule = Schedule(steps=1800, batch=8, learning_rate=4e-4, weight_decay=1e-3)
    unroll: int = 5  # chunks that the student imagines in a row while it learns
    causal: CausalConfig = CausalConfig()  # sizes of the causal world model
    causal_teacher: Schedule = Schedule(steps=30_000, batch=64, learning_rate=5e-4, weight_decay=1e-3)
    causal_student: Schedule = Schedule(steps=5000, batch=32, learning_rate=1e-4, weight_decay=1e-3)
    causal_chunks: int = 4  # chunks in a row that the causal network is trained on
    causal_levels: tuple[float, ...] = (1.0, 0.5)  # noise levels of the distilled causal network: one or two passes
    head: Schedule = Schedule(steps=2000, batch=64, learning_rate=1e-3)
    imagined_share: float = (
        0.5  # of the episodes are also shown to policy and reflector as the world model imagines them
    )
    extra_data: bool = True  # False: world model and reflector see the demonstrations only (the paper's ablation)

    def __post_init__(self) -> None:
        if not 1 <= self.action_episodes <= self.pretraining_episodes:
            raise UserError(
                f"action_episodes is {self.action_episodes}; it must lie between 1 and pretraining_episodes, "
                f"{self.pretraining_episodes}"
            )
        if not 0 < self.imagined_share <= 1:
            raise UserError(f"imagined_share is {self.imagined_share}; it must lie between 0 (not included) and 1")
        if min(self.demonstrations, self.exploration, self.again, self.unroll, self.causal_chunks) < 1:
            raise UserError(f"demonstrations, exploration, again, unroll and causal_chunks must be positive: {self}")

        check_levels(self.causal_levels)

    def describe(self) -> str:
        """For a model card: what differs from the default."""
        pairs = ((f.name, getattr(self, f.name)) for f in fields(self))
        changed = [f"{name}={value}" for name, value in pairs if value != getattr(ScratchConfig, name)]
        return ", ".join(changed) or "the default"


def tiny_scratch() -> ScratchConfig:
    """Every stage with few episodes and steps: to see that everything works."""
    tiny = Schedule(steps=4, batch=8, learning_rate=1e-3)
    return ScratchConfig(
        pretraining_episodes=8,
        action_episodes=8,
        base=tiny,
        demonstrations=1,
        finetune=tiny,
        adapt=tiny,
        exploration=2,
        again=1,
        teacher_pretraining=tiny,
        teacher=tiny,
        student=tiny,
        causal=CausalConfig(width=64, layers=2, heads=2, key_heads=1),
        causal_teacher=tiny,
        causal_student=tiny,
        causal_chunks=2,
        head=tiny,
    )
