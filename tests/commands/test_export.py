"""`worldenv-export`: what the built-in models give under onnxruntime, and what is refused."""

import json
import sys

import pytest
import torch

from worldenv import ops
from worldenv.assemble import Parts
from worldenv.commands import cli
from worldenv.commands.export import export_onnx, why_no_tensorrt
from worldenv.errors import UserError
from worldenv.interfaces.pieces import Piece
from worldenv.nn import compiled
from worldenv.records.model_files import save_model
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork

onnxruntime = pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")


class Exported:
    """A part that offers one piece, x -> f(x)."""

    size = (8, 8)

    def __init__(self, call, network=None):
        self.piece = Piece(network or torch.nn.Linear(3, 2), call, lambda n: {"x": torch.randn(n, 3)}, ("y",))

    def pieces(self, size):
        return {"only": self.piece}


@pytest.fixture
def refused(tmp_path):
    """The message, and that nothing was left."""

    def message(part, **given):
        with pytest.raises(UserError) as error:
            export_onnx(Parts(None, part, Exported(None), None), tmp_path / "out", ("policy",), **given)
        assert not list(tmp_path.iterdir())
        return str(error.value)

    return message


def test_command_writes_the_files_of_the_small_policy_and_the_causal_world(tiny, tmp_path, capsys):
    tiny.save(tmp_path)
    torch.manual_seed(0)
    config = CausalConfig(width=32, layers=1, heads=2, window=4, channels=8)
    save_model(tmp_path / "causal.safetensors", CausalNetwork(config), "causal", {}, levels=(1.0,))
    pieces = "policy-heads,world-decoder,world-denoising-step"
    words = ["--models", str(tmp_path), "--policy", "small", "--world", "causal", "--pieces", pieces]
    cli.export([str(tmp_path / "out"), *words])
    said = json.loads(capsys.readouterr().out)
    assert sorted(said["files"]) == [f"{name}.onnx" for name in sorted(pieces.split(","))]
    assert all(file["difference"] <= 1e-4 for file in said["files"].values())
    assert said["files"]["policy-heads.onnx"]["outputs"]["mu"] == "float32 [batch, 4, 7]"
    assert said["tensorrt"] == "not asked for" and ops.BACKEND != "reference"
    session = onnxruntime.InferenceSession(str(tmp_path / "out/world-denoising-step.onnx"))
    given = [one.name for one in session.get_inputs()]
    assert given == ["latents", "noise_level", "condition", "keys", "values", "place", "frame", "length"]


def test_encoder_of_the_small_policy_agrees_for_another_batch(tiny, tmp_path):
    policy = tiny.policy()
    parts = Parts(None, policy, Exported(None), None)
    export_onnx(parts, tmp_path / "out", ("policy",), ["policy-encoder"])
    session = onnxruntime.InferenceSession(str(tmp_path / "out/policy-encoder.onnx"))
    inputs = policy.pieces((8, 8))["encoder"].example(7)
    with torch.no_grad():
        wanted = policy.encoder(*inputs.values())
    found = torch.from_numpy(session.run(None, {name: x.numpy() for name, x in inputs.items()})[0])
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_output_that_differs_is_named_with_how_much(refused):
    seen = []

    def other(x):
        seen.append(x)
        return x + (0.5 if len(seen) > 3 else 0.0)  # while it is traced: after the three that torch computes

    said = refused(Exported(other))
    assert said.startswith("policy-only: y differs between onnxruntime and torch by") and "1e-04" in said


def test_numbers_that_are_not_finite_are_told_before_anything_is_exported(refused):
    assert refused(Exported(lambda x: x / 0)).startswith("policy-only: y is not finite in torch")


def test_weights_of_another_dtype_are_refused(refused):
    layer = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    assert "weights of torch.bfloat16 on cpu; export takes float32" in refused(Exported(layer, layer))


def test_batch_of_one_size_alone_cannot_be_exported(refused):
    said = refused(Exported(lambda x: x * torch.ones(len(x), 1)))
    assert said.startswith("policy-only does not run under onnxruntime with a batch of 1")


def test_compiled_networks_are_refused(refused, monkeypatch):
    monkeypatch.setattr(compiled, "WANTED", True)
    assert "WORLDENV_COMPILE is 1" in refused(Exported(torch.relu))


def test_part_without_pieces_and_unknown_pieces_are_named(refused):
    assert "the policy is int, which offers no pieces" in refused(3)
    said = refused(Exported(torch.relu), only=["policy-onl"])
    assert "no piece 'policy-onl'" in said and "policy-only" in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "arguments are required: folder"),
        (["out"], "nothing to export: name at least one of --policy, --world, --reflector"),
        ([".", "--policy", "small"], "is there already"),
    ],
)
def test_command_refuses_in_one_line(words, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as ended:
        cli.export(words)
    said = capsys.readouterr().err
    assert ended.value.code == 2 and said.startswith("worldenv-export: ") and said.count("\n") == 1 and message in said


def test_missing_package_names_the_extra(refused, monkeypatch):
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    assert 'export needs onnxscript: pip install "worldenv[export]"' in refused(Exported(torch.relu))


def test_tensorrt_says_in_one_line_what_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    assert why_no_tensorrt().startswith("no engines: TensorRT is not installed")
    monkeypatch.setitem(sys.modules, "tensorrt", sys)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert "no CUDA device" in why_no_tensorrt()


@pytest.mark.gpu
def test_engine_is_built_where_tensorrt_is_installed(tiny, tmp_path):
    pytest.importorskip("tensorrt")
    parts = Parts(None, tiny.policy(), Exported(None), None)
    said = export_onnx(parts, tmp_path / "out", ("policy",), ["policy-heads"], tensorrt=True)
    assert said["tensorrt"].startswith("engines built") and (tmp_path / "out/policy-heads.engine").stat().st_size
