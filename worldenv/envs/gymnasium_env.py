"""Imagined episodes as a Gymnasium vector environment, torch tensors in and out: pip install "worldenv[gymnasium]"."""

from typing import Any

import torch
from torch import Tensor

from worldenv.envs.world_model_env import WorldModelEnv, check_env
from worldenv.errors import UserError
from worldenv.rollout.checks import check_seed

try:
    import gymnasium as gym
    from gymnasium.vector import AutoresetMode, VectorEnv
    from gymnasium.vector.utils import batch_space
except ImportError as error:
    raise ImportError(f'{error}; install it: pip install "worldenv[gymnasium]"') from error

if tuple(map(int, gym.__version__.split(".")[:2])) < (1, 4):  # their statistics wrappers ignore SAME_STEP autoreset
    raise UserError(
        f"gymnasium {gym.__version__} counts the lengths and returns of episodes wrongly around WorldModelVectorEnv; "
        'install 1.4 or newer: pip install "worldenv[gymnasium]"'
    )


class WorldModelVectorEnv(VectorEnv):
    """`WorldModelEnv` as a Gymnasium vector environment.

    Autoreset is SAME_STEP: when an episode ends, the next one takes its slot at once. The observation is then the first
    of the new episode. The last observation of the old one is in info["final_obs"] and its info in info["final_info"],
    both batched, at the rows where the mask info["_final_obs"] is set.

    terminated: the reflector stopped the episode. truncated: it reached the horizon, or a number in it was not finite
    (info "broken", reward 0). Every key of info has a mask "_key", as in Gymnasium's own vector environments.

    reset takes the options "starts" (rows of the starts; from now on episodes begin there, in turn) and "reset_mask"
    (bool [E]).
    """

    metadata = {"autoreset_mode": AutoresetMode.SAME_STEP, "torch": True, "render_modes": []}

    def __init__(self, env: WorldModelEnv):
        check_env(env)
        self.env, self.num_envs = env, env.config.envs
        self.single_observation_space = gym.spaces.Dict(
            {name: _box(*env.bounds(name)) for name in ("frames", "proprio", "text")}
        )
        self.single_action_space = _box(*env.bounds("action"))
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Begin all episodes, or those of options["reset_mask"]; with a seed they are numbered from 0 again."""
        self._check_open()
        if options is not None and not isinstance(options, dict):
            raise UserError(f"options is a {type(options).__name__}; it should be a dict")
        if seed is not None:
            check_seed(seed)
        super().reset(seed=seed)
        options = options or {}
        if unknown := set(options) - {"starts", "reset_mask"}:
            raise UserError(f"options has {sorted(unknown)}; it takes starts and reset_mask")
        mask = options.get("reset_mask")
        if seed is not None:
            self.env.seed(seed)
        try:
            observation = self.env.reset(mask, options.get("starts"))
        except UserError:
            self.env.seed(None)  # a refused reset changes nothing
            raise
        return observation, _masked(self.env.info())

    def step(self, actions: Tensor) -> tuple[dict[str, Tensor], Tensor, Tensor, Tensor, dict[str, Any]]:
        """A chunk of k actions for every episode, [E, k, A]: observation, reward, terminated, truncated, info."""
        self._check_open()
        observation, reward, terminated, truncated = self.env.step(actions)
        done, final = terminated | truncated, {}
        if done.any():
            final = {"final_obs": observation, "final_info": _masked(self.env.info(), done)}
            observation = self.env.reset(done)
        return observation, reward, terminated, truncated, _masked(self.env.info()) | _masked(final, done)

    def _check_open(self) -> None:
        if self.closed:
            raise UserError("the environment is closed; make another one")


def _box(low: Tensor, high: Tensor) -> gym.spaces.Box:
    try:
        low, high = low.cpu().numpy(), high.cpu().numpy()
    except TypeError as error:
        raise UserError(f"NumPy, and so Gymnasium's spaces, has no {low.dtype}; take another frame_dtype") from error
    return gym.spaces.Box(low, high, dtype=low.dtype.type)


def _masked(info: dict[str, Any], mask: Tensor | None = None) -> dict[str, Any]:
    """The info with a mask "_key" for every key: the given one, or one that is set everywhere."""
    masks = {}
    for key, value in info.items():
        masks["_" + key] = torch.ones_like(value, dtype=torch.bool) if mask is None else mask.clone()
    return info | masks
