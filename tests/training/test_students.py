"""Few-step students of released world models: nearer to their teachers, kept in their layout, resumed, refused."""

import json
import resource
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import worldenv  # noqa: E402
from worldenv.commands import cli, distill  # noqa: E402
from worldenv.commands.distill import Distillation, train_student  # noqa: E402
from worldenv.data.clips import Clips  # noqa: E402
from worldenv.data.trajectories import TrajectoryWriter  # noqa: E402
from worldenv.errors import UserError  # noqa: E402
from worldenv.interfaces.observation import Key  # noqa: E402
from worldenv.nn import attention  # noqa: E402
from worldenv.records.run_folder import RunFolder  # noqa: E402
from worldenv.suites.tabletop.demonstrate import demonstrate  # noqa: E402
from worldenv.suites.tabletop.scenes import TASKS  # noqa: E402
from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.training import fit as loop  # noqa: E402
from worldenv.training.distillation import euler  # noqa: E402
from worldenv.training.fit import Schedule  # noqa: E402
from worldenv.training.students import Student, student_of  # noqa: E402
from worldenv.training.train_wan import wan_denoising  # noqa: E402
from worldenv.training.windows import Window, Windows, steps_of  # noqa: E402
from worldenv.worlds.wan.network import CONTEXT  # noqa: E402

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


def latents(world, rows=4):
    """What a world model makes of held-out starts and random actions, in latents."""
    suite = TabletopSuite()
    starts = suite.reset(suite.tasks[:rows], range(rows), "validation")
    torch.manual_seed(6)
    action = 2 * torch.rand(rows, world.chunk, 7) - 1
    made, key = [], Key(1, torch.arange(rows), torch.zeros(rows, dtype=torch.int64))
    world._pass = lambda *given, real=world._pass: made.append(real(*given)) or made[-1]
    world.imagine(world.begin(starts.seen, world.chunk), starts.seen, action, key)
    return made[0].float()


def of_steps(name, steps):
    """A teacher in so many Euler steps."""
    world = worldenv.load(world=name).world
    if name.startswith("causal"):
        world.levels = tuple(1 - step / steps for step in range(steps))
        world._onward = lambda noisy, velocity, t, t_next, *_: noisy + (t_next - t) * velocity
    else:
        world.config = replace(world.config, steps=steps)
    if name.startswith("svd"):
        world.network.config = world.config
    return world


@pytest.mark.parametrize(("kind", "steps"), [("svd", 10), ("rlinf-wan", 40), ("causal-latents", 20)])
def test_student_of_one_step_is_nearer_to_its_teacher_than_the_teacher_in_one_step(training, teachers, kind, steps):
    result = train_student(training(kind, steps))
    teacher = f"{kind}:{teachers / kind}"
    many, one = (latents(of_steps(teacher, count)) for count in (STEPS, 1))
    student = latents(worldenv.load(world=result["world"]).world)
    before, after = ((x - many).square().mean() for x in (one, student))
    assert after < 0.6 * before and result["metrics"]["teacher_mse"] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_methods_are_one_where_the_teacher_takes_one_step_and_differ_elsewhere(recorded, teachers, kind):
    """Whether either reaches what the teacher does: tests/training/test_distillation.py."""
    teacher, clips = worldenv.load(world=f"{kind}:{teachers / kind}").world, Clips.open(recorded)

    def loss(method, teacher_steps):
        student = student_of(teacher, clips, 2, 1, teacher_steps, method)
        torch.manual_seed(5)
        with torch.no_grad():
            for parameter in student.learns.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        value, figures = student.loss(torch.Generator().manual_seed(7))
        value.backward()
        assert any(parameter.grad.abs().max() > 0 for parameter in student.learns.parameters())
        return value.item(), figures

    (one, figures), (other, its) = (loss(method, 1) for method in ("trajectory", "consistency"))
    assert one > 1e-3 and other == pytest.approx(one, rel=1e-3)
    assert its["target_mse"] == pytest.approx(figures["teacher_mse"], rel=1e-3)
    assert abs(loss("consistency", 4)[0] / loss("trajectory", 4)[0] - 1) > 0.01


