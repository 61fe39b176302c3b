"""Any torch module as the policy of the engine: python examples/engine_with_own_policy.py

The module here knows nothing yet, and acts in chunks of two where the shipped policy takes four.
"""

import argparse
import time

import torch
from torch import Tensor, nn

from worldenv.job import make_engine, practice_starts
from worldenv.nn.instruction import WORDS
from worldenv.records.model_files import Models, shipped
from worldenv.rollout.engine import EngineConfig
from worldenv.rollout.memory import keep_freed_memory


class OwnPolicy(nn.Module):
    """Frames [B, 64, 64, 3] uint8, proprio [B, 7], instruction -> mu, beta [B, 2, 7]: a Laplace chunk of two actions.

    The engine hands over the tokens [B, L]; or what `read` makes of them, where there is one: it is called once a
    run, for all starts.
    """

    def __init__(self):
        super().__init__()
        self.see = nn.Sequential(nn.Conv2d(3, 16, 5, 4), nn.ReLU(), nn.Conv2d(16, 16, 5, 4), nn.ReLU(), nn.Flatten())
        self.read = nn.EmbeddingBag(len(WORDS), 16, padding_idx=0)
        self.act = nn.Linear(16 * 3 * 3 + 7 + 16, 2 * 14)

    def forward(self, frame: Tensor, proprio: Tensor, instruction: Tensor) -> tuple[Tensor, Tensor]:
        picture = self.see(frame.permute(0, 3, 1, 2).float() / 255)
        mu, scale = self.act(torch.cat([picture, proprio, instruction], dim=1)).unflatten(1, (2, 14)).split(7, 2)
        return mu.tanh(), scale.tanh() - 2


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("--starts", type=int, default=30, help="start states, the tasks in turn")
    parser.add_argument("--siblings", type=int, default=4, help="episodes of each")
    args = parser.parse_args()
    keep_freed_memory()
    torch.manual_seed(0)
    models, starts = Models.load(shipped()), practice_starts(0).pick(torch.arange(args.starts))
    shipped_one = make_engine(models, EngineConfig(horizon=10))  # chunks
    own = make_engine(models, EngineConfig(horizon=20), OwnPolicy(), chunk=2)
    for name, engine in (("the shipped policy", shipped_one), ("a policy of your own", own)):
        began = time.perf_counter()
        rollouts = engine.run(starts, args.siblings, seed=0)
        seconds = time.perf_counter() - began
        print(
            f"{name}: chunks of {engine.chunk}, {len(rollouts.chunks)} episodes in {seconds:.1f} s, "
            f"mean reward {rollouts.final_reward().mean():.3f}, "
            f"stopped as done {100 * rollouts.stopped.float().mean():.0f} %"
        )


if __name__ == "__main__":
    main()
