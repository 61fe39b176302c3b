"""`worldenv-convert`."""

import json
from dataclasses import replace

import numpy as np
import pytest

from worldenv.commands import cli
from worldenv.data.trajectories import TrajectoryReader, TrajectoryWriter
from worldenv.robot.bounds import ActionBounds
from worldenv.robot.camera import tabletop_camera
from worldenv.suites.tabletop.demonstrate import demonstrate
from worldenv.suites.tabletop.scenes import TASKS

pytest.importorskip("pyarrow")
pytest.importorskip("av")

from worldenv.data.formats.lerobot.reader import LeRobotReader, LeRobotTables  # noqa: E402
from worldenv.data.formats.lerobot.writer import write_lerobot  # noqa: E402


@pytest.fixture(scope="module")
def demos():
    return demonstrate(TASKS[:2], [0, 1], "train")


@pytest.fixture
def source(demos, tmp_path):
    """The package's own format."""
    with TrajectoryWriter(tmp_path / "own") as writer:
        for trajectory in demos:
            writer.write(trajectory)
    return tmp_path / "own"


@pytest.fixture
def run(capsys):
    """What the command prints on stdout, as JSON."""

    def convert(*words):
        cli.convert([str(word) for word in words])
        return json.loads(capsys.readouterr().out)

    return convert


@pytest.fixture
def refused(capsys):
    """What the command prints on stderr, in one line."""

    def convert(*words):
        with pytest.raises(SystemExit) as ended:
            cli.convert([str(word) for word in words])
        err = capsys.readouterr().err
        assert ended.value.code == 2 and err.startswith("worldenv-convert: ") and err.count("\n") == 1
        return err

    return convert


def check_same(found, expected, but=()):
    for one, other in zip(found, expected, strict=True):
        for name in vars(other).keys() - set(but):
            np.testing.assert_array_equal(getattr(one, name), getattr(other, name), err_msg=name)


@pytest.mark.parametrize("version", ["v2.1", "v3.0"])
def test_own_format_goes_to_lerobot_and_back_without_loss(demos, source, run, tmp_path, version):
    there = run(source, tmp_path / "lerobot", "--to", f"lerobot-{version}", "--fps", 20, "--pictures", "png")
    steps = sum(len(t.actions) for t in demos)
    assert (there["trajectories"], there["steps"], there["format"]) == (2, steps, f"lerobot-{version}")
    run(tmp_path / "lerobot", tmp_path / "back")
    check_same(TrajectoryReader(tmp_path / "back"), demos)
    assert run(tmp_path / "lerobot", tmp_path / "again", "--to", "lerobot-v3.0")["bounds"] is None
    assert LeRobotTables(tmp_path / "again").info.fps == 20


def test_one_task_goes_to_libero(demos, run, tmp_path):
    with TrajectoryWriter(tmp_path / "one") as writer:
        writer.write(demos[0])
    run(tmp_path / "one", tmp_path / "pick_demo.hdf5", "--to", "libero")
    (found,) = TrajectoryReader(tmp_path / "pick_demo.hdf5")
    np.testing.assert_array_equal(found.frames, demos[0].frames[1:])


def test_recordings_in_a_robots_units_get_bounds_camera_and_success(demos, run, tmp_path):
    wide = ActionBounds((-0.5,) * 7, (2.0,) * 7)
    bare = [replace(t, camera=None, frames=np.ascontiguousarray(t.frames[:, :, ::-1])) for t in demos]
    write_lerobot(tmp_path / "mine", bare, 20, pictures="png", bounds=wide)
    table = _without_success(tmp_path / "mine")
    camera = tmp_path / "camera.json"
    lens = tabletop_camera(64)
    parts = {"intrinsics": lens.intrinsics.tolist(), "extrinsics": lens.extrinsics.tolist()}
    camera.write_text(json.dumps({"agentview": parts}))
    words = (tmp_path / "mine", tmp_path / "own", "--succeeded", "0", "--bounds", "recorded", "--camera", camera)
    done = run(*words, "--orientation", "flipped", "--check", "--size", 32, 32)
    assert done["agreement"]["orientation"] == "upright" and done["agreement"]["down"] > 0.5
    first, second = TrajectoryReader(tmp_path / "own")
    assert first.success[-1] and not second.success.any() and first.frames.shape[2:4] == (32, 32)
    np.testing.assert_allclose(first.camera[0], tabletop_camera(32).projection, rtol=1e-5, atol=1e-5)
    assert done["bounds"] == f"{tmp_path / 'own'}.bounds.json"
    bounds = ActionBounds(**json.loads((tmp_path / "own.bounds.json").read_text()))
    assert bounds == table.bounds
    np.testing.assert_allclose(bounds.restored(first.actions), wide.restored(demos[0].actions), atol=1e-5)
    run(*words[:1], tmp_path / "wider", "--succeeded", "all", "--bounds", done["bounds"], "--views", "agentview")
    assert all(t.success[-1] for t in TrajectoryReader(tmp_path / "wider"))