@pytest.mark.parametrize("kind", KINDS)
def test_student_of_two_steps_is_read_again_as_it_was_and_the_teacher_stays(recorded, teachers, tmp_path, kind):
    name, clips = f"{kind}:{teachers / kind}", Clips.open(recorded)
    teacher, before = worldenv.load(world=name).world, worldenv.load(world=name).world
    student = student_of(teacher, clips, 2, 2, 3)
    optimizer, seen = torch.optim.Adam(student.learns.parameters(), 2e-3), []
    for _ in range(3):
        value, _ = student.loss(torch.Generator().manual_seed(7))
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        seen.append(value.item())
    assert seen[-1] < seen[0] and all(
        p.grad.isfinite().all() for p in student.learns.parameters() if p.grad is not None
    )
    again = worldenv.load(world=f"{kind}:{student.write(tmp_path / 'deep' / 'student')}").world
    kept = student.world.network.state_dict()
    if kind == "causal-latents":
        kept = {key: weight.half().float() for key, weight in kept.items()}
    else:
        assert torch.equal(latents(again), latents(student.world)) and again.config == student.world.config
    assert all(torch.equal(weight, kept[key]) for key, weight in again.network.state_dict().items())
    levels = {"svd": [700.0, 1.0, 0.0], "rlinf-wan": [1.0, 5 / 6, 0.0], "causal-latents": (1.0, 0.5)}[kind]
    found = again.levels if kind == "causal-latents" else again.config.sigmas()
    assert found == pytest.approx(levels, abs=1e-3)
    weights = teacher.network.state_dict()
    assert all(torch.equal(weight, weights[key]) for key, weight in before.network.state_dict().items())
    with pytest.raises(UserError, match="student is there already"):
        student.write(tmp_path / "deep" / "student")


@pytest.mark.parametrize("kind", ["svd", "rlinf-wan"])
def test_student_of_a_teacher_in_bfloat16_learns_in_float32(recorded, teachers, tmp_path, kind):
    shutil.copytree(teachers / kind, tmp_path / kind)
    settings = tmp_path / kind / "worldenv.json"
    settings.write_text(json.dumps(json.loads(settings.read_text()) | {"dtype": "bfloat16"}))
    teacher = worldenv.load(world=f"{kind}:{tmp_path / kind}").world
    student = student_of(teacher, Clips.open(recorded), 2, 1, 2)
    assert {p.dtype for p in student.learns.parameters()} == {torch.float32} != {teacher.network.dtype}
    value, _ = student.loss(torch.Generator().manual_seed(0))
    value.backward()
    assert value.isfinite() and teacher.network.dtype == torch.bfloat16
    again = worldenv.load(world=f"{kind}:{student.write(tmp_path / 'student')}").world
    assert latents(again).isfinite().all() and again.network.dtype == torch.bfloat16


def test_euler_steps_are_those_of_both_parametrisations():
    torch.manual_seed(0)
    clean, noise, velocity = torch.randn(3, 5, 7)
    t, t_next = 0.7, 0.4
    flow = (1 - t) * clean + t * noise
    predicted = flow - t * velocity
    after = euler(flow, predicted, t, t_next)
    torch.testing.assert_close(after, flow + (t_next - t) * velocity)
    edm = euler(flow / (1 - t), predicted, t / (1 - t), t_next / (1 - t_next))
    torch.testing.assert_close(edm, after / (1 - t_next))


def test_students_of_rlinf_learn_from_what_a_rollout_knows(recorded, teachers, monkeypatch):
    world, clips = worldenv.load(world=f"rlinf-wan:{teachers / 'rlinf-wan'}").world, Clips.open(recorded)
    given = []
    monkeypatch.setattr(world.network, "velocity", lambda x, sigma, actions: given.append((x, actions)) or x[:, :, 2:])
    for present in (0, 8):
        first, now = torch.tensor([0]), torch.tensor([present])
        window = Window(torch.tensor([1]), first, now, steps_of(first, now, CONTEXT, 8))
        monkeypatch.setattr(Windows, "__call__", lambda self, generator, window=window: window)
        part = wan_denoising(world, clips, 1)(torch.Generator())
        part.denoiser(world.network)(part.noisy, 1.0)
    suite = TabletopSuite()
    camera, frames = clips.camera[1:2], clips.frames_at(torch.tensor([1]), torch.tensor([[0]]))[:, 0]
    seen = replace(suite.reset(suite.tasks[:1], [0], "train").seen, frames=frames, camera=camera)
    memory = world.begin(replace(seen, proprio=clips.proprio[1:2, 0]), 8)
    (x, actions), (_, later) = given
    torch.testing.assert_close(x[:, :, :2], memory.latents, atol=1e-5, rtol=0)
    assert torch.equal(actions[:, :CONTEXT], memory.actions) and torch.equal(
        actions[:, CONTEXT:], clips.actions[1:2, :8]
    )
    key = Key(1, torch.tensor([0]), torch.tensor([0]))
    world.imagine(memory, seen, clips.actions[1:2, :8], key)
    assert torch.equal(later[:, :CONTEXT], memory.actions)


