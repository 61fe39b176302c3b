"""Data sets of LeRobot that are damaged or lie are refused in one line that names the file."""

import json
import os

import numpy as np
import pytest

from worldenv.errors import UserError

pa = pytest.importorskip("pyarrow")
pytest.importorskip("av")

from worldenv.data.formats.lerobot.reader import LeRobotReader  # noqa: E402

pytestmark = pytest.mark.filterwarnings("ignore:.*the files of 1 of 4 episodes are not there")


def refused(by_hand, message, **options):
    """Opening or reading the first episode raises the package's own error, in one line."""
    with pytest.raises(UserError, match=message) as caught:
        LeRobotReader(by_hand.folder, **{"succeeded": True} | options)[0]
    assert "\n" not in str(caught.value) and str(by_hand.folder) in str(caught.value)


def set_column(name, change):
    """A change of a table: another column."""

    def changed(table):
        values = change(table[name].to_pylist())
        return table.set_column(table.column_names.index(name), name, [values])

    return changed


TABLES = {
    "a column is missing": (lambda t: t.drop_columns("action"), r"the column action is missing \(found episode_index"),
    "no timestamps": (lambda t: t.drop_columns("timestamp"), "the column timestamp is missing"),
    "a number too few": (
        set_column("action", lambda v: [x[:2] for x in v]),
        "the column action has .* it should have 3",
    ),
    "rows of several lengths": (
        set_column("action", lambda v: [v[0][:2], [*v[1], 0.0], *v[2:]]),
        "the column action has rows of 2, 3, 4 values",
    ),
    "NaN in actions": (
        set_column("action", lambda v: [*v[:2], [0.0, np.nan, 0.0], *v[3:]]),
        r"the column action has values that are not finite \(first at row 2\)",
    ),
    "infinite states": (
        set_column("observation.state", lambda v: [[np.inf] * 4, *v[1:]]),
        r"the column observation.state has values that are not finite \(first at row 0\)",
    ),
    "an empty entry": (set_column("action", lambda v: [None, *v[1:]]), "the column action has"),
    "texts": (set_column("action", lambda v: [list("abc") for _ in v]), "the column action holds string"),
    "a row too few": (lambda t: t.slice(0, len(t) - 1), "it has 6 rows, but meta lists 7|it has 17 rows, but .* 18"),
    "a row too many": (lambda t: pa.concat_tables([t, t.slice(0, 1)]), "it has 8 rows, .* 7|it has 19 rows, .* 18"),
    "rows of another episode": (
        set_column("episode_index", lambda v: [1, *v[1:]]),
        "episode 0: the table has 6 rows, meta lists 7",
    ),
    "frames out of order": (
        set_column("frame_index", lambda v: [1, 0, *v[2:]]),
        "episode 0: frame_index does not count",
    ),
    "timestamps of another rate": (
        set_column("timestamp", lambda v: [2 * x for x in v]),
        r"episode 0: row 1 has the timestamp 0.067 s; at the 30 frames/s of meta/info.json it is 0.033 s",
    ),
    "an unknown task": (
        set_column("task_index", lambda v: [7] * len(v)),
        "episode 0: has a task_index that meta/tasks",
    ),
    "two tasks in an episode": (
        set_column("task_index", lambda v: [1, *v[1:]]),
        "episode 0: has rows of several tasks",
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_wrong_table_is_refused(by_hand, case):
    change, message = TABLES[case]
    by_hand.change_table(change)
    refused(by_hand, message)


INFOS = {
    "no version": ({"codebase_version": None}, "info.json: codebase_version is missing"),
    "a later version": ({"codebase_version": "v4.0"}, "codebase_version is 'v4.0'; v2.0, v2.1, v3.0 are read"),
    "no features": ({"features": None}, "info.json: features is missing"),
    "features as list": ({"features": [1]}, r"features is \[1\]; it should be an object"),
    "no fps": ({"fps": None}, "info.json: fps is missing"),
    "fps of 0": ({"fps": 0}, "fps is 0; it should be a positive number"),
    "fps of another video": ({"fps": 29}, "it has 30 frames/s, meta/info.json says 29"),
    "fps a text": ({"fps": "30"}, "fps is '30'"),
    "no data path": ({"data_path": None}, "data_path is missing"),
    "data path a number": ({"data_path": 3}, "data_path is 3; it should be a text"),
    "out by ..": ({"data_path": "../other/{episode_index}{file_index}"}, "has places that are not known|leads out"),
    "out by .. only": ({"data_path": "data/../../recorded/x.parquet"}, r"\.\./\.\..* leads out of the data set"),
    "an absolute path": ({"video_path": "/etc/passwd"}, "the path '/etc/passwd' leads out of the data set"),
    "a place that runs code": ({"data_path": "{video_key.__class__}"}, "has places that are not known"),
    "a place without end": ({"video_path": "videos/{chunk_index:099999d}"}, "has places that are not known"),
    "chunks of nothing": ({"chunks_size": 0}, "chunks_size is 0"),
}


@pytest.mark.parametrize("case", INFOS)
def test_wrong_info_is_refused(by_hand, case):
    changes, message = INFOS[case]
    by_hand.change_info(**changes)
    refused(by_hand, message)


def test_wrong_feature_is_refused(by_hand):
    key = "observation.images.cam_high"
    for feature, changes, message in [
        ("action", {"shape": [5]}, "the column action has .* it should have 5 in each"),
        ("action", {"shape": [3, 1]}, r"the feature action has the shape \[3, 1\]; it should be \[n\]"),
        ("action", {"shape": [3], "dtype": "string"}, "the feature action is 'string'; it should be float32"),
        ("action", {"dtype": "float32"}, None),
        (key, {"shape": [32, 48, 3]}, "its pictures are 24 x 16, meta/info.json says 48 x 32"),
        (key, {"shape": [16, 24, 4]}, r"the shape \[16, 24, 4\]; pictures should be \[H, W, 3\] or"),
        (key, {"shape": [16, 24, 3], "dtype": "image"}, "the column observation.images.cam_high is missing"),
        (key, {"info": {"video.is_depth_map": True}, "dtype": "video"}, "no feature is a video or an image"),
    ]:
        by_hand.change_feature(feature, **changes)
        if message:
            refused(by_hand, message)


@pytest.mark.parametrize("name", ["info.json", "episodes.jsonl", "tasks.jsonl"])
def test_absent_or_broken_file_of_meta_is_refused(by_hand_of, name):
    by_hand = by_hand_of("v2.1")
    path = by_hand.folder / "meta" / name
    path.write_text('{"task_index": 0')
    refused(by_hand, rf"meta/{name}.* valid JSON")
    path.write_text("[1]")
    refused(by_hand, rf"meta/{name}")
    path.unlink()
    refused(by_hand, rf"meta/{name}: there is no such file")


@pytest.mark.parametrize("name", ["info.json", "episodes/chunk-000/file-000.parquet", "tasks.parquet"])
def test_absent_or_truncated_file_of_meta_is_refused_in_v3(by_hand_of, name):
    by_hand = by_hand_of("v3.0")
    path = by_hand.folder / "meta" / name
    os.truncate(path, path.stat().st_size // 2)
    refused(by_hand, f"meta/{name}")
    path.unlink()
    refused(by_hand, rf"meta/({name}|episodes): there is no")


def test_wrong_list_of_episodes_is_refused(by_hand_of):
    by_hand = by_hand_of("v2.1")
    path, good = by_hand.folder / "meta/episodes.jsonl", {"episode_index": 0, "tasks": ["a"], "length": 7}
    for changes, message in [
        ({"length": 8}, "it has 7 rows, but meta lists 8"),
        ({"length": 1}, "episode 0 has the length 1; .* at least 2"),
        ({"length": 10**12}, "episode 0 has the length 1000000000000"),
        ({"length": "7"}, "episode 0 has the length '7'"),
        ({"episode_index": -1}, "episode_index is -1"),
        ({"episode_index": 77}, "episode_000077.parquet: there is no such file, and none of the other episodes"),
        ({"tasks": "a"}, "episode 0 has the tasks 'a'"),
        ({"worldenv": {"camera": [1.0] * 11}}, r"its camera is \[1.0, .*; it should be 12 finite numbers"),
        ({"worldenv": {"start": "first"}}, "start is 'first': it should be an integer"),
    ]:
        path.write_text(json.dumps(good | changes))
        refused(by_hand, message)
    path.write_text(json.dumps(good) + "\n" + json.dumps(good))
    refused(by_hand, "lists an episode twice")
    path.write_text("")
    refused(by_hand, "lists no episodes")


def test_video_that_is_cut_off_or_of_another_episode_is_refused(by_hand, rewrite_video):
    path = by_hand.video(0)
    os.truncate(path, path.stat().st_size // 2)
    refused(by_hand, rf"{path.name}: the video cannot be read: .*Invalid data")
    path.write_bytes(b"")
    refused(by_hand, rf"{path.name}: the video cannot be read")
    frames = by_hand.frames[:1] if by_hand.version == "v2.1" else by_hand.frames
    rewrite_video(path, [np.concatenate(frames)[:-2]])
    refused(by_hand, r"it is 0.\d+ s long, but episodes are listed up to 0.\d+ s: it is truncated")
    rewrite_video(path, frames, fps=15)
    refused(by_hand, r"it has 15 frames/s, meta/info.json says 30")


def test_frames_that_are_lost_in_the_middle_are_refused(by_hand):
    import av

    path = by_hand.video(0)
    with av.open(str(path)) as container:
        packets = [bytes(packet) for packet in container.demux(video=0) if packet.size]
    content = path.read_bytes()
    place = content.index(packets[4])  # a key frame
    path.write_bytes(content[:place] + bytes(len(packets[4])) + content[place + len(packets[4]) :])
    refused(by_hand, rf"{path.name}: ")


def test_playlist_in_place_of_a_video_opens_nothing(by_hand, tmp_path):
    secret = tmp_path / "secret.mp4"
    by_hand.video(0).rename(secret)
    by_hand.video(0).write_text(f"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\nfile://{secret}\n#EXT-X-ENDLIST\n")
    refused(by_hand, "the video cannot be read")


def test_links_out_of_the_data_set_are_refused(by_hand, tmp_path):
    for path in (by_hand.table(0), by_hand.folder / "meta/info.json", by_hand.video(0)):
        other = tmp_path / "elsewhere"
        path.rename(other)
        path.symlink_to(other)
        refused(by_hand, rf"{path.name} is a link out of the data set: put the file itself there")
        path.unlink()
        other.rename(path)


def test_pictures_of_a_table_are_checked(by_hand_of):
    by_hand = by_hand_of("v3.0")
    key, cell = "observation.images.cam_high", {"bytes": b"GIF89a", "path": None}
    by_hand.change_feature(key, dtype="image")
    by_hand.change_table(lambda table: table.append_column(key, [[cell] * len(table)]))
    refused(by_hand, "file-000.parquet: picture 0: it is neither PNG nor JPEG")
    for bad, message in [
        ({"bytes": b"\x89PNG\r\n\x1a\nxx", "path": None}, "picture 0: "),
        ({"bytes": None, "path": "/etc/passwd"}, "has pictures that are not in the table"),
    ]:
        by_hand.change_table(lambda table, bad=bad: table.drop_columns(key).append_column(key, [[bad] * len(table)]))
        refused(by_hand, message)


@pytest.mark.parametrize("seed", range(3))
def test_table_with_broken_bytes_is_refused_or_read(by_hand_of, seed):
    by_hand = by_hand_of("v3.0")
    rng, paths = np.random.default_rng(seed), [by_hand.table(0), by_hand.video(0)]
    for path in [*paths, *by_hand.folder.glob("meta/**/*.parquet")]:
        content = path.read_bytes()
        for _ in range(10):
            broken = bytearray(content)
            for at in rng.choice(len(content), size=3):
                broken[at] = rng.integers(256)
            path.write_bytes(broken)
            try:
                LeRobotReader(by_hand.folder, succeeded=True)[0]
            except UserError as error:
                assert str(by_hand.folder) in str(error)
        path.write_bytes(content)
