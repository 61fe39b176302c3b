"""The video autoencoder of Wan 2.2, which makes one latent of the first frame and one of every four after it."""

import re
from collections.abc import Callable, Mapping
from math import isqrt
from typing import Any

import torch
from torch import Tensor, nn

from worldenv.data.formats.rlinf import GROUP
from worldenv.errors import UserError
from worldenv.records.released import Shape, library

# Mean and standard deviation of the 48 channels, from Wan 2.2's own code: no file holds them.
MEAN = (
    *(-0.2289, -0.0052, -0.1323, -0.2339, -0.2799, 0.0174, 0.1838, 0.1557, -0.1382, 0.0542, 0.2813, 0.0891),
    *(0.1570, -0.0098, 0.0375, -0.1825, -0.2246, -0.1207, -0.0698, 0.5109, 0.2665, -0.2108, -0.2158, 0.2502),
    *(-0.2055, -0.0322, 0.1109, 0.1567, -0.0729, 0.0899, -0.2799, -0.1230, -0.0313, -0.1649, 0.0117, 0.0723),
    *(-0.2839, -0.2083, -0.0520, 0.3748, 0.0152, 0.1957, 0.1433, -0.2944, 0.3573, -0.0548, -0.1681, -0.0667),
)
STD = (
    *(0.4765, 1.0364, 0.4514, 1.1677, 0.5313, 0.4990, 0.4818, 0.5013, 0.8158, 1.0344, 0.5894, 1.0901),
    *(0.6885, 0.6165, 0.8454, 0.4978, 0.5759, 0.3523, 0.7135, 0.6804, 0.5833, 1.4146, 0.8986, 0.5659),
    *(0.7069, 0.5338, 0.4889, 0.4917, 0.4069, 0.4999, 0.6866, 0.4093, 0.5709, 0.6065, 0.6415, 0.4944),
    *(0.5726, 1.2042, 0.5458, 1.6887, 0.3971, 1.0600, 0.3943, 0.5537, 0.5444, 0.4089, 0.7468, 0.7744),
)
# Names of diffusers -> those in the file. What follows a level's residual blocks has the number after theirs.
RENAMES = (
    (r"(resnets\.\d+)\.norm1\.", r"\1.residual.0."),
    (r"(resnets\.\d+)\.conv1\.", r"\1.residual.2."),
    (r"(resnets\.\d+)\.norm2\.", r"\1.residual.3."),
    (r"(resnets\.\d+)\.conv2\.", r"\1.residual.6."),
    (r"\.conv_shortcut\.", ".shortcut."),
    (r"\.mid_block\.attentions\.0\.", ".middle.1."),
    (r"\.mid_block\.resnets\.0\.", ".middle.0."),
    (r"\.mid_block\.resnets\.1\.", ".middle.2."),
    (r"\.down_blocks\.(\d+)\.resnets\.", r".downsamples.\1.downsamples."),
    (r"\.up_blocks\.(\d+)\.resnets\.", r".upsamples.\1.upsamples."),
    (r"\.down_blocks\.(\d+)\.downsampler\.", r".downsamples.\1.downsamples.{blocks}."),
    (r"\.up_blocks\.(\d+)\.upsampler\.", r".upsamples.\1.upsamples.{blocks_up}."),
    (r"\.conv_in\.", ".conv1."),
    (r"\.norm_out\.", ".head.0."),
    (r"\.conv_out\.", ".head.2."),
    (r"^quant_conv\.", "conv1."),
    (r"^post_quant_conv\.", "conv2."),
)


