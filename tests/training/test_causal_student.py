"""A causal student of a video-diffusion U-Net, in the latents of the same autoencoder."""

import shutil
from dataclasses import replace

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import worldenv  # noqa: E402
from worldenv.commands.distill import Distillation, train_student  # noqa: E402
from worldenv.data.clips import Clips  # noqa: E402
from worldenv.errors import UserError  # noqa: E402
from worldenv.interfaces.observation import Key  # noqa: E402
from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.training import students  # noqa: E402
from worldenv.training.distillation import euler  # noqa: E402
from worldenv.training.fit import Schedule  # noqa: E402
from worldenv.training.students import student_of  # noqa: E402
from worldenv.worlds.video import world as video  # noqa: E402


@pytest.fixture(scope="module")
def folders(writers, tmp_path_factory):
    """A U-Net, an untrained causal transformer in its latents, and one in those of another autoencoder."""
    path = tmp_path_factory.mktemp("folders")
    writers("worlds/video").write_pipeline(path / "svd")
    writers("worlds/wan").write_folder(path / "wan")
    for name, kind, more in (("begun", "AutoencoderTiny", {}), ("other", "AutoencoderKLWan", {"channels": 16})):
        (path / name).mkdir()
        writers("worlds/causal").write_latents(path / name, kind, **more)
    return path


@pytest.fixture(scope="module")
def clips(tiny):
    return Clips.of([tiny.trajectory(12, number, size=64) for number in range(3)])


def loaded(folders, *names):
    return [worldenv.load(world=name.replace(":", f":{folders}/")).world for name in names]


def test_target_is_what_the_teacher_imagines_from_the_same_noise(tiny, folders, monkeypatch):
    teacher, begun = loaded(folders, "svd:svd", "causal-latents:begun")
    clips, given = Clips.of([tiny.trajectory(4, 5, size=64)]), {}
    monkeypatch.setattr(students, "METHODS", {"trajectory": lambda *args: given.update(draw=args[2], levels=args[4])})
    student_of(teacher, clips, 2, 1, 3, begun=begun)
    part = given["draw"](torch.Generator().manual_seed(0))
    x, denoise = part.noisy, part.denoiser(teacher.network)
    for before, after in zip(given["levels"], given["levels"][1:], strict=False):
        x = euler(x, denoise(x, before), before, after)

    cutter = begun.network.tokenizer
    noise = cutter.joined(part.noisy.flatten(0, 1) / given["levels"][0], 64).unflatten(0, (2, 4))
    monkeypatch.setattr(video, "philox", lambda *_, **__: noise)
    suite, frames = TabletopSuite(), clips.frames_at(torch.tensor([0, 0]), torch.zeros(2, 1, dtype=torch.int64))[:, 0]
    seen = replace(suite.reset(suite.tasks[:2], range(2), "train").seen, frames=frames)
    seen = replace(seen, proprio=clips.proprio[[0, 0], 0], camera=clips.still_camera()[[0, 0]])
    memory, network = teacher.begin(seen, 4), teacher.network
    poses = torch.cat([memory.poses, clips.proprio[[0, 0], 1:5]], 1)
    known = network.know(memory.latents, poses, seen.camera, clips.actions[[0, 0], :4].clamp(-1, 1), [memory.tokens])
    network.config = replace(network.config, steps=3)
    with torch.no_grad():
        wanted = teacher._pass(known, Key(0, torch.arange(2), torch.zeros(2, dtype=torch.int64)))
    torch.testing.assert_close(cutter.joined(x.flatten(0, 1), 64).unflatten(0, (2, 4)), wanted, atol=1e-3, rtol=1e-3)
    assert wanted.std() > 0.1


