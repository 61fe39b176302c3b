"""RLinf's reward model as a reflector."""

import pytest
import torch
from torch.nn import functional as F

from worldenv.assemble import Parts
from worldenv.commands.export import export_onnx
from worldenv.errors import UserError
from worldenv.interfaces.reflector import Reflector
from worldenv.reflector.rlinf_resnet import load_rlinf_reflector

FILE = "resnet_rm.pth"


def by_hand(s, x):
    def conv(name, h, stride=1, padding=1):
        return F.conv2d(h, s[f"{name}.weight"], s[f"{name}.bias"], stride, padding)

    def norm(name, h):
        parts = (s[f"{name}.{part}"] for part in ("running_mean", "running_var", "weight", "bias"))
        return F.batch_norm(h, *parts)

    h = F.max_pool2d(F.relu(norm("net.0.1", conv("net.0.0", x, 2, 3))), 3, 2, 1)
    for level in range(1, 5):
        for j in range(2):
            block, stride = f"net.{level}.{j}", 2 if level > 1 and j == 0 else 1
            y = F.relu(norm(f"{block}.bn1", conv(f"{block}.conv1", h, stride)))
            y = norm(f"{block}.bn2", conv(f"{block}.conv2", y))
            h = F.relu(y + (conv(f"{block}.conv3", h, 2, 0) if stride == 2 else h))
    return torch.sigmoid(F.linear(h.mean((2, 3)), s["net.7.weight"], s["net.7.bias"]))


def test_the_reward_is_the_networks_probability(written, tabletop, draw):
    reflector = load_rlinf_reflector(written, tabletop)
    starts = tabletop.reset(tabletop.tasks[:4], range(4), "train")
    frames = torch.randint(256, (4, 8, 1, 64, 64, 3), dtype=torch.uint8)
    frames[:, ::2] = starts.seen.frames[:, None]
    state = reflector.begin(starts.seen, reflector.read(starts.texts))
    reward, stop = reflector.judge(frames, state)
    wanted = by_hand(draw[FILE](), frames.flatten(0, 2).movedim(-1, 1) / 127.5 - 1).view(4, 8)
    assert isinstance(reflector, Reflector) and reward.std() > 1e-3
    torch.testing.assert_close(reward, wanted, atol=1e-5, rtol=0)
    assert torch.equal(stop, reward > 0.5)


def test_a_state_dict_alone_is_read_too(release, tabletop, draw, same_weights, written):
    torch.save(dict(draw[FILE]()), release / FILE)
    assert same_weights(load_rlinf_reflector(release, tabletop), load_rlinf_reflector(written, tabletop))


def test_the_network_agrees_under_onnxruntime(written, tabletop, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    reflector = load_rlinf_reflector(written, tabletop)
    files = export_onnx(Parts(None, None, Sized(), reflector), tmp_path / "out", ("reflector",))["files"]
    assert files["reflector-reward.onnx"]["difference"] <= 1e-4
    frames = torch.randint(256, (5, 64, 64, 3), dtype=torch.uint8)
    session = onnxruntime.InferenceSession(str(tmp_path / "out/reflector-reward.onnx"))
    found = torch.from_numpy(session.run(None, {"frames": frames.numpy()})[0])
    wanted, _ = reflector.judge(frames[:, None, None], None)  # turned and scaled as it sees them
    torch.testing.assert_close(found, wanted[:, 0], rtol=0, atol=1e-4)


class Sized:
    size = (64, 64)


class Evil:
    def __reduce__(self):
        return print, ("code of a stranger was executed",)


def write(change):
    def work(folder):
        found = torch.load(folder / FILE, weights_only=True)
        change(found["model_state_dict"])
        torch.save(found, folder / FILE)

    return work


WRONG = {
    "missing": (lambda f: (f / FILE).unlink(), "has no resnet_rm.pth, its reward model; take another reflector"),
    "cut": (lambda f: (f / FILE).write_bytes((f / FILE).read_bytes()[:50]), "no complete file of torch.save"),
    "a program": (lambda f: torch.save({"model_state_dict": Evil()}, f / FILE), "holds more than tensors"),
    "no tensors": (lambda f: torch.save({"model_state_dict": 3}, f / FILE), "is no state dict"),
    "empty": (lambda f: torch.save({}, f / FILE), "is no state dict"),
    "other network": (lambda f: torch.save({"a": torch.ones(1)}, f / FILE), "lacks net.1.0.conv1.weight, so it is no"),
    "of tasks": (
        write(lambda s: s.update({"task_embedding.weight": torch.ones(2, 2)})),
        "knows LIBERO's tasks by numb",
    ),
    "key lacks": (write(lambda s: s.pop("net.7.bias")), "lacks net.7.bias"),
    "key too much": (write(lambda s: s.update({"net.9.bias": torch.ones(1)})), "has net.9.bias, which this model does"),
    "shape": (write(lambda s: s.update({"net.7.weight": torch.ones(2, 8)})), r"net.7.weight \[2, 8\] where \[1, 8\]"),
    "not finite": (write(lambda s: s["net.7.bias"].fill_(torch.nan)), "net.7.bias holds numbers that are not finite"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_wrong_is_said(release, tabletop, name):
    change, message = WRONG[name]
    change(release)
    with pytest.raises(UserError, match=message) as error:
        load_rlinf_reflector(release, tabletop)
    assert str(release) in str(error.value) and "\n" not in str(error.value)
