"""Imagined episodes as a TorchRL environment: pip install "worldenv[torchrl]"."""

import torch
from torch import Tensor

from worldenv.envs.world_model_env import WorldModelEnv, check_env
from worldenv.errors import UserError

try:
    from tensordict import TensorDict, TensorDictBase
    from torchrl.data import Binary, Bounded, Composite, Unbounded
    from torchrl.envs import EnvBase
except ImportError as error:
    raise ImportError(f'{error}; install it: pip install "worldenv[torchrl]"') from error


class TorchRLWorldModelEnv(EnvBase):
    """`WorldModelEnv` as a TorchRL environment, batch size [E].

    Keys: action [E, k, A]; frames, proprio, text; reward, done, terminated, truncated and broken, all [E, 1].
    terminated: the reflector stopped the episode. truncated: it reached the horizon, or a number in it was not finite
    (`broken`, reward 0). New episodes begin where "_reset" is set, as TorchRL's rollouts and collectors do. After
    reset(starts=rows), episodes begin at those rows of the starts, in turn.
    """

    def __init__(self, env: WorldModelEnv):
        check_env(env)
        super().__init__(device=env.device, batch_size=torch.Size([env.config.envs]))
        self.env = env
        flag = Binary(1, shape=(env.config.envs, 1), dtype=torch.bool, device=env.device)
        seen = {name: self._bounded(name) for name in ("frames", "proprio", "text")}
        self.observation_spec = Composite(**seen, broken=flag, shape=self.batch_size, device=env.device)
        self.action_spec = self._bounded("action")
        self.reward_spec = Unbounded((env.config.envs, 1), dtype=torch.float32, device=env.device)
        self.done_spec = Composite(
            done=flag.clone(), terminated=flag.clone(), truncated=flag.clone(), shape=self.batch_size, device=env.device
        )

    def _bounded(self, name: str) -> Bounded:
        low, high = (bound.expand(*self.batch_size, *bound.shape).clone() for bound in self.env.bounds(name))
        return Bounded(low, high, shape=low.shape, dtype=low.dtype, device=self.env.device)

    def _reset(self, tensordict: TensorDictBase | None = None, starts: Tensor | None = None) -> TensorDictBase:
        mask = None if tensordict is None else tensordict.get("_reset", None)
        return self._as_tensordict(self.env.reset(None if mask is None else mask.reshape(len(mask)), starts))

    def _step(self, tensordict: TensorDictBase) -> TensorDictBase:
        going_on = tensordict.get("_step", None)  # TorchRL leaves out ended episodes; those do not change anyway
        if going_on is not None and not (going_on.reshape(-1) | self.env.standing.done).all():
            raise UserError("_step leaves out episodes that have not ended; all episodes are stepped together")
        observation, reward, terminated, truncated = self.env.step(tensordict["action"])
        out = {"reward": reward, "done": terminated | truncated, "terminated": terminated, "truncated": truncated}
        return self._as_tensordict(observation | {name: tensor[:, None] for name, tensor in out.items()})

    def _as_tensordict(self, values: dict[str, Tensor]) -> TensorDictBase:
        broken = self.env.standing.broken[:, None].clone()
        return TensorDict(values | {"broken": broken}, batch_size=self.batch_size, device=self.env.device)

    def _set_seed(self, seed: int | None) -> None:
        if seed is not None:
            self.env.seed(seed)
