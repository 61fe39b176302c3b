"""LeRobot's data sets are read as they are."""

import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import worldenv
from worldenv.data.trajectories import TrajectoryFormatError, TrajectoryReader
from worldenv.errors import UserError
from worldenv.robot.bounds import ActionBounds

pytest.importorskip("pyarrow")
pytest.importorskip("av")

from worldenv.data.formats.lerobot.reader import LeRobotReader, LeRobotTables  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*the files of 1 of 4 episodes are not there")


def test_rows_and_frames_of_every_episode_are_read_bit_for_bit(by_hand):
    reader = LeRobotReader(by_hand.folder, succeeded=True)
    assert len(reader) == 3 and reader.views == ("cam_high",)
    for index in (2, 0, 1, -1):  # in any order
        found, i = reader[index], index % 3
        np.testing.assert_array_equal(found.frames[:, 0], by_hand.frames[i], strict=True)
        np.testing.assert_array_equal(found.proprio, by_hand.state[i], strict=True)
        np.testing.assert_array_equal(found.actions, by_hand.action[i][:-1], strict=True)
        assert found.success.tolist() == [False] * (len(found.actions) - 1) + [True]
        assert (found.instruction, found.start, found.camera) == ("pick up the yellow bottle", i, None)
        assert found.split == "train"
    with pytest.raises(IndexError, match="index 3 of .*recorded, which has 3 trajectories"):
        reader[3]


def test_episodes_that_are_listed_and_not_there_are_counted(by_hand_of):
    with pytest.warns(UserWarning, match="the files of 1 of 4 episodes are not there"):
        tables = LeRobotTables(by_hand_of("v2.1").folder)
    assert tables.missing == (3,) and len(tables) == 3


def test_tables_give_the_robot_its_names_and_ranges(by_hand):
    tables = LeRobotTables(by_hand.folder)
    states, actions = np.concatenate(by_hand.state), np.concatenate(by_hand.action)
    assert tables.robot.proprio == (("a", "b", "c", "d") if by_hand.version == "v2.1" else ("0", "1", "2", "3"))
    assert tables.robot.low == tuple(states.min(0).tolist()) and tables.robot.high == tuple(states.max(0).tolist())
    assert tables.bounds == ActionBounds(tuple(actions.min(0).tolist()), tuple(actions.max(0).tolist()))
    assert tables.success(0) is None and tables.instruction(1) == "pick up the yellow bottle"


def test_tables_are_read_where_the_video_is_missing_and_the_reader_says_so(by_hand):
    by_hand.video(0).unlink()
    assert LeRobotTables(by_hand.folder).state(0).shape == (7, 4)
    with pytest.raises(TrajectoryFormatError, match=rf"{by_hand.video(0).name}: there is no such video"):
        LeRobotReader(by_hand.folder, succeeded=True)


def test_who_succeeds_is_asked_for_where_the_data_set_does_not_say_it(by_hand):
    with pytest.raises(UserError, match="does not say which episodes succeed .*: say so, succeeded=True"):
        LeRobotReader(by_hand.folder)
    reader = LeRobotReader(by_hand.folder, succeeded={1})
    assert [t.success.any() for t in reader] == [False, True, False]


@pytest.mark.parametrize("key", ["next.success", "next.reward"])
def test_success_is_where_the_data_set_tells_it(by_hand_of, key):
    by_hand = by_hand_of("v3.0")
    told = np.zeros(18, bool if key == "next.success" else np.float32)
    told[[3, 4, 5, 6, 17]] = 1  # of the first episode from its fourth action on; of the last after its last row only
    by_hand.change_info(features=None)
    by_hand.change_info(features=_features(by_hand) | {key: {"dtype": "float32", "shape": [1], "names": None}})
    by_hand.change_table(lambda table: table.append_column(key, [told]))
    reader = LeRobotReader(by_hand.folder)
    assert reader[0].success.tolist() == [False] * 3 + [True] * 3
    assert not reader[1].success.any() and not reader[2].success.any()
    assert LeRobotReader(by_hand.folder, succeeded=False)[0].success.sum() == 0


def _features(by_hand):
    return by_hand._info([3, 16, 24], ["channel", "height", "width"], None)["features"]


def test_actions_in_the_robots_units_need_their_bounds(by_hand):
    def triple(table):
        at = table.column_names.index("action")
        return table.set_column(at, "action", [[[3 * x for x in row] for row in table["action"].to_pylist()]])

    by_hand.change_table(triple)
    with pytest.raises(UserError, match=r"episode 0: its actions reach \d.*should be in \[-1, 1\]: give their bounds"):
        LeRobotReader(by_hand.folder, succeeded=True)
    bounds = LeRobotTables(by_hand.folder).bounds
    found = LeRobotReader(by_hand.folder, succeeded=True, bounds=bounds)[0].actions
    assert np.abs(found).max() <= 1
    np.testing.assert_allclose(bounds.restored(found), 3 * by_hand.action[0][:-1], atol=1e-6)
    with pytest.raises(UserError, match="episode 0: action 0 is .* outside of its bounds 0 to 0.1: give wider bounds"):
        LeRobotReader(by_hand.folder, succeeded=True, bounds=ActionBounds((0, 0, 0), (0.1, 1, 1)))