def _without_success(folder):
    path = folder / "meta/info.json"
    info = json.loads(path.read_text())
    info["features"] = {key: value for key, value in info["features"].items() if not key.startswith("next.")}
    path.write_text(json.dumps(info))
    return LeRobotTables(folder)


def test_pictures_that_do_not_agree_with_the_camera_are_refused(demos, source, refused, tmp_path):
    line = refused(source, tmp_path / "new", "--orientation", "turned", "--check")
    assert "do not agree with the camera" in line and "read them with the orientation 'upright'" in line
    still = [replace(t, frames=np.repeat(t.frames[:1], len(t.frames), axis=0)) for t in demos]
    with TrajectoryWriter(tmp_path / "still") as writer:
        for trajectory in still:
            writer.write(trajectory)
    assert "too little moves in the first 5 trajectories" in refused(tmp_path / "still", tmp_path / "new", "--check")


def test_another_camera_can_be_given_for_a_file(demos, source, run, refused, tmp_path):
    path = tmp_path / "camera.json"
    path.write_text(json.dumps({"agentview": [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]}))
    run(source, tmp_path / "new", "--camera", path)
    assert TrajectoryReader(tmp_path / "new")[0].camera[0].tolist() == [[1, 0, 0, 0], [0, 1, 0, 0], [0, 0, 1, 1]]
    for document, message in [
        ({}, "the camera agentview is None; it should be numbers"),
        ({"agentview": [[1, 2]]}, "agentview is [1, 2]; it should be finite numbers, 3 x 4"),
        ({"agentview": {"intrinsics": [[1]], "extrinsics": [[1]]}}, "agentview should have intrinsics, 3 x 3"),
        ({"agentview": {}}, "intrinsics is None; it should be numbers"),
    ]:
        path.write_text(json.dumps(document))
        assert message in refused(source, tmp_path / "other", "--camera", path)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--to", "rlds"), "argument --to: invalid choice: 'rlds'"),
        (("--to", "lerobot-v3.0"), "--fps is missing"),
        (("--views", "a"), "--views is for sources of LeRobot, and"),
        (("--bounds", "recorded"), "--bounds recorded is for sources of LeRobot"),
        (("--bounds", "nowhere.json"), "nowhere.json: there is no such file"),
        (("--to", "libero"), "a file of LIBERO is called <task>_demo.hdf5"),
        (("--colour", "red"), "unrecognized arguments: --colour red"),
    ],
)
def test_wrong_option_is_refused_in_one_line(source, refused, tmp_path, words, message):
    assert message in refused(source, tmp_path / "new", *words)


def test_wrong_source_and_numbers_are_refused(demos, refused, tmp_path):
    assert "nowhere: there is no such file" in refused(tmp_path / "nowhere", tmp_path / "new")
    write_lerobot(tmp_path / "mine", demos, 20, pictures="png")
    for words, message in [
        (("--succeeded", "some"), "--succeeded is 'some'; it should be all, none, or numbers"),
        (("--views", "left"), "there is no view 'left' (found agentview)"),
        (("--size", "0", "8"), "size is (0, 8); it should be (height, width)"),
    ]:
        assert message in refused(tmp_path / "mine", tmp_path / "new", *words)
    assert not (tmp_path / "new").exists()


def test_lerobot_reader_takes_tables_that_are_read(demos, tmp_path):
    write_lerobot(tmp_path / "mine", demos, 20, pictures="png")
    check_same(LeRobotReader(LeRobotTables(tmp_path / "mine")), demos)
