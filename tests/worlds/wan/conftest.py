"""Tiny world models with random weights, in the layout and under the names in which RLinf publishes them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

pytest.importorskip("diffusers")

from worldenv.data.formats.rlinf import RlinfConfig  # noqa: E402
from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.worlds.wan.world import load_wan  # noqa: E402

WIDTH, HEAD, LAYERS, INNER, FREQUENCIES, CHANNELS, ACTIONS = 24, 12, 2, 32, 16, 48, 7
SETTINGS = {"size": 64, "head": HEAD, "steps": 2, "orientation": "upright"}
DIT, VAE, REWARD = "model-00001.safetensors", "Wan2.2_VAE.pth", "resnet_rm.pth"


class Drawn(dict):
    """A state dict to which tensors are added by name, all drawn."""

    def add(self, name: str, *shape: int, std: float = 0.3) -> None:
        self[name] = std * torch.randn(shape)

    def layer(self, name: str, *shape: int, std: float | None = None) -> None:
        inside = torch.Size(shape[1:]).numel()
        self.add(f"{name}.weight", *shape, std=std or inside**-0.5)
        self.add(f"{name}.bias", shape[0], std=0.1)

    def gamma(self, name: str, *shape: int) -> None:
        self[name] = 1 + 0.2 * torch.randn(shape)


def transformer(channels: int = CHANNELS, actions: int = ACTIONS) -> Drawn:
    torch.manual_seed(0)
    s = Drawn()
    s.layer("patch_embedding", WIDTH, channels, 1, 2, 2)
    s.layer("time_embedding.0", WIDTH, FREQUENCIES)
    s.layer("time_embedding.2", WIDTH, WIDTH)
    s.layer("time_projection.1", 6 * WIDTH, WIDTH)
    s.layer("action_mlp1.0", WIDTH, actions)
    s.layer("action_mlp1.2", WIDTH, WIDTH)
    s.layer("action_mlp2.0", 4 * WIDTH, 4 * actions)
    s.layer("action_mlp2.2", WIDTH, 4 * WIDTH)
    for i in range(LAYERS):
        block = f"blocks.{i}"
        for kind in ("self_attn", "cross_attn"):
            for part in "qkvo":
                s.layer(f"{block}.{kind}.{part}", WIDTH, WIDTH)
            s.gamma(f"{block}.{kind}.norm_q.weight", WIDTH)
            s.gamma(f"{block}.{kind}.norm_k.weight", WIDTH)
        s.gamma(f"{block}.norm3.weight", WIDTH)
        s.add(f"{block}.norm3.bias", WIDTH)
        s.layer(f"{block}.ffn.0", INNER, WIDTH)
        s.layer(f"{block}.ffn.2", WIDTH, INNER)
        s.add(f"{block}.modulation", 1, 6, WIDTH)
    s.layer("head.head", channels * 4, WIDTH)
    s.add("head.modulation", 1, 2, WIDTH)
    return s


def autoencoder(width: int = 4, factors=(1, 1, 2, 2), blocks: int = 1, channels: int = CHANNELS) -> Drawn:
    torch.manual_seed(1)
    s, in_time = Drawn(), (False, True, True)
    widths, last = [width * f for f in factors], len(factors) - 1

    def residual(prefix: str, a: int, b: int) -> None:
        s.gamma(f"{prefix}.residual.0.gamma", a, 1, 1, 1)
        s.layer(f"{prefix}.residual.2", b, a, 3, 3, 3)
        s.gamma(f"{prefix}.residual.3.gamma", b, 1, 1, 1)
        s.layer(f"{prefix}.residual.6", b, b, 3, 3, 3)
        if a != b:
            s.layer(f"{prefix}.shortcut", b, a, 1, 1, 1)

    def resampled(prefix: str, c: int, at_once: int | None) -> None:
        s.layer(f"{prefix}.resample.1", c, c, 3, 3)
        if at_once is not None:
            s.layer(f"{prefix}.time_conv", at_once, c, 3, 1, 1)

    def ends(side: str, inside: int, first: int, middle: int, final: int, out: int) -> None:
        s.layer(f"{side}.conv1", first, inside, 3, 3, 3)
        residual(f"{side}.middle.0", middle, middle)
        s.gamma(f"{side}.middle.1.norm.gamma", middle, 1, 1)
        s.layer(f"{side}.middle.1.to_qkv", 3 * middle, middle, 1, 1)
        s.layer(f"{side}.middle.1.proj", middle, middle, 1, 1)
        residual(f"{side}.middle.2", middle, middle)
        s.gamma(f"{side}.head.0.gamma", final, 1, 1, 1)
        s.layer(f"{side}.head.2", out, final, 3, 3, 3)

    ends("encoder", 12, width, widths[-1], widths[-1], 2 * channels)
    ends("decoder", channels, widths[-1], widths[-1], width, 12)
    before, down, up = [width, *widths[:-1]], "encoder.downsamples", "decoder.upsamples"
    for i, (a, b) in enumerate(zip(before, widths, strict=True)):
        for j in range(blocks):
            residual(f"{down}.{i}.downsamples.{j}", b if j else a, b)
        if i < last:
            resampled(f"{down}.{i}.downsamples.{blocks}", b, b if in_time[i] else None)
    for i, (a, b) in enumerate(zip([widths[-1], *widths[:0:-1]], widths[::-1], strict=True)):
        for j in range(blocks + 1):
            residual(f"{up}.{i}.upsamples.{j}", b if j else a, b)
        if i < last:
            resampled(f"{up}.{i}.upsamples.{blocks + 1}", b, 2 * b if in_time[::-1][i] else None)
    s.layer("conv1", 2 * channels, 2 * channels, 1, 1, 1)
    s.layer("conv2", channels, channels, 1, 1, 1)
    return s


def reward_model(widths=(4, 8, 8, 8)) -> Drawn:
    torch.manual_seed(2)
    s = Drawn()

    def norm(name: str, c: int) -> None:
        s.gamma(f"{name}.weight", c)
        s.add(f"{name}.bias", c)
        s.add(f"{name}.running_mean", c)
        s[f"{name}.running_var"] = 0.5 + torch.rand(c)
        s[f"{name}.num_batches_tracked"] = torch.tensor(9)

    s.layer("net.0.0", widths[0], 3, 7, 7)
    norm("net.0.1", widths[0])
    for level, (a, b) in enumerate(zip([widths[0], *widths[:-1]], widths, strict=True), 1):
        for j in range(2):
            block, inside = f"net.{level}.{j}", b if j else a
            s.layer(f"{block}.conv1", b, inside, 3, 3)
            s.layer(f"{block}.conv2", b, b, 3, 3)
            if level > 1 and j == 0:
                s.layer(f"{block}.conv3", b, inside, 1, 1)
            norm(f"{block}.bn1", b)
            norm(f"{block}.bn2", b)
    s.layer("net.7", 1, widths[-1], std=2.0)
    return s


def write_folder(path: Path, **settings) -> Path:
    path.mkdir(parents=True)
    save_file(dict(transformer()), path / DIT)
    torch.save(dict(autoencoder()), path / VAE)
    torch.save({"model_state_dict": dict(reward_model()), "epoch": 3}, path / REWARD)
    (path / "worldenv.json").write_text(json.dumps(SETTINGS | settings))
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folder, written once; a test that changes one takes `release`."""
    return write_folder(tmp_path_factory.mktemp("rlinf") / "wan")


@pytest.fixture
def release(written, tmp_path):
    shutil.copytree(written, tmp_path / "wan")
    return tmp_path / "wan"


@pytest.fixture(scope="session")
def tabletop():
    return TabletopSuite()


@pytest.fixture(scope="session")
def load(written, tabletop):
    """A world model with some settings."""
    return lambda **settings: load_wan(written, tabletop, RlinfConfig(**{**SETTINGS, **settings}))


@pytest.fixture(scope="session")
def draw():
    """What writes each file, by its name."""
    return {DIT: transformer, VAE: autoencoder, REWARD: reward_model}
