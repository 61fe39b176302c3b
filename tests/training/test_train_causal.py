"""What the causal world model is trained on, and that it learns and is distilled."""

import copy
from dataclasses import replace

import pytest
import torch

from worldenv.data.clips import Clips
from worldenv.errors import UserError
from worldenv.records.run_folder import RunFolder
from worldenv.robot.kinematics import Kinematics
from worldenv.robot.robot import moved_gripper
from worldenv.training.config import TOKENIZER_FRAMES
from worldenv.training.fit import Schedule, fit
from worldenv.training.train_causal import causal_loss, distillation_loss, fit_tokenizer
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.tokenizer import PatchTokenizer

CONFIG = CausalConfig(
    image_size=16, patch=4, map_shrink=2, channels=12, chunk=2, window=4, width=32, layers=2, heads=2, key_heads=1
)


ROBOT = moved_gripper(Kinematics())


@pytest.fixture
def clips(tiny):
    return Clips.of([tiny.trajectory(steps, number) for number, steps in enumerate((4, 6, 8))])


def test_tokenizer_is_better_than_any_other_directions_and_its_latents_have_variance_1():
    draw = torch.Generator().manual_seed(0)
    coarse = torch.rand(6, 3, 4, 4, 3, generator=draw).repeat_interleave(4, 2).repeat_interleave(4, 3)
    frames = (255 * (coarse + 0.1 * torch.rand(6, 3, 16, 16, 3, generator=draw)) / 1.1).to(torch.uint8)
    tokenizer = PatchTokenizer(4, 6)
    with torch.no_grad():
        before = (tokenizer.decode(tokenizer.encode(frames[0]), 16).float() - frames[0]).square().mean()
        fit_tokenizer(tokenizer, frames.flatten(0, 1))
        latents = tokenizer.encode(frames.flatten(0, 1))
        after = (tokenizer.decode(tokenizer.encode(frames[0]), 16).float() - frames[0]).square().mean()
    assert after < 0.2 * before
    assert 0.8 < latents.square().mean() < 1.2


def test_training_lowers_the_loss_and_leaves_the_tokenizer_alone(clips, tmp_path):
    torch.manual_seed(0)
    network = CausalNetwork(CONFIG)
    frames = clips.sample_frames(torch.Generator().manual_seed(0), TOKENIZER_FRAMES)
    fit_tokenizer(network.tokenizer, frames[:, 0])
    network.tokenizer.requires_grad_(False)
    before = network.tokenizer.encoder.weight.clone()
    loss = causal_loss(network, ROBOT, clips, batch=6, chunks=2)

    def mean():
        with torch.no_grad():
            return sum(loss(torch.Generator().manual_seed(1000 + i))[0].item() for i in range(8)) / 8

    first = mean()
    fit(network, loss, Schedule(60, 6, 3e-3), "causal", RunFolder.create(tmp_path / "run", {}), 0)
    assert mean() < 0.7 * first
    assert torch.equal(network.tokenizer.encoder.weight, before)


def distilled(clips, tmp_path, levels, steps=80):
    torch.manual_seed(0)
    teacher = CausalNetwork(CONFIG).eval()
    torch.nn.init.normal_(teacher.head.weight, std=0.3)
    student = copy.deepcopy(teacher)
    loss = distillation_loss(student, teacher, ROBOT, clips, 6, 2, levels)

    def mean():
        with torch.no_grad():
            return sum(loss(torch.Generator().manual_seed(1000 + i))[0].item() for i in range(8)) / 8

    first, before = mean(), copy.deepcopy(teacher.state_dict())
    fit(student, loss, Schedule(steps, 6, 2e-3), "distil", RunFolder.create(tmp_path / "run", {}), 0)
    assert all(torch.equal(weight, before[name]) for name, weight in teacher.state_dict().items())
    return first, mean()


@pytest.mark.parametrize("levels", [(1.0,), (1.0, 0.5)])
def test_student_of_few_steps_comes_to_land_where_the_teacher_does_in_many(clips, tmp_path, levels):
    first, last = distilled(clips, tmp_path, levels)
    assert last < 0.6 * first


def test_teacher_of_one_step_is_its_own_student(clips):
    torch.manual_seed(0)
    network = CausalNetwork(CONFIG).eval()
    loss = distillation_loss(network, copy.deepcopy(network), ROBOT, clips, 4, 2, (1.0,), teacher_steps=1)
    assert loss(torch.Generator().manual_seed(0))[0] < 1e-10


def test_clips_without_cameras_are_refused(tiny):
    clips = Clips.of([replace(tiny.trajectory(8), camera=None)])
    with pytest.raises(UserError, match="the trajectories have no camera matrix"):
        causal_loss(CausalNetwork(CONFIG), ROBOT, clips, 2, 2)


def test_clips_that_are_too_short_are_refused(clips):
    with pytest.raises(ValueError, match="the longest clip has 8 steps; 5 chunks are 10"):
        causal_loss(CausalNetwork(CONFIG), ROBOT, clips, 2, 5)


def test_tokenizer_of_more_channels_than_there_are_patches_is_refused():
    with pytest.raises(ValueError, match="4 patches are too few for 5 channels"):
        fit_tokenizer(PatchTokenizer(4, 5), torch.zeros(1, 8, 8, 3, dtype=torch.uint8))
