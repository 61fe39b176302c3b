"""pi0 and SmolVLA under onnxruntime."""

import pytest
import torch

from worldenv.assemble import Parts
from worldenv.export import export_onnx


class Sized:
    size = (40, 36)


@pytest.mark.parametrize("kind", ["pi0", "smolvla"])
@torch.no_grad()
def test_what_is_exported_is_what_it_acts_with(load, kind):
    policy = load(kind, cameras=2)
    network, time = policy.network, torch.tensor([1.0, 0.6, 0.1])
    pixels, x = (
        torch.rand(3, 2, 3, policy.found.architecture.size, policy.found.architecture.size),
        torch.randn(3, 6, 12),
    )
    tokens = torch.tensor([[5, 6, 7, 4], [5, 6, -1, -1], [9, -1, -1, -1]])
    state = torch.randn(3, 12)
    prefix = network.prefix(pixels, tokens, state)
    wanted = network.velocity(prefix, x, time)
    kept = network.kept(prefix)
    for found, right in zip(network.step(x, time, **kept), wanted, strict=True):
        torch.testing.assert_close(found, right, rtol=1e-5, atol=1e-5)
    given = network.seen(pixels), tokens, *([] if network.state_in_step else [state])
    *found, real = network.language(*given)
    assert torch.equal(real, kept["real"]) and not real.all()
    for one, right in zip(found, (kept["keys"], kept["values"]), strict=True):
        torch.testing.assert_close(one.movedim(2, 1)[real], right.movedim(2, 1)[real], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("kind", ["pi0", "smolvla"])
def test_pieces_agree_under_onnxruntime(load, tmp_path, kind):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    files = export_onnx(Parts(None, load(kind, cameras=2), Sized(), None), tmp_path / "out", ("policy",))["files"]
    print(kind, {name: file["difference"] for name, file in files.items()})
    assert set(files) == {f"policy-{piece}.onnx" for piece in ("vision-tower", "language-model", "denoising-step")}
    assert max(file["difference"] for file in files.values()) <= 1e-4
    step = files["policy-denoising-step.onnx"]
    width = {"pi0": 16, "smolvla": 24}[kind]
    assert step["outputs"] == {"velocity": "float32 [batch, 6, 12]", "hidden": f"float32 [batch, 6, {width}]"}
    assert list(step["inputs"])[:5] == ["noisy", "time", "keys", "values", "real"]
