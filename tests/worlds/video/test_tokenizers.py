"""Frames to latents and back by each of diffusers' autoencoders, against the library's own calls."""

import pytest
import torch

from worldenv.worlds.components import inspect_diffusers
from worldenv.worlds.tokenizers import LEVELS, FrameTokenizer

SHAPES = {  # channels, pixels of a latent's side
    "AutoencoderKL": (4, 8),
    "AutoencoderKLTemporalDecoder": (4, 8),
    "AutoencoderDC": (8, 4),
    "AutoencoderTiny": (4, 8),
    "AutoencoderKLWan": (16, 8),
}


def by_the_library(model, kind, video):
    """Latents as the library's pipelines scale them, and the pictures again."""
    if kind == "AutoencoderTiny":
        latents = model.encode(video).latents
        return latents, model.decode(latents).sample
    if kind == "AutoencoderDC":
        latents = model.encode(video).latent
        return latents * 0.41407, model.decode(latents).sample
    if kind == "AutoencoderKLWan":
        latents = model.encode(video[:, :, None]).latent_dist.mode()
        mean, std = (torch.tensor(model.config[f"latents_{name}"]).view(-1, 1, 1) for name in ("mean", "std"))
        return (latents[:, :, 0] - mean) / std, model.decode(latents).sample[:, :, 0]
    latents = model.encode(video).latent_dist.mode()
    more = {"num_frames": 1} if kind == "AutoencoderKLTemporalDecoder" else {}
    return latents * model.config.scaling_factor, model.decode(latents, **more).sample


@pytest.mark.parametrize("kind", LEVELS)
@torch.no_grad()
def test_it_is_the_librarys_and_is_loaded_by_its_folder(tmp_path, make_autoencoder, kind):
    library = make_autoencoder(kind).eval()
    library.save_pretrained(tmp_path / "vae")
    tokenizer = FrameTokenizer(inspect_diffusers(tmp_path / "vae", LEVELS).read(None))
    frames = torch.randint(256, (2, 32, 48, 3), dtype=torch.uint8)
    latents, pictures = by_the_library(library, kind, frames.movedim(-1, 1) / 127.5 - 1)
    channels, shrink = SHAPES[kind]
    assert (tokenizer.channels, tokenizer.shrink) == (channels, shrink)
    found = tokenizer.encode(frames)
    assert found.shape == (2, channels, 32 // shrink, 48 // shrink)
    torch.testing.assert_close(found, latents, atol=1e-4, rtol=1e-4)
    wanted = (pictures * 127.5 + 127.5).clamp(0, 255).round().movedim(1, -1)
    assert ((tokenizer.decode(found).float() - wanted).abs() <= 1).all()
    alone = tokenizer.decode(found[1:])
    assert ((alone[0].int() - tokenizer.decode(found)[1].int()).abs() <= 1).all()
    assert not any(parameter.requires_grad for parameter in tokenizer.parameters())
