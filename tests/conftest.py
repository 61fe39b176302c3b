"""Tiny seeded models that many tests share; every size is explicit, so that tuning the defaults moves no test."""

import copy
import importlib.util
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch

from worldenv.assemble import Parts
from worldenv.envs.world_model_env import EnvConfig, WorldModelEnv
from worldenv.interfaces.observation import Observation, Starts, table_of
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.model_files import save_model
from worldenv.reflector.small import SmallReflector, SmallReflectorConfig
from worldenv.robot.camera import tabletop_camera
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.rollout.engine import Engine, EngineConfig
from worldenv.suites.tabletop.suite import CLEAR_M, TabletopSuite
from worldenv.worlds.composer.network import ComposerConfig, ComposerNetwork
from worldenv.worlds.composer.world import ComposerWorld

if TYPE_CHECKING:
    from worldenv.data.trajectory import Trajectory

INSTRUCTIONS = ("put the red block on the green pad", "slide the orange puck to the red pad", "drop it in the tray")
RLINF = {"resize": "bicubic", "crop": 1.0, "stop": False, "orientation": "upright"}  # theirs, but for the last


def pytest_configure(config):
    """Share the cores among the workers of pytest-xdist and what they start: threads that compete are slow."""
    if workers := os.environ.get("PYTEST_XDIST_WORKER_COUNT"):
        threads = max(1, torch.get_num_threads() // int(workers))
        os.environ["OMP_NUM_THREADS"] = str(threads)
        torch.set_num_threads(threads)


class Tiny:
    """Makes the smallest models, starts and trajectories that still behave like the real ones."""

    policy_config = SmallPolicyConfig(width=64, channels=16, blocks=1)
    reflector_config = SmallReflectorConfig(width=64, channels=16, blocks=1)

    def simulator_config(self, size: int = 16, chunk: int = 4) -> ComposerConfig:
        return ComposerConfig(chunk=chunk, widths=(8, 16, 32), layers=1, heads=2, image_size=size)

    def policy(self, seed: int = 0, chunk: int = 4) -> SmallPolicy:
        torch.manual_seed(seed)
        return SmallPolicy(SmallPolicyConfig(chunk=chunk, width=64, channels=16, blocks=1)).eval()

    def simulator(self, seed: int = 0, size: int = 16, chunk: int = 4) -> ComposerNetwork:
        """One that already moves pixels: what starts at zero is drawn instead."""
        torch.manual_seed(seed)
        simulator = ComposerNetwork(self.simulator_config(size, chunk)).eval()
        for parameter in simulator.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.1)
        return simulator

    def reflector(self, seed: int = 0, zero_shot: bool = False) -> SmallReflector:
        """One that differs from frame to frame, and stops some episodes early, some late and some never."""
        torch.manual_seed(seed)
        reflector = SmallReflector(self.reflector_config, zero_shot).eval()
        with torch.no_grad():
            norm, d = reflector.head[0], self.reflector_config.width
            norm.weight.fill_(0.3)
            norm.weight[d : 2 * d] = 60  # what changed since the first frame: the rest hardly differs between frames
            reflector.head[-1].weight.mul_(5)
            reflector.head[-1].bias.sub_(1.7)
        return reflector

    def starts(self, n: int, size: int = 16, seed: int = 0) -> Starts:
        generator = torch.Generator().manual_seed(seed)
        frames = torch.randint(256, (n, 1, size, size, 3), generator=generator, dtype=torch.uint8)
        spread = torch.tensor([0.1, 0.1, 0.05, 0.2, 0.2, 0.2, 0.4])
        proprio = torch.tensor([0, 0, 0.1, 0, 0, 0, 0.5]) + spread * (2 * torch.rand(n, 7, generator=generator) - 1)
        texts, text = table_of([INSTRUCTIONS[i % len(INSTRUCTIONS)] for i in range(n)])
        return Starts(Observation(frames, proprio, self.camera(n, size), text), texts)

    def camera(self, n: int, size: int = 16) -> torch.Tensor:  # [n, 1, 3, 4]
        return torch.from_numpy(tabletop_camera(size).projection).expand(n, 1, 3, 4)

    def world(self, seed: int = 0, size: int = 16, chunk: int = 4, levels: tuple[float, ...] = (1.0, 0.5)):
        return ComposerWorld(self.simulator(seed, size, chunk), moved_gripper(Kinematics(), clear_m=CLEAR_M), levels)

    def parts(self, seed: int = 0, size: int = 16) -> Parts:
        """All parts of a run, small."""
        return Parts(TabletopSuite(size), self.policy(seed), self.world(seed, size), self.reflector(seed))

    def save(self, path: Path, size: int = 64, levels: tuple[float, ...] = (1.0,)) -> None:
        """Policy, composer and reflector as files of a folder of models that is there."""
        save_model(path / "policy.safetensors", self.policy(), "policy", {})
        save_model(path / "composer.safetensors", self.simulator(size=size), "composer", {}, levels=levels)
        save_model(path / "reflector.safetensors", self.reflector(), "reflector", {})

    def engine(
        self,
        horizon: int = 16,  # actions
        batch: int = 64,
        capacity: int | None = None,
        seed: int = 0,
        size: int = 16,
        **replace,
    ) -> Engine:
        parts = {"policy": self.policy(seed), "world": self.world(seed, size), "reflector": self.reflector(seed)}
        return Engine(*(parts | replace).values(), EngineConfig(horizon, capacity, batch))

    def env(self, starts: Starts | int = 6, seed: int = 0, **config) -> WorldModelEnv:
        starts = self.starts(starts) if isinstance(starts, int) else starts
        return WorldModelEnv(self.world(seed), self.reflector(seed), starts, EnvConfig(**{"horizon": 40} | config))

    def trajectory(
        self, steps: int, number: int = 0, size: int = 16, task: str = "red-block-on-green-pad"
    ) -> "Trajectory":
        """Pixels, poses and actions that tell (episode, step): value 40 * number + step."""
        from worldenv.data.trajectory import Trajectory  # needs h5py, which a machine for `make gpu` may lack

        value = 40 * number + np.arange(steps + 1)
        frames = np.broadcast_to(value[:, None, None, None, None], (steps + 1, 1, size, size, 3)).astype(np.uint8)
        proprio = np.repeat(value[:, None] / 1000, 7, axis=1).astype(np.float32)
        actions = np.repeat(value[:-1, None] / 1000, 7, axis=1).astype(np.float32)
        success = np.arange(steps) >= steps - 2
        camera = tabletop_camera(size).projection[None]
        labels = (INSTRUCTIONS[0], task, number, "train", "policy")
        return Trajectory(frames, proprio, actions, success, camera, ("agentview",), *labels)


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    # Networks this small lose more to waking threads than they gain; and sums come out the same on every machine.
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="session")
def same_weights():
    """Whether two modules or state dicts are equal bit by bit."""

    def compare(one, other) -> bool:
        one, other = (x.state_dict() if isinstance(x, torch.nn.Module) else copy.copy(x) for x in (one, other))
        return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)

    return compare