def test_interrupted_training_ends_as_if_it_had_not_been(training, monkeypatch):
    config = training("rlinf-wan", teacher_steps=3)
    train_student(config)
    whole = load_file(config.run / "world" / "model-00001.safetensors")
    shutil.rmtree(config.run)
    step, calls = loop._step, iter(range(100))

    def stopped(*given):
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step(*given)

    monkeypatch.setattr(loop, "_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train_student(config)
    assert not (config.run / "world").exists()
    monkeypatch.setattr(loop, "_step", step)
    resumed = replace(config, resume=True)
    train_student(resumed)
    found = load_file(config.run / "world" / "model-00001.safetensors")
    assert whole.keys() == found.keys() and all(torch.equal(whole[name], found[name]) for name in whole)
    monkeypatch.setattr(loop, "_step", lambda *_: pytest.fail("it was trained again"))
    assert train_student(resumed)["denoising_steps"] == 1
    with RunFolder.resume(config.run) as folder:  # as from before there were these options
        settings = {k: v for k, v in folder.config["distill"].items() if k not in ("student", "method")}
        folder.rewrite_config({"distill": settings})
    assert train_student(resumed)["denoising_steps"] == 1
    with pytest.raises(UserError, match="has other settings: choose another --run"):
        train_student(replace(resumed, method="consistency"))
    with pytest.raises(UserError, match="has other settings: choose another --run"):
        train_student(replace(resumed, denoising_steps=2))
    with pytest.raises(UserError, match="run is there already; choose another --run, or continue it with --resume"):
        train_student(config)


@pytest.mark.parametrize(("kind", "size"), [("svd", 1 << 20), ("rlinf-wan", 8 << 10)])  # bytes that a file may have
def test_disk_that_is_full_when_the_student_is_written_is_named(training, kind, size, monkeypatch):
    config = training(kind, steps=1, teacher_steps=2)
    limits, write = resource.getrlimit(resource.RLIMIT_FSIZE), Student.write

    def full(student, folder):  # the system refuses the data as a full disk does
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            return write(student, folder)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    monkeypatch.setattr(Student, "write", full)
    with pytest.raises(UserError, match="world cannot be written .*free some space"):
        train_student(config)
    assert not [entry.name for entry in config.run.iterdir() if "world" in entry.name]
    monkeypatch.setattr(Student, "write", write)
    assert worldenv.load(world=train_student(replace(config, resume=True))["world"]).world


def test_run_inside_the_teacher_is_refused(training, teachers, tmp_path):
    shutil.copytree(teachers / "svd", tmp_path / "svd")
    (tmp_path / "link").symlink_to(tmp_path / "svd")
    for run in (tmp_path / "svd" / "deep" / "run", tmp_path / "link" / "run"):
        with pytest.raises(
            UserError, match="--run .*run lies in the folder of the teacher or student; choose another --run"
        ):
            train_student(training("svd", world=f"svd:{tmp_path / 'svd'}", run=run))
    assert not run.exists() and not (tmp_path / "svd" / "deep").exists()


def test_what_needs_no_teacher_is_refused_before_it_is_loaded(training, tmp_path, monkeypatch):
    monkeypatch.setattr(distill, "_world", lambda *_: pytest.fail("it was loaded"))
    (tmp_path / "loop").symlink_to("loop")
    for name, message in (("nothing", "nothing"), ("loop", "Too many levels of symbolic links")):
        with pytest.raises(UserError, match=message):
            train_student(training("svd", data=(tmp_path / name,)))
    RunFolder.create(tmp_path / "run", {"rl": {}}).close()
    with pytest.raises(UserError, match="not a run of worldenv-distill, or has other settings"):
        train_student(training("svd", resume=True))


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"world": "composer"}, "--world is 'composer'; it should be the teacher: rlinf-wan:FOLDER or svd:FOLDER or"),
        ({"world": "my_module:make"}, "--world is 'my_module:make'; it should be the teacher"),
        ({"world": "openvla-oft:x"}, "--world is 'openvla-oft:x'; it should be the teacher"),
        ({"world": "svd:"}, "--world is 'svd:'; it should be the teacher"),
        ({"denoising_steps": 20}, "--denoising-steps is 20, and --teacher-steps 20: a student should have fewer"),
        ({"denoising_steps": 0}, "denoising_steps is 0"),
        ({"data": ()}, "names no recorded episodes"),
        ({"method": "dmd"}, "method is 'dmd'; it should be trajectory or consistency"),
        ({"device": "tpu"}, "device is 'tpu'; it should be cpu or cuda"),
    ],
)
def test_settings_that_train_nothing_are_refused(training, more, message):
    with pytest.raises(UserError, match=message):
        training("svd", **more)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": 16}, r"the frames are \(16, 16\); the world model's are 64 pixels square"),
        ({"steps": 3}, "the longest clip has 3 steps; a chunk is 8"),
        ({"views": ("wrist",)}, "the recordings show wrist first, and the world model imagines agentview"),
        (
            {"actions": 3},
            "the recorded actions have 3 numbers and proprioception 7; those of the suite's robot have 7 and 7",
        ),
    ],
)
def test_recordings_that_do_not_fit_are_refused(tiny, teachers, change, message):
    world = worldenv.load(world=f"rlinf-wan:{teachers / 'rlinf-wan'}").world
    trajectory = tiny.trajectory(change.get("steps", 9), size=change.get("size", 64))
    trajectory = replace(trajectory, views=change.get("views", trajectory.views))
    clips = Clips.of([replace(trajectory, actions=trajectory.actions[:, : change.get("actions", 7)])])
    with pytest.raises(UserError, match=message):
        student_of(world, clips, 2, 1, 3)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        ("svd", {"camera": None}, "the trajectories have no camera matrix"),
        ("causal-latents", {"camera": None}, "the trajectories have no camera matrix"),
        ("causal-latents", {"frames": np.zeros((10, 1, 16, 16, 3), np.uint8)}, r"frames are \(16, 16\); the world"),
        ("svd", {"proprio": np.zeros((10, 8), np.float32)}, "7 numbers and proprioception 8; those of the suite's"),
    ],
)
def test_recordings_without_what_the_kind_needs_are_refused(tiny, teachers, kind, change, message):
    world = worldenv.load(world=f"{kind}:{teachers / kind}").world
    with pytest.raises(UserError, match=message):
        student_of(world, Clips.of([replace(tiny.trajectory(9, size=64), **change)]), 2, 1, 3)


