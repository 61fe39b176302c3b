"""The folder of a video-diffusion pipeline in diffusers' layout: looked through before anything large is read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from json import dumps
from pathlib import Path

import torch
from torch import nn

from worldenv.errors import UserError
from worldenv.interfaces.suite import Suite
from worldenv.nn.compiled import compile_if_wanted
from worldenv.ops.action_map import SIZE_MIN_PX
from worldenv.records.checkpoint import CheckpointError, load_weights, save_weights
from worldenv.records.released import AGAIN, CONFIG, DTYPES, SETTINGS, folder_of, settings_in, written_like
from worldenv.robot.robot import Robot
from worldenv.worlds.components import Component, Encoder, inspect_diffusers, inspect_transformers
from worldenv.worlds.conditioning import ClipEncoder, Conditioning, FrameEncoder, GeometryEncoder
from worldenv.worlds.tokenizers import LEVELS, FrameTokenizer
from worldenv.worlds.vggt import Vggt, VggtEncoder, inspect_vggt, is_vggt
from worldenv.worlds.video.network import ADDED, SCALES, TIME_IDS, VideoConfig, VideoUNet, cross_width, grow

UNET, VAE, CLIP, GEOMETRY = "unet", "vae", "image_encoder", "geometry"
OURS = "worldenv.safetensors"  # what the pipeline does not have: projections and the tokens of actions
CLASS = "UNetSpatioTemporalConditionModel"
CLIPS = {"clip_vision_model": "CLIPVisionModelWithProjection"}
TRUNKS = {"dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}


@dataclass(frozen=True)
class Found:
    """A folder that has been looked through. Of its tensors only names and shapes have been read."""

    folder: Path
    config: VideoConfig
    robot: Robot
    unet: Component
    vae: Component
    encoders: Mapping[str, Encoder | Vggt]  # clip, geometry, as far as there


def inspect_video(path: Path | str, suite: Suite, config: VideoConfig | None = None) -> Found:
    """Look through the folder of a pipeline, and say whether it fits the suite.

    config: None for what worldenv.json in the folder says, or else the defaults. Raises UserError naming the file and
    the remedy for anything that is missing, differs or is not known.
    """
    folder = folder_of(path)
    config = settings_in(folder, VideoConfig) if config is None else config
    _check_suite(folder, suite)
    for name in (UNET, VAE):
        if not (folder / name).is_dir():
            raise CheckpointError(f"{folder} has no folder {name}, so it is no whole pipeline; {AGAIN}")
    unet, vae = inspect_diffusers(folder / UNET, (CLASS,)), inspect_diffusers(folder / VAE, LEVELS)
    encoders = {}
    if config.clip != "none":
        if not (folder / CLIP).is_dir():
            raise CheckpointError(f"{folder} has no folder {CLIP}; {AGAIN}, or leave it out: clip 'none' in {SETTINGS}")
        encoders["clip"] = inspect_transformers(folder / CLIP, CLIPS)
    if config.geometry == "folder" and (folder / GEOMETRY).is_dir():
        at = folder / GEOMETRY
        encoders["geometry"] = (
            inspect_vggt(at, config.geometry_size) if is_vggt(at) else inspect_transformers(at, TRUNKS)
        )
    _check_sizes(folder, unet.module, FrameTokenizer(vae.module), config)
    return Found(folder, config, suite.robot, unet, vae, encoders)


def read_video(found: Found, own: Mapping[str, FrameEncoder]) -> VideoUNet:
    """Read the weights; what the folder does not have is new, the same whenever it is made. own: encoders beside it.

    Raises CheckpointError for a tensor that is not finite, and if worldenv.safetensors does not fit.
    """
    dtype = DTYPES[found.config.dtype]
    read = {name: encoder.read(dtype) for name, encoder in found.encoders.items()}  # first: they are small
    network = joined(found, found.unet.read(dtype), found.vae.read(dtype), read, own)
    unet = network.unet
    compile_if_wanted(unet)
    if (found.folder / OURS).exists():
        load_weights(found.folder / OURS, Ours(network))
    for module in (network.actions, network.conditioning.projections):
        module.to(unet.conv_in.weight.dtype)
    network.place.data = network.place.data.to(unet.conv_in.weight.dtype)
    return network.requires_grad_(False).eval()


def joined(
    found: Found,
    unet: nn.Module,
    vae: nn.Module,
    read: Mapping[str, nn.Module],  # encoders of the folder
    own: Mapping[str, FrameEncoder],  # and others, as they are
) -> VideoUNet:
    """The whole network of its parts. The U-Net's first layer grows; projections and the tokens of actions are new."""
    tokenizer, encoders = FrameTokenizer(vae), dict(own)
    if unet.conv_in.in_channels < 2 * tokenizer.channels + ADDED:
        grow(unet, 2 * tokenizer.channels + ADDED)
    if "clip" in read:
        encoders["clip"] = ClipEncoder(read["clip"], found.config.clip)
    if "geometry" in read:
        is_whole = isinstance(read["geometry"], VggtEncoder)
        size = found.config.geometry_size
        encoders["geometry"] = read["geometry"] if is_whole else GeometryEncoder(read["geometry"], size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        return VideoUNet(unet, tokenizer, Conditioning(encoders, cross_width(unet)), found.config, found.robot)


class Ours(nn.Module):
    """The modules that a pipeline of diffusers does not have."""

    def __init__(self, network: VideoUNet):
        super().__init__()
        self.actions, self.place = network.actions, network.place
        self.projections = network.conditioning.projections


def write_video(network: VideoUNet, source: Path, target: Path | str) -> Path:
    """Write a folder like `source`, with the network's present weights, for diffusers and `inspect_video` to read.

    The folder appears whole or not at all. Raises UserError if there is something already.
    """
    with written_like(source, target, UNET, OURS, SETTINGS) as made:
        network.unet.save_pretrained(made / UNET)
        save_weights(made / OURS, Ours(network), {"kind": "video"})
        (made / SETTINGS).write_text(dumps(asdict(network.config), indent=1) + "\n", encoding="utf-8")
    return Path(target).expanduser()


def _check_suite(folder: Path, suite: Suite) -> None:
    if len(suite.views) != 1:
        raise UserError(
            f"{folder} imagines one view, and {suite.name} shows {', '.join(suite.views)}: take a suite with one"
        )
    robot = suite.robot
    if robot.kinematics is None or robot.gripper is None or robot.proprio_size != len(SCALES):
        raise UserError(
            f"{folder} reads action maps, which need a robot with kinematics, a gripper and poses of {len(SCALES)} "
            f"numbers; that of {suite.name} is another one"
        )


def _check_sizes(folder: Path, unet: nn.Module, tokenizer: FrameTokenizer, config: VideoConfig) -> None:
    where, c = folder / UNET / CONFIG, tokenizer.channels
    if unet.config.out_channels != c or unet.config.in_channels not in (2 * c, 2 * c + ADDED):
        raise CheckpointError(
            f"{where}: it takes {unet.config.in_channels} channels and gives {unet.config.out_channels}; with the "
            f"{c} of {VAE} it should take {2 * c}, or {2 * c + ADDED} if it was trained here, and give {c}"
        )
    if unet.config.projection_class_embeddings_input_dim != len(TIME_IDS) * unet.config.addition_time_embed_dim:
        raise CheckpointError(f"{where}: its added time ids are not {len(TIME_IDS)}, as of Stable Video Diffusion")
    widths = unet.config.cross_attention_dim
    if not isinstance(widths, int) and len(set(widths)) > 1:
        raise CheckpointError(f"{where}: cross_attention_dim is {list(widths)}; one width for all blocks is known")
    if config.size % tokenizer.shrink or config.size // tokenizer.shrink < SIZE_MIN_PX:
        raise UserError(
            f"size is {config.size}; it should be a multiple of {tokenizer.shrink} pixels, and at least "
            f"{SIZE_MIN_PX * tokenizer.shrink}, for the latents of {VAE}"
        )
