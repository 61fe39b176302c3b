"""The causal world model in the latents of a released autoencoder: any of diffusers' takes the tokenizer's place."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.fields import check_fields
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.suite import Suite
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.model_files import inspect_model, load_model, save_model
from worldenv.records.released import AGAIN, folder_of, settings_in, written_like
from worldenv.robot.robot import Robot
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork
from worldenv.worlds.causal.world import LEVELS, CausalWorld
from worldenv.worlds.components import Component, inspect_diffusers
from worldenv.worlds.levels import levels_of
from worldenv.worlds.tokenizers import LEVELS as AUTOENCODERS
from worldenv.worlds.tokenizers import FrameTokenizer

FILE, VAE, KIND = "causal.safetensors", "vae", "causal-latents"


@dataclass(frozen=True)
class LatentsConfig:
    """How such a world model is used. It may lie in its folder as worldenv.json, with the fields that differ."""

    # Frames of a chunk that are decoded. last: the one that the policy looks at; those before it repeat the picture
    # that the chunk began with.
    decode: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        check_fields(self)


class LatentTokenizer(nn.Module):
    """In the place of `PatchTokenizer`: a token is a square of an autoencoder's latents.

    The autoencoder is none of its children: its weights stay in their own folder, and are in no `state_dict`.
    """

    def __init__(self, frames: FrameTokenizer, patch: int, channels: int):
        super().__init__()
        self.patch, self.channels, self.side = patch, channels, patch // frames.shrink
        if patch % frames.shrink or channels != frames.channels * self.side**2:
            raise UserError(
                f"patch is {patch} and channels {channels}; with an autoencoder of {frames.channels} channels for "
                f"{frames.shrink} x {frames.shrink} pixels, patch should be a multiple of {frames.shrink} and channels "
                f"{frames.channels} (patch / {frames.shrink})^2"
            )
        self._frames = (frames,)
        self.register_buffer("place", torch.zeros(0, dtype=frames.dtype), persistent=False)  # where it is to be

    def _apply(self, fn, recurse=True):
        super()._apply(fn, recurse)
        self._frames[0].to(self.place.device, self.place.dtype)
        return self

    @property
    def frames(self) -> FrameTokenizer:
        """The autoencoder."""
        return self._frames[0]

    def encode(self, frames: Tensor) -> Tensor:  # [B, H, W, 3] uint8 -> [B, L, C]
        return self.cut(self._frames[0].encode(frames))

    def decode(self, latents: Tensor, width: int) -> Tensor:  # [B, L, C] -> [B, H, W, 3] uint8
        return self._frames[0].decode(self.joined(latents, width))

    def cut(self, latents: Tensor) -> Tensor:  # [B, c, h, w], of the autoencoder -> [B, L, C]
        (b, c, height, width), s = latents.shape, self.side
        split = latents.reshape(b, c, height // s, s, width // s, s)
        return split.permute(0, 2, 4, 1, 3, 5).reshape(b, -1, c * s * s)

    def joined(self, tokens: Tensor, width: int) -> Tensor:  # [B, L, C] -> [B, c, h, w]
        s, columns = self.side, width // self.patch
        split = tokens.reshape(len(tokens), -1, columns, self.channels // s**2, s, s)
        return split.permute(0, 3, 1, 4, 2, 5).flatten(2, 3).flatten(3)

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """The autoencoder's encoder and decoder, of latents that are not cut into tokens."""
        return self._frames[0].pieces(size)


class LatentCausalNetwork(CausalNetwork):
    """The causal network on such tokens; it is trained and distilled as the other one is.

    Raises UserError for a configuration whose tokens the autoencoder does not give.
    """

    def __init__(self, config: CausalConfig, tokenizer: FrameTokenizer):
        super().__init__(config)
        self.tokenizer = LatentTokenizer(tokenizer.to(self.see.weight.dtype), config.patch, config.channels)