def test_attention_without_a_gradient_is_refused(teachers, recorded, monkeypatch):
    world = worldenv.load(world=f"rlinf-wan:{teachers / 'rlinf-wan'}").world
    monkeypatch.setattr(attention, "WANTED", "ours")
    with pytest.raises(UserError, match="ours, which has no gradient: a student cannot learn with it"):
        student_of(world, Clips.open(recorded), 2, 1, 3)


@pytest.mark.parametrize("method", ["trajectory", "consistency"])
def test_command_trains_and_names_the_student(teachers, recorded, tmp_path, capsys, method):
    words = ["--world", f"rlinf-wan:{teachers / 'rlinf-wan'}", "--data", str(recorded), "--run", str(tmp_path / "run")]
    words += ["--teacher-steps", "3", "--denoising-steps", "2", "--steps", "2", "--batch", "2", "--method", method]
    cli.distill(words)
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert result["world"] == f"rlinf-wan:{tmp_path / 'run' / 'world'}" and result["episodes"] == 3
    assert worldenv.load(world=result["world"]).world.config.steps == 2
    assert {"trajectory": "teacher_mse", "consistency": "target_mse"}[method] in result["metrics"]
    with pytest.raises(SystemExit) as ended:
        cli.distill([*words[:5], str(tmp_path / "other"), "--world", f"svd:{tmp_path / 'nothing'}"])
    error = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2 and len(error) == 1 and "nothing is not there" in error[0]
    assert not (tmp_path / "other").exists()