def test_it_learns_and_is_kept_as_a_causal_world(folders, clips, tmp_path):
    teacher, begun = loaded(folders, "svd:svd", "causal-latents:begun")
    kept = {name: weight.clone() for name, weight in teacher.network.state_dict().items()}
    student = student_of(teacher, clips, 2, 2, 4, begun=begun)

    def mean():
        with torch.no_grad():
            return sum(student.loss(torch.Generator().manual_seed(1000 + i))[0].item() for i in range(8))

    optimizer, first = torch.optim.Adam(student.learns.parameters(), 3e-3), mean()
    for step in range(25):
        value, _ = student.loss(torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
    assert mean() < 0.8 * first
    assert all(torch.equal(weight, kept[name]) for name, weight in teacher.network.state_dict().items())
    again = worldenv.load(world=f"causal-latents:{student.write(tmp_path / 'student')}").world
    assert again.levels == (1.0, 0.5)
    kept = {name: weight.half().float() for name, weight in student.world.network.state_dict().items()}
    assert all(torch.equal(weight, kept[name]) for name, weight in again.network.state_dict().items())


def settings(folders, tmp_path, **more):
    given = {"world": f"svd:{folders}/svd", "student": f"causal-latents:{folders}/begun", "run": tmp_path / "run"}
    return Distillation(**given | {"data": (tmp_path / "data",), "schedule": Schedule(2, 2, 1e-3)} | more)


@pytest.mark.parametrize("method", ["trajectory", "consistency"])
def test_command_trains_it_and_a_policy_acts_in_it(folders, clips, tiny, tmp_path, monkeypatch, method):
    monkeypatch.setattr(Clips, "open", lambda paths: clips)
    config = settings(folders, tmp_path, teacher_steps=3, method=method)
    result = train_student(config)
    assert result["world"] == f"causal-latents:{config.run / 'world'}"
    world = worldenv.load(world=result["world"]).world
    starts = worldenv.practice_starts(TabletopSuite(), seed=0).pick(torch.arange(2))
    assert not tiny.engine(horizon=8, world=world, size=64).run(starts, 2, 0, stop=False).broken.any()
    assert train_student(replace(config, resume=True))["world"] == result["world"]
    with pytest.raises(UserError, match="has other settings: choose another --run"):
        train_student(replace(config, resume=True, student=f"causal-latents:{folders}/other"))
    shutil.copytree(folders / "begun", tmp_path / "begun")
    with pytest.raises(UserError, match="lies in the folder of the teacher or student; choose another --run"):
        train_student(settings(tmp_path, tmp_path, run=tmp_path / "begun" / "run"))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"student": "causal"}, "--student is 'causal', and --world 'svd:.*; they should be causal-latents:FOLDER and"),
        ({"student": "causal-latents:"}, "--student is 'causal-latents:'"),
        ({"world": "rlinf-wan:x"}, "--world 'rlinf-wan:x'; they should be causal-latents:FOLDER and svd:FOLDER"),
    ],
)
def test_names_that_do_not_go_together_are_refused(folders, tmp_path, more, message):
    with pytest.raises(UserError, match=message):
        settings(folders, tmp_path, **more)


def test_what_has_other_latents_or_chunks_is_refused(folders, clips):
    teacher, wan, begun, other = loaded(
        folders, "svd:svd", "rlinf-wan:wan", "causal-latents:begun", "causal-latents:other"
    )
    with pytest.raises(UserError, match="autoencoder is not that of the teacher, so their latents differ: make"):
        student_of(teacher, clips, 2, 1, 3, begun=other)
    with pytest.raises(UserError, match="needs a teacher of the kind svd"):
        student_of(wan, clips, 2, 1, 3, begun=begun)
    begun.chunk = 8
    with pytest.raises(UserError, match="imagines 8 frames of 64 pixels at a time, the teacher 4 of 64"):
        student_of(teacher, clips, 2, 1, 3, begun=begun)
    begun.chunk, begun.network.tokenizer.frames.scale = 4, 0.5
    with pytest.raises(UserError, match="is not that of the teacher"):
        student_of(teacher, clips, 2, 1, 3, begun=begun)
