import json
import os
import subprocess
import sys

import pytest
import torch

from worldenv import __version__, kernels, ops, terminal
from worldenv.commands import info


def run_info(*arguments, **environment):
    return subprocess.run(
        [sys.executable, "-P", "-m", "worldenv.commands.info", *arguments],
        capture_output=True,
        text=True,
        env=os.environ | environment,
        check=False,
    )


def test_json_names_the_versions_and_a_face_for_every_op():
    result = run_info("--json")
    assert result.returncode == 0, result.stderr
    document = json.loads(result.stdout)
    assert document["worldenv"] == __version__
    assert document["torch"] == torch.__version__
    assert [op["op"] for op in document["ops"]] == info.op_names()
    assert (document["triton"] is None) != (document["why_no_triton"] is None)
    assert (not document["cuda_devices"]) == (document["why_no_cuda"] is not None)


def test_person_reads_each_op_and_why_nothing_better_runs(capsys):
    info.main([])
    printed = capsys.readouterr().out
    for name in info.op_names():
        assert f"op {name} " in printed
    for backend in ("flash-attn", "xformers", "sdpa", "ours", "in use"):
        assert f"attention {backend} " in printed
    if not torch.cuda.is_available():
        assert "CUDA" in printed.split("nothing better: ")[1]


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has a better face than the one tested")
def test_compiled_face_runs_where_there_is_no_cuda_device():
    assert info.face("action_map") | {"why_not_better": ""} == {
        "op": "action_map",
        "device": "cpu",
        "face": "C++",
        "why_not_better": "",
    }


def test_backend_variable_is_reported_as_the_reason():
    result = run_info("--json", WORLDENV_BACKEND="reference")
    for op in json.loads(result.stdout)["ops"]:
        assert op["face"] == "reference"
        assert op["why_not_better"] == "WORLDENV_BACKEND=reference"


def test_unknown_backend_is_refused_with_the_one_that_exists():
    result = run_info(WORLDENV_BACKEND="fastest")
    assert result.returncode != 0
    assert "WORLDENV_BACKEND is 'fastest'; it should be 'reference'" in result.stderr


def test_missing_face_is_reported_with_the_reason_that_triton_gave(monkeypatch):
    monkeypatch.setattr(info, "why_no_cuda", lambda: None)
    monkeypatch.setattr(kernels, "TRITON_ERROR", "ImportError: broken")
    monkeypatch.setattr(ops, "BACKEND", "")
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: key != "CUDA")
    face = info.face("action_map")
    assert face["face"] == "reference"
    assert face["device"] == "cuda"
    assert "ImportError: broken" in face["why_not_better"]


@pytest.mark.parametrize(
    ("runs", "cuda_error", "face", "why"),
    [
        ({"action_map"}, "No module", "Triton", "CUDA C++: No module"),
        ({"action_map"}, None, "Triton", None),
        (set(), None, "CUDA C++", None),
    ],
)
def test_face_of_a_cuda_device_is_named_with_why_not_the_other(monkeypatch, runs, cuda_error, face, why):
    monkeypatch.setattr(info, "why_no_cuda", lambda: None)
    monkeypatch.setattr(ops, "BACKEND", "")
    monkeypatch.setattr(ops, "CUDA_ERROR", cuda_error)
    monkeypatch.setattr(kernels, "RUNS", runs)
    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", lambda op, key: key == "CUDA")
    expected = {"op": "action_map", "device": "cuda", "face": face, "why_not_better": why}
    assert info.face("action_map") == expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton can be forced where there is a CUDA device")
def test_triton_cannot_be_forced_without_a_cuda_device():
    result = run_info(WORLDENV_BACKEND="triton")
    assert result.returncode != 0
    assert "WORLDENV_BACKEND is 'triton', but torch finds no CUDA device" in result.stderr


def test_no_face_is_missing_on_the_cpu():
    assert ops.missing_faces(info.op_names(), torch.device("cpu")) == []


def test_ops_that_would_run_their_reference_on_a_cuda_device_are_named_in_order():
    names = ["known_pictures", "action_map", "unpatchify", "philox"]
    without = ["known_pictures", "unpatchify"] if torch.cuda.is_available() else names  # elsewhere none is registered
    assert ops.missing_faces(names, torch.device("cuda")) == without
    assert ops.missing_faces([], torch.device("cuda")) == []


def test_every_face_is_missing_where_the_reference_is_asked_for():
    code = "import torch; from worldenv import ops; print(ops.missing_faces(['philox', 'adaln'], torch.device('cpu')))"
    command, environment = [sys.executable, "-P", "-c", code], os.environ | {"WORLDENV_BACKEND": "reference"}
    result = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert result.stdout == "['philox', 'adaln']\n"


def test_unknown_op_is_an_error():
    with pytest.raises(ModuleNotFoundError, match="worldenv.ops.levitate"):
        ops.missing_faces(["philox", "levitate"], torch.device("cpu"))
    with pytest.raises(ModuleNotFoundError, match="worldenv.ops.levitate"):
        info.face("levitate")


def test_information_that_stdout_does_not_take_is_named(monkeypatch, capsys):
    monkeypatch.setattr("sys.stdout", terminal.Closed())
    with pytest.raises(SystemExit) as end:
        info.main(["--json"])
    assert end.value.code == 1 and capsys.readouterr().err == "worldenv-info: stdout is closed\n"
