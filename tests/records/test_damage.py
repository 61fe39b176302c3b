"""Run folders that are damaged: the file is named, in one line, and nothing is passed over in silence."""

import json
import os
import shutil

import pytest

from worldenv.errors import UserError
from worldenv.records import events
from worldenv.records.report import write_report
from worldenv.records.run_folder import RunFolder

CONFIG = {"seed": 3}
SUCCESS = {"oracle": 0.5, "own_stop": 0.5, "no_stop": 0.25, "n": 4}
RESULT = {"success_before": SUCCESS, "success_after": SUCCESS, "wall_s": 3.0, "command": "worldenv-train"}


@pytest.fixture
def run(tmp_path):
    with RunFolder.create(tmp_path / "run", CONFIG) as folder:
        for step in range(3):
            folder.log("post_train", step, reward=0.5, loss=float("nan"))
        folder.write_result(RESULT)
        yield folder


def refused(act, *given):
    with pytest.raises(UserError) as caught:
        act(*given)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "line",
    [
        "",
        "{",
        "7",
        "[]",
        '{"stage": "post_train"}',
        '{"stage": "post_train", "step": "0"}',
        '{"stage": "post_train", "step": true}',
        '{"stage": "post_train", "step": 0.5}',
        '{"stage": "post_train", "step": -1}',
        '{"stage": ["post_train"], "step": 0}',
        '{"stage": "\\ud800", "step": 0}',
        '{"stage": "post_train", "step": 0, "time_s": "long"}',
        '{"stage": "post_train", "step": 0, "time_s": -1}',
        '{"stage": "post_train", "step": 0, "time_s": 1e12}',  # a result takes no more
        '{"stage": "post_train", "step": 0, "reward": NaN}',
        '{"stage": "post_train", "step": 0, "reward": 1e999}',
        '{"stage": "post_train", "step": 0, "reward": [1]}',
        '{"stage": "post_train", "step": 0, "reward": ' + 400 * "9" + "}",
        '{"stage": "post_train", "step": 0, "non_finite": 1}',
        "\0\0\0",
        "\x1b\xff",
    ],
)
def test_damaged_line_of_metrics_is_named_by_its_number(run, line):
    path = run.path / "metrics.jsonl"
    good = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(good[0] + line.encode("latin-1") + b"\n" + b"".join(good[1:]))
    run.close()
    for act in (RunFolder.resume, lambda path: write_report(RunFolder(path))):
        assert f"{path}, line 2, is damaged (" in refused(act, run.path)


@pytest.mark.parametrize("torn", ["", "{", '{"stage": "post_train", "step"', '{"stage": "post\0\0\0', "\0\0\0"])
def test_last_line_as_a_kill_or_a_power_failure_leaves_it_is_passed_over(run, torn):
    path = run.path / "metrics.jsonl"
    good = path.read_bytes()
    path.write_bytes(good + torn.encode())
    assert len(RunFolder(run.path).metrics("post_train")) == 3
    run.close()
    with RunFolder.resume(run.path) as resumed:
        assert resumed.dropped_lines == bool(torn) and path.read_bytes() == good


@pytest.mark.parametrize("content", [b"\0\0\0", b"7", b'{"step": 0', b"noise", b'{"stage": "a", "step": 0}\nnoise'])
def test_last_line_that_no_kill_leaves_is_damage(run, content):
    (run.path / "metrics.jsonl").write_bytes(content)
    assert "is damaged (" in refused(run.metrics, "a")


def test_line_that_could_not_be_read_again_is_not_written(run):
    before = (run.path / "metrics.jsonl").read_bytes()
    assert "metrics.jsonl cannot hold" in refused(run.log, "a", -1)
    with pytest.raises(UserError, match="`big` is out of range"):
        run.log("a", 0, big=10**400)
    assert (run.path / "metrics.jsonl").read_bytes() == before


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("success_after", 5),
        ("success_after", {"oracle": 0.5}),
        ("success_after", SUCCESS | {"oracle": "high"}),
        ("success_after", SUCCESS | {"oracle": 1.5}),
        ("success_after", SUCCESS | {"n": 0}),
        ("success_after", SUCCESS | {"intervals": {"oracle": [0.1]}}),
        ("success_after", SUCCESS | {"intervals": {"oracle": [None, 1]}}),
        ("success_after", SUCCESS | {"per_task": {"a": None}}),
        ("success_after", SUCCESS | {"per_task": {"a": {"instruction": 3}}}),
        ("imagined_success", {"before": [0.5]}),
        ("imagined_success", True),
        ("imagined_minus_true", "x"),
        ("false_stop", []),
        ("world_model", {"psnr": 3}),
        ("world_model", {"psnr": ["30"]}),
        ("world_model", [1]),
        ("consistency", 3),
        ("consistency", {"agreement": {"share": 2}}),
        ("consistency", {"after": {"agreement": {"begins": {"grasp": -1}}}}),
        ("consistency", {"before": {"reflector": {"true": {"ece": "0.1"}}}}),
        ("consistency", {"guard": {"auroc": 1.1}}),
        ("consistency", {"guard": {"interval": [0.5]}}),
        ("consistency", {"things": {"moved_thing": {"true": {"below_60": [1]}}}}),
        ("consistency", {"things": {"by_chunk": {"true": {"moved": {"split": 0.5}}}}}),
        ("counts", {"groups": -1}),
        ("time_shares", {"rollout": 1e9}),
        ("wall_s", "long"),
        ("wall_s", -1),
        ("seed", [3]),
        ("run", 3),
        ("command", ["worldenv-train"]),
    ],
)
def test_field_of_a_result_that_is_wrong_is_named(run, field, value):
    path = run.path / "result.json"
    path.write_text(json.dumps(RESULT | {field: value}))
    for act in (run.result, lambda: write_report(run)):
        message = refused(act)
        assert message.startswith(f"{path}: {field}"), message