def vae_sizes(shapes: Mapping[str, Shape]) -> dict[str, Any]:
    """The arguments of diffusers' AutoencoderKLWan, from the shapes in the file.

    Raises UserError if it is another autoencoder.
    """
    down = "encoder.downsamples.{}.downsamples.{}."
    try:
        width, pixels = shapes["encoder.conv1.weight"][:2]
        channels = shapes["conv2.weight"][0]
        levels = 1 + max(int(found[1]) for key in shapes if (found := re.match(r"encoder\.downsamples\.(\d+)\.", key)))
        blocks = 1
        while f"{down.format(0, blocks)}residual.2.weight" in shapes:
            blocks += 1
        widths = [shapes[f"{down.format(level, 0)}residual.2.weight"][0] for level in range(levels)]
        decoder_width = shapes["decoder.conv1.weight"][0]
    except (KeyError, ValueError, IndexError) as error:
        raise UserError(f"it is no autoencoder of Wan 2.2 (it lacks {error})") from error
    in_time = [f"{down.format(level, blocks)}time_conv.weight" in shapes for level in range(levels - 1)]
    factors, patch = [w // width for w in widths], isqrt(pixels // 3)
    if channels != len(MEAN) or 3 * patch**2 != pixels or decoder_width % factors[-1] or 2 ** sum(in_time) != GROUP:
        raise UserError(
            f"it has {channels} channels in latents of {2 ** sum(in_time)} frames; the autoencoder of Wan 2.2 has "
            f"{len(MEAN)} in latents of {GROUP}"
        )
    return {
        "base_dim": width,
        "decoder_base_dim": decoder_width // factors[-1],
        "z_dim": channels,
        "dim_mult": factors,
        "num_res_blocks": blocks,
        "temperal_downsample": in_time,  # as diffusers writes it
        "is_residual": True,
        "in_channels": pixels,
        "out_channels": pixels,
        "patch_size": patch,
        "scale_factor_spatial": patch * 2 ** (levels - 1),
        "latents_mean": list(MEAN),
        "latents_std": list(STD),
    }


def build_vae(sizes: Mapping[str, Any]) -> nn.Module:
    """diffusers' autoencoder, on the device meta."""
    models = library("diffusers.models.autoencoders.autoencoder_kl_wan")
    with torch.device("meta"):
        return models.AutoencoderKLWan(**sizes)


def names_in_file(model: nn.Module) -> dict[str, str]:
    """The autoencoder's name for every name in the file."""
    blocks = model.config.num_res_blocks
    names = {}
    for ours in model.state_dict():
        theirs = ours
        for pattern, name in RENAMES:
            named = name.replace("{blocks}", str(blocks)).replace("{blocks_up}", str(blocks + 1))
            theirs = re.sub(pattern, named, theirs)
        names[theirs] = ours
    return names


class WanVae(nn.Module):
    """Videos to normalised latents and back, latent by latent.

    What diffusers' own `encode` and `decode` do, but that the layers' memory of past frames is of each call alone:
    theirs is kept in the model, where threads would mix it up.
    """

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model = model
        self.patch: int = model.config.patch_size or 1
        for name in ("mean", "std"):
            values = torch.tensor(model.config[f"latents_{name}"])
            self.register_buffer(name, values.view(-1, 1, 1, 1), persistent=False)

    def encode(self, frames: Tensor) -> Tensor:  # [B, 1 + 4 n, H, W, 3] uint8 -> [B, C, 1 + n, h, w]
        """The latents' means, each channel with mean 0 and variance 1 over the data of training."""
        dtype = self.model.quant_conv.weight.dtype
        video = (frames.movedim(-1, 1).to(torch.float32) / 127.5 - 1).to(dtype)  # [B, 3, T, H, W]
        video = _patches(video, self.patch)
        begin = [0, *range(1, video.shape[2], GROUP), video.shape[2]]
        parts = [video[:, :, first:last] for first, last in zip(begin, begin[1:], strict=False) if last > first]
        out = self.model.quant_conv(torch.cat(_each(self.model.encoder, parts), dim=2))
        mean = out.chunk(2, dim=1)[0].float()
        return ((mean - self.mean) / self.std).to(dtype)

    def decode(self, latents: Tensor, skip: int = 0) -> Tensor:  # [B, C, 1 + n, h, w] -> [B, T, H, W, 3] uint8
        """The frames of all latents but the first `skip`, rounded to 8 bits; what is not finite is grey."""
        levels = (self.pixels(latents, skip) * 127.5 + 127.5).nan_to_num(127.5).round_().clamp_(0, 255)
        return levels.to(torch.uint8).movedim(1, -1)

    def pixels(self, latents: Tensor, skip: int = 0) -> Tensor:  # [B, 3, T, H, W] float32
        """The same frames as they come out, about in [-1, 1]."""
        latents = (latents.float() * self.std + self.mean).to(latents.dtype)
        parts = self.model.post_quant_conv(latents).split(1, dim=2)
        made = _each(self.model.decoder, parts, first_chunk=True)[skip:]
        return _pixels(torch.cat(made, dim=2), self.patch).float()


def _each(network: Callable[..., Tensor], parts: Any, **first: Any) -> list[Tensor]:
    """The parts in order, each with what the layers remember of those before it; `first` is for the first alone."""
    convolutions = sum(type(module).__name__ == "WanCausalConv3d" for module in network.modules())
    memory = [None] * convolutions
    return [
        network(part, feat_cache=memory, feat_idx=[0], **(first if number == 0 else {}))
        for number, part in enumerate(parts)
    ]


def _patches(video: Tensor, patch: int) -> Tensor:  # [B, 3, T, H, W] -> [B, 3 p^2, T, H / p, W / p]
    b, c, t, height, width = video.shape
    split = video.reshape(b, c, t, height // patch, patch, width // patch, patch)
    return split.permute(0, 1, 6, 4, 2, 3, 5).reshape(b, -1, t, height // patch, width // patch)


def _pixels(video: Tensor, patch: int) -> Tensor:  # the inverse
    b, c, t, height, width = video.shape
    split = video.reshape(b, c // patch**2, patch, patch, t, height, width)
    return split.permute(0, 1, 4, 5, 3, 6, 2).reshape(b, -1, t, height * patch, width * patch)
