"""Tiny video-diffusion pipelines with random weights, as diffusers and transformers write them."""

import json
import logging
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

diffusers = pytest.importorskip("diffusers")
transformers = pytest.importorskip("transformers")

from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.worlds.video.network import VideoConfig  # noqa: E402
from worldenv.worlds.video.world import load_video  # noqa: E402

WIDTH = 16  # of cross-attention
SETTINGS = {"size": 64, "chunk": 4, "memory": 3, "steps": 2, "geometry_size": 28}


def unet(**changed):
    torch.manual_seed(0)
    sizes = {
        "sample_size": 8,
        "in_channels": 8,
        "block_out_channels": (32, 32),
        "layers_per_block": 1,
        "cross_attention_dim": WIDTH,
        "num_attention_heads": (2, 2),
        "down_block_types": ("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        "up_block_types": ("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
        "projection_class_embeddings_input_dim": 24,
        "addition_time_embed_dim": 8,
    }
    return diffusers.UNetSpatioTemporalConditionModel(**sizes | changed)


def autoencoder(kind: str):
    torch.manual_seed(1)
    four = {"down_block_types": ["DownEncoderBlock2D"] * 4, "block_out_channels": [32] * 4, "layers_per_block": 1}
    if kind == "AutoencoderKL":
        return diffusers.AutoencoderKL(**four, up_block_types=["UpDecoderBlock2D"] * 4, scaling_factor=0.3)
    if kind == "AutoencoderKLTemporalDecoder":
        return diffusers.AutoencoderKLTemporalDecoder(**four)
    if kind == "AutoencoderDC":
        blocks, widths = ["ResBlock", "ResBlock", "EfficientViTBlock"], (8, 8, 16)
        return diffusers.AutoencoderDC(
            in_channels=3,
            latent_channels=8,
            attention_head_dim=4,
            encoder_block_types=blocks,
            decoder_block_types=blocks,
            encoder_block_out_channels=widths,
            decoder_block_out_channels=widths,
            encoder_layers_per_block=(1, 1, 1),
            decoder_layers_per_block=(1, 1, 1),
            encoder_qkv_multiscales=((), (), (3,)),
            decoder_qkv_multiscales=((), (), (3,)),
            downsample_block_type="Conv",
            upsample_block_type="interpolate",
            scaling_factor=0.41407,
        )
    if kind == "AutoencoderKLWan":
        sizes = {"base_dim": 8, "z_dim": 16, "dim_mult": [1, 1, 1, 1], "num_res_blocks": 1}
        return diffusers.AutoencoderKLWan(**sizes, temperal_downsample=[False, True, True])
    widths, ones = (8,) * 4, (1,) * 4
    return diffusers.AutoencoderTiny(
        encoder_block_out_channels=widths,
        decoder_block_out_channels=widths,
        num_encoder_blocks=ones,
        num_decoder_blocks=ones,
        latent_channels=4,
    )


def clip():
    torch.manual_seed(2)
    sizes = {"hidden_size": 32, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    config = transformers.CLIPVisionConfig(**sizes, image_size=16, patch_size=8, projection_dim=WIDTH)
    return transformers.CLIPVisionModelWithProjection(config)


def trunk():
    torch.manual_seed(3)
    sizes = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 2, "mlp_ratio": 2}
    return transformers.Dinov2Model(transformers.Dinov2Config(**sizes, image_size=42, patch_size=14))


VGGT = 16, 8, 32, 2, 4  # width, of a head, hidden, layers, registers


def vggt():
    """VGGT's tensors under the names in the authors' file, and some of what is not read."""
    torch.manual_seed(0)
    width, head, hidden, layers, registers = VGGT
    s = {}

    def add(name, *shape, about=0.0):
        s[f"aggregator.{name}"] = about + 0.3 * torch.randn(shape)

    def block(name, normed):
        for norm in ("norm1", "norm2", *(("attn.q_norm", "attn.k_norm") if normed else ())):
            n = head if "attn" in norm else width
            add(f"{name}.{norm}.weight", n, about=1.0)
            add(f"{name}.{norm}.bias", n)
        for layer, out, inside in (
            ("attn.qkv", 3 * width, width),
            ("attn.proj", width, width),
            ("mlp.fc1", hidden, width),
            ("mlp.fc2", width, hidden),
        ):
            add(f"{name}.{layer}.weight", out, inside)
            add(f"{name}.{layer}.bias", out)
        for scale in ("ls1", "ls2"):
            add(f"{name}.{scale}.gamma", width, about=0.5)

    add("camera_token", 1, 2, 1, width)
    add("register_token", 1, 2, registers, width)
    add("patch_embed.cls_token", 1, 1, width)
    add("patch_embed.pos_embed", 1, 1 + 4, width)
    add("patch_embed.register_tokens", 1, registers, width)
    add("patch_embed.mask_token", 1, width)
    add("patch_embed.patch_embed.proj.weight", width, 3, 14, 14)
    add("patch_embed.patch_embed.proj.bias", width)
    add("patch_embed.norm.weight", width, about=1.0)
    add("patch_embed.norm.bias", width)
    for i in range(layers):
        block(f"patch_embed.blocks.{i}", False)
        block(f"frame_blocks.{i}", True)
        block(f"global_blocks.{i}", True)
    s["camera_head.token_norm.weight"] = torch.ones(2 * width)
    return s


def write_vggt(path: Path) -> Path:
    path.mkdir(exist_ok=True)
    save_file(vggt(), path / "model.safetensors")
    (path / "config.json").write_text('{"img_size": 518, "patch_size": 14, "embed_dim": 1024}')
    return path


def write_pipeline(path: Path, vggt: bool = False, **settings) -> Path:
    transformers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.set_verbosity(logging.ERROR)
    unet().save_pretrained(path / "unet")
    autoencoder("AutoencoderTiny").save_pretrained(path / "vae")
    clip().save_pretrained(path / "image_encoder")
    write_vggt(path / "geometry") if vggt else trunk().save_pretrained(path / "geometry")
    index = {"_class_name": "StableVideoDiffusionPipeline", "unet": ["diffusers", "UNetSpatioTemporalConditionModel"]}
    (path / "model_index.json").write_text(json.dumps(index))
    (path / "worldenv.json").write_text(json.dumps(SETTINGS | settings))
    return path


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folder, written once; a test that changes one takes `release`."""
    return write_pipeline(tmp_path_factory.mktemp("pipelines") / "svd")


@pytest.fixture
def release(written, tmp_path):
    shutil.copytree(written, tmp_path / "svd")
    return tmp_path / "svd"


@pytest.fixture(scope="session")
def tabletop():
    return TabletopSuite()


@pytest.fixture(scope="session")
def load(written, tabletop):
    """A world model with some settings, from a folder or the written one."""

    def made(folder: Path | None = None, **settings):
        return load_video(folder or written, tabletop, VideoConfig(**{**SETTINGS, **settings}))

    return made


@pytest.fixture(scope="session")
def make_unet():
    return unet


@pytest.fixture(scope="session")
def make_autoencoder():
    return autoencoder
