"""pi0 and SmolVLA under onnxruntime."""

import pytest
import torch

from worldenv.assemble import Parts
from worldenv.commands.export import export_onnx


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


PIECES = {  # piece -> inputs, and those of SmolVLA alone or of pi0 alone; outputs
    "vision-tower": (["pixels"], {}, ["patches"]),
    "language-model": (["patches", "tokens"], {"smolvla": ["state"]}, ["keys", "values", "real"]),
    "denoising-step": (["noisy", "time", "keys", "values", "real"], {"pi0": ["state"]}, ["velocity", "hidden"]),
}


@pytest.mark.parametrize("piece", PIECES)
@pytest.mark.parametrize("kind", ["pi0", "smolvla"])
def test_piece_agrees_under_onnxruntime(load, tmp_path, kind, piece):
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    parts = Parts(None, load(kind, cameras=2), Sized(), None)
    files = export_onnx(parts, tmp_path / "out", ("policy",), [f"policy-{piece}"])["files"]
    inputs, more, outputs = PIECES[piece]
    (file,) = files.values()
    assert file["difference"] <= 1e-4
    assert list(file["inputs"]) == [*inputs, *more.get(kind, [])] and list(file["outputs"]) == outputs