class LatentCausalWorld(CausalWorld):
    """The past is in the ring, so no latent but the new ones is needed, and of these those that somebody looks at."""

    def __init__(
        self,
        network: LatentCausalNetwork,
        robot: Robot,
        levels: Sequence[float] = LEVELS,
        view: str = "agentview",
        decode: Literal["all", "last"] = "all",
        folder: Path | None = None,
    ):
        super().__init__(network, robot, levels, view)
        self.decode, self.folder = decode, folder

    def _shown(self, latents: Tensor, frames: Tensor) -> Tensor:
        if self.decode == "all":
            return super()._shown(latents, frames)
        last = super()._shown(latents[:, -1:], frames)
        return torch.cat([frames.expand(-1, latents.shape[1] - 1, -1, -1, -1), last], dim=1)

    def write_back(self, folder: Path | str) -> Path:
        """Write the world model as it is now, in the layout in which it was loaded; weights in half precision.

        The folder appears whole or not at all. Raises UserError if there is something already.
        """
        if self.folder is None:
            raise UserError("this world model was made from parts, not from a folder; save its network yourself")
        with written_like(self.folder, folder, FILE) as made:
            save_causal_latents(made, self.network, {}, self.levels)
        return Path(folder).expanduser()


def read_tokenizer(folder: Path | str) -> FrameTokenizer:
    """An autoencoder from its folder in the layout of diffusers. Raises UserError naming what is wrong with it."""
    return FrameTokenizer(inspect_diffusers(folder_of(folder), AUTOENCODERS).read(None))


def save_causal_latents(
    folder: Path,
    network: LatentCausalNetwork,
    made: Mapping[str, Any],  # how it came to be
    levels: Sequence[float] = LEVELS,
) -> None:
    """Write what has learnt into the folder that has the autoencoder as vae/."""
    save_model(Path(folder) / FILE, network, KIND, made, levels=list(levels))


def load_causal_latents(folder: Path | str, suite: Suite, config: LatentsConfig | None = None) -> LatentCausalWorld:
    """From a folder with vae/, in the layout of diffusers, and causal.safetensors, which `save_causal_latents` wrote.

    Raises UserError, before anything large is read, as `inspect_causal_latents` does.
    """
    found = inspect_causal_latents(folder, suite, config)
    path, tokenizer = found.folder / FILE, FrameTokenizer(found.vae.read(None))
    network, about = load_model(path, KIND, LatentCausalNetwork, CausalConfig, tokenizer=tokenizer)
    return LatentCausalWorld(
        network, suite.robot, levels_of(path, about), suite.views[0], found.config.decode, found.folder
    )


@dataclass(frozen=True)
class Found:
    """A folder that has been looked through."""

    folder: Path
    config: LatentsConfig
    vae: Component


def inspect_causal_latents(folder: Path | str, suite: Suite, config: LatentsConfig | None = None) -> Found:
    """Look through the folder, and say whether it fits the suite; no weight is read.

    Raises UserError naming the file for anything that is missing, cut short or does not fit.
    """
    folder = folder_of(folder)
    config = settings_in(folder, LatentsConfig) if config is None else config
    if len(suite.views) != 1:
        raise UserError(
            f"{folder} imagines one view, and {suite.name} shows {', '.join(suite.views)}: take a suite with one"
        )
    if not (folder / VAE).is_dir():
        raise CheckpointError(f"{folder} has no folder {VAE}, its autoencoder; {AGAIN}")
    vae, path = inspect_diffusers(folder / VAE, AUTOENCODERS), folder / FILE
    sizes, about = inspect_model(path, KIND, CausalConfig)
    levels_of(path, about)
    try:
        LatentTokenizer(FrameTokenizer(vae.module), sizes.patch, sizes.channels)
    except UserError as error:
        raise CheckpointError(f"{path} does not fit {folder / VAE}: {error}") from error
    return Found(folder, config, vae)