@pytest.fixture(scope="session")
def writers():
    """The functions of a folder's conftest.py that write a checkpoint as its authors do."""

    def found(folder: str):
        path = Path(__file__).parent / folder / "conftest.py"
        spec = importlib.util.spec_from_file_location(f"writers_{path.parent.name}", path)
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        return module

    return found


@pytest.fixture(scope="session")
def pair_names(writers, tmp_path_factory):
    """What the command line is given for RLinf's world model, a one-view token policy and a Qwen, all in tiny."""
    for package in ("transformers", "diffusers", "peft", "accelerate"):
        pytest.importorskip(package)
    path = tmp_path_factory.mktemp("pair")
    release = writers("policy/openvla_oft").write_release(path / "policy", "tokens")
    release.write_json("worldenv.json", {"lora": 4, "conventions": RLINF})
    writers("worlds/wan").write_folder(path / "wan", steps=1)
    writers("reflector/vlm").write_model(path / "qwen", "qwen2_5_vl")
    judge = {"vlm": "../qwen", "every": 8, "side": 28, "samples": 4}
    (path / "judge").mkdir()
    (path / "judge" / "reflector.json").write_text(json.dumps(judge))
    return {
        "policy": f"openvla-oft:{path / 'policy'}",
        "world": f"rlinf-wan:{path / 'wan'}",
        "reflector": f"vlm:{path / 'judge'}",
    }


@pytest.fixture
def compiling(monkeypatch):
    """As with WORLDENV_COMPILE=1; returns the networks that are compiled, in order.

    They are traced as ever, but run by torch: code of its own would take half a minute each.
    """
    from worldenv.nn import compiled

    made, compile_one = [], torch.nn.Module.compile
    monkeypatch.setattr(compiled, "WANTED", True)
    monkeypatch.setattr(compiled, "why_not", lambda: None)
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda self: (made.append(self), compile_one(self, backend="eager"))
    )
    yield made
    torch._dynamo.reset()