def test_result_may_lack_fields_and_have_others(run):
    sparse = {
        "success": SUCCESS | {"own_stop": None, "intervals": None},
        "mine": [1],
        "false_stop": 0.5,
        "counts": None,
    }
    sparse |= {"world_model": {"psnr": [None, 30]}, "imagined_success": {"before": None, "n": 4}, "wall_s": None}
    run.write_result(sparse)
    assert run.result() == sparse and write_report(run).exists()


@pytest.mark.parametrize("name", ["config.json", "result.json", "metrics.jsonl"])
@pytest.mark.parametrize("damage", ["folder", "pipe", "loop", "binary", "huge"])
def test_what_stands_in_place_of_a_file_is_named(run, name, damage):
    path = run.path / name
    run.close()
    path.unlink()
    {
        "folder": path.mkdir,
        "pipe": lambda: os.mkfifo(path),
        "loop": lambda: path.symlink_to(path.name),
        "binary": lambda: path.write_bytes(b"\xff\0\n" * 9),
        "huge": lambda: (path.touch(), os.truncate(path, 1 << 42)),
    }[damage]()
    assert str(path) in refused(lambda: write_report(RunFolder(run.path)))
    if name != "result.json":
        assert str(path) in refused(RunFolder.resume, run.path)


@pytest.mark.parametrize(
    ("name", "damage", "message"),
    [
        ("a.webp", lambda path: path.write_bytes(b"RIFF"), "is no complete WebP file"),
        ("a.webp", lambda path: path.mkdir(), "is a folder"),
        ("a.webp", lambda path: path.symlink_to("/etc/passwd"), "is a link; the report shows files of the run only"),
        ("a.txt", lambda path: path.symlink_to("/etc/passwd"), "is a link; the report shows files of the run only"),
        ("a.txt", lambda path: path.mkdir(), "is a folder"),
    ],
)
def test_video_that_is_damaged_or_leads_out_of_the_run_is_named(run, name, damage, message):
    (run.videos / "a.webp").write_bytes(b"RIFF\x04\0\0\0WEBP")
    write_report(run)
    (run.videos / name).unlink(missing_ok=True)
    damage(run.videos / name)
    assert f"{run.videos / name} {message}" in refused(write_report, run)


def test_text_that_is_no_utf8_is_shown_all_the_same(run):
    (run.videos / "a.webp").write_bytes(b"RIFF\x04\0\0\0WEBP")
    (run.videos / "a.txt").write_bytes(b"caf\xe9")
    run.write_result(RESULT | {"command": "worldenv-train \udce9"})
    text = write_report(run).read_text(encoding="utf-8")
    assert "caf\N{REPLACEMENT CHARACTER}" in text and "worldenv-train \\udce9" in text


def test_copy_for_tensorboard_that_fails_is_said_once_and_the_run_goes_on(run, monkeypatch):
    def full(*given):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(events.Events, "flush", full)
    with pytest.warns(
        UserWarning, match="tensorboard: the copy of metrics.jsonl .*No space left.* goes on without it"
    ) as said:
        run.log("post_train", 3)
        run.log("post_train", 4)
    assert len(said) == 1 and [line["step"] for line in run.metrics("post_train")] == [0, 1, 2, 3, 4]


def test_copy_for_tensorboard_follows_no_link(run, tmp_path):
    run.close()
    shutil.rmtree(run.path / "tensorboard")
    (tmp_path / "mine").mkdir()
    (run.path / "tensorboard").symlink_to(tmp_path / "mine")
    with RunFolder.resume(run.path) as resumed, pytest.warns(UserWarning, match="File exists"):
        resumed.log("post_train", 3)
    assert not any((tmp_path / "mine").iterdir())