def test_smaller_frames_are_averages_and_the_camera_goes_with_them(by_hand):
    camera = np.arange(12, dtype=np.float32).reshape(1, 3, 4)
    found = LeRobotReader(by_hand.folder, succeeded=True, size=(8, 12), camera=camera)[0]
    blocks = by_hand.frames[0].reshape(7, 8, 2, 12, 2, 3).mean((2, 4))
    assert np.abs(found.frames[:, 0] - blocks).max() <= 2  # libav averages in fixed point
    np.testing.assert_array_equal(found.camera[0], camera[0] * [[0.5], [0.5], [1]])
    with pytest.raises(UserError, match=r"camera is \[3, 4\]; it should be finite numbers \[1, 3, 4\]"):
        LeRobotReader(by_hand.folder, succeeded=True, camera=camera[0])
    with pytest.raises(UserError, match=r"size is 8; it should be \(height, width\)"):
        LeRobotReader(by_hand.folder, succeeded=True, size=8)


@pytest.mark.parametrize(("orientation", "rows", "columns"), [("flipped", -1, 1), ("turned", 1, -1)])
def test_pictures_come_out_upright(by_hand, orientation, rows, columns):
    found = LeRobotReader(by_hand.folder, succeeded=True, orientation=orientation)[1]
    np.testing.assert_array_equal(found.frames[:, 0], by_hand.frames[1][:, ::rows, ::columns])
    with pytest.raises(UserError, match="orientation is 'fliped' — did you mean \"flipped\""):
        LeRobotReader(by_hand.folder, succeeded=True, orientation="fliped")


def test_keys_of_libero_copies_are_found_and_others_are_named(by_hand_of):
    by_hand = by_hand_of("v3.0")
    features = _features(by_hand)
    features["state"], features["actions"] = features.pop("observation.state"), features.pop("action")
    by_hand.change_info(features=features)
    renamed = {"observation.state": "state", "action": "actions"}
    by_hand.change_table(lambda table: table.rename_columns([renamed.get(n, n) for n in table.column_names]))
    assert LeRobotReader(by_hand.folder, succeeded=True)[0].proprio.shape == (7, 4)
    with pytest.raises(UserError, match=r"the feature joints is missing \(found actions, "):
        LeRobotReader(by_hand.folder, succeeded=True, state="joints")
    with pytest.raises(UserError, match=r"there is no view 'left' \(found cam_high\)"):
        LeRobotReader(by_hand.folder, succeeded=True, views=["left"])


def test_files_of_the_hubs_cache_are_links_that_are_read(by_hand, tmp_path):
    snapshot, blobs = tmp_path / "hub/snapshots/abc", tmp_path / "hub/blobs"
    blobs.mkdir(parents=True)
    for i, path in enumerate(path for path in by_hand.folder.rglob("*") if path.is_file()):
        link = snapshot / path.relative_to(by_hand.folder)
        link.parent.mkdir(parents=True, exist_ok=True)
        path.rename(blobs / str(i))
        link.symlink_to(blobs / str(i))
    np.testing.assert_array_equal(LeRobotReader(snapshot, succeeded=True)[2].frames[:, 0], by_hand.frames[2])


def test_trajectory_reader_says_who_reads_the_folder(by_hand):
    with pytest.raises(TrajectoryFormatError, match="a data set of LeRobot .*: read it with LeRobotReader, or use"):
        TrajectoryReader(by_hand.folder)


@pytest.mark.parametrize("package", ["av", "pyarrow"])
def test_missing_package_is_one_line_that_names_the_extra(by_hand, package):
    code = (
        f"import sys; sys.modules[{package!r}] = None\nimport worldenv\n"
        f"try: worldenv.LeRobotReader({str(by_hand.folder)!r})\nexcept worldenv.UserError as error: print(error)"
    )
    root = Path(worldenv.__file__).parents[1]
    command = [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(root)!r})\n{code}"]
    found = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout
    assert found == f'LeRobot\'s files need {package}: pip install "worldenv[lerobot]"\n'


def test_packages_are_not_imported_before_they_are_needed():
    root = Path(worldenv.__file__).parents[1]
    code = (
        f"import sys; sys.path.insert(0, {str(root)!r})\nimport worldenv\nworldenv.LeRobotReader\n"
        "worldenv.write_lerobot\nprint(sorted({'av', 'pyarrow'} & set(sys.modules)))"
    )
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, check=True, timeout=120).stdout == "[]\n"
