"""Few-step students of released world models: nearer to their teachers, kept in their layout, resumed, refused."""

import json
import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import worldenv  # noqa: E402
from worldenv import cli  # noqa: E402
from worldenv.data.clips import Clips  # noqa: E402
from worldenv.data.trajectories import TrajectoryWriter  # noqa: E402
from worldenv.distill import Distillation, train_student  # noqa: E402
from worldenv.errors import UserError  # noqa: E402
from worldenv.interfaces.observation import Key  # noqa: E402
from worldenv.suites.tabletop.demonstrate import demonstrate  # noqa: E402
from worldenv.suites.tabletop.scenes import TASKS  # noqa: E402
from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.training import fit as loop  # noqa: E402
from worldenv.training.distillation import euler  # noqa: E402
from worldenv.training.fit import Schedule  # noqa: E402
from worldenv.training.students import student_of  # noqa: E402
from worldenv.training.train_wan import wan_denoising  # noqa: E402

STEPS = 20  # of the teacher
KINDS = ("svd", "rlinf-wan", "causal-latents")


@pytest.fixture(scope="session")
def teachers(writers, tmp_path_factory):
    """The folder of a tiny teacher of each kind, in its authors' layout."""
    path = tmp_path_factory.mktemp("teachers")
    writers("worlds/video").write_pipeline(path / "svd")
    writers("worlds/wan").write_folder(path / "rlinf-wan")
    (path / "causal-latents").mkdir()
    writers("worlds/causal").write_latents(path / "causal-latents")
    return path


@pytest.fixture(scope="session")
def recorded(tmp_path_factory):
    folder = tmp_path_factory.mktemp("recorded") / "demonstrations"
    with TrajectoryWriter(folder) as writer:
        for trajectory in demonstrate(TASKS[:3], range(3), "train"):
            writer.write(trajectory)
    return folder


@pytest.fixture
def training(teachers, recorded, tmp_path):
    def made(kind, steps=4, **more):
        schedule = Schedule(steps=steps, batch=2, learning_rate=3e-3, save_every_s=0.0)
        given = {"world": f"{kind}:{teachers / kind}", "data": (recorded,), "run": tmp_path / "run"}
        return Distillation(**given | {"schedule": schedule, "teacher_steps": STEPS} | more)

    return made


def latents(name, steps=None, rows=4):
    """What a world model makes of held-out starts and random actions, in latents; in so many steps."""
    world, suite = worldenv.load(world=name).world, TabletopSuite()
    if steps is not None:
        if hasattr(world, "levels"):
            world.levels = tuple(1 - step / steps for step in range(steps))
        else:
            world.config = replace(world.config, steps=steps)
            if name.startswith("svd"):
                world.network.config = world.config
    starts = suite.reset(suite.tasks[:rows], range(rows), "validation")
    torch.manual_seed(6)
    action = 2 * torch.rand(rows, world.chunk, 7) - 1
    made = []
    world._pass = lambda *given, real=world._pass: made.append(real(*given)) or made[-1]
    world.imagine(
        world.begin(starts.seen, world.chunk), starts.seen, action, Key(1, torch.arange(rows), torch.zeros(rows).long())
    )
    return made[0].float()


@pytest.mark.parametrize("kind", KINDS)
def test_student_of_one_step_is_nearer_to_its_teacher_than_the_teacher_in_one_step(training, teachers, kind):
    result = train_student(training(kind, steps=40))
    teacher = f"{kind}:{teachers / kind}"
    many, one, student = latents(teacher, STEPS), latents(teacher, 1), latents(result["world"])
    before, after = ((x - many).square().mean() for x in (one, student))
    assert after < 0.6 * before and result["metrics"]["teacher_mse"] > 0
