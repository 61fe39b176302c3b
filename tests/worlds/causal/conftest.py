"""A tiny causal world model in latents: an autoencoder as diffusers writes it, and the transformer beside it."""

import pytest
import torch

from worldenv.worlds.causal.network import CausalConfig

SIZES = {"chunk": 4, "window": 4, "width": 32, "layers": 2, "heads": 2, "key_heads": 1, "map_shrink": 4}


def autoencoder(kind):
    diffusers = pytest.importorskip("diffusers")
    torch.manual_seed(1)
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


def write_latents(folder, kind="AutoencoderTiny", patch=8, channels=4):
    from worldenv.worlds.causal.latents import LatentCausalNetwork, read_tokenizer, save_causal_latents

    autoencoder(kind).save_pretrained(folder / "vae")
    torch.manual_seed(0)
    config = CausalConfig(image_size=64, patch=patch, channels=channels, **SIZES)
    network = LatentCausalNetwork(config, read_tokenizer(folder / "vae"))
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    save_causal_latents(folder, network, {"by": "hand"})
    return folder


@pytest.fixture(scope="session")
def make_autoencoder():
    return autoencoder


@pytest.fixture(scope="session")
def make_latents():
    return write_latents
