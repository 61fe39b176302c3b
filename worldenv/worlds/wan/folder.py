"""The folder of a Wan world model as RLinf publishes it: looked through before anything large is read."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from json import dumps
from pathlib import Path
from typing import Any

import torch
from torch import nn

from worldenv.data.formats.rlinf import RlinfConfig
from worldenv.errors import UserError
from worldenv.interfaces.suite import Suite
from worldenv.nn.compiled import compile_if_wanted
from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import (
    AGAIN,
    DTYPES,
    SETTINGS,
    Entry,
    Release,
    Shape,
    check_finite,
    check_shapes,
    folder_of,
    header,
    put,
    read_pickle,
    settings_in,
    written_like,
)
from worldenv.worlds.components import attend
from worldenv.worlds.wan import vae
from worldenv.worlds.wan.network import WanNetwork, WanSizes, names_in_file

TRANSFORMER, VAE = "model-*.safetensors", "Wan2.2_VAE.pth"
UNUSED = "text_embedding."  # of the text that the actions have replaced; some files still have it


@dataclass(frozen=True)
class Found:
    """A folder that has been looked through. Of its tensors only names and shapes have been read."""

    folder: Path
    config: RlinfConfig
    sizes: WanSizes
    release: Release  # of the transformer
    transformer: nn.Module  # on the device meta
    vae: nn.Module  # on the device meta


def inspect_wan(path: Path | str, suite: Suite, config: RlinfConfig | None = None) -> Found:
    """Look through the folder of a world model, and say whether it fits the suite.

    config: None for what worldenv.json in the folder says, or else the defaults. Raises UserError naming the file and
    the remedy for anything that is missing, differs or is not known.
    """
    folder = folder_of(path)
    config = settings_in(folder, RlinfConfig) if config is None else config
    _check_suite(folder, suite)
    release = _transformer(folder)
    used = {key: shape for key, shape in release.shapes.items() if not key.startswith(UNUSED)}
    try:
        sizes = WanSizes.of(used, config.head)
    except UserError as error:
        raise CheckpointError(f"{folder / TRANSFORMER}: {error}; give the folder of such a world model") from error
    transformer = sizes.build()
    _check(folder / TRANSFORMER, used, transformer, names_in_file(transformer))
    if sizes.actions != suite.robot.action_size:
        raise UserError(
            f"{folder} takes actions of {sizes.actions} numbers, the robot of {suite.name} acts with "
            f"{suite.robot.action_size}: choose another suite or another world model"
        )
    autoencoder = _vae(folder / VAE, sizes)
    side = autoencoder.config.scale_factor_spatial * sizes.patch[-1]
    if config.size % side:
        raise UserError(f"size is {config.size}; it should be a multiple of {side} pixels, the side of a token")
    return Found(folder, config, sizes, release, transformer, autoencoder)


def read_wan(found: Found) -> WanNetwork:
    """Read the weights. Raises CheckpointError for a tensor that is not finite."""
    dtype = DTYPES[found.config.dtype]
    names = names_in_file(found.transformer)
    found.release.fill(found.transformer, names, dtype)
    found.sizes.finish(found.transformer)
    attend(found.transformer)
    compile_if_wanted(found.transformer)
    stored = dtype or found.transformer.proj_out.weight.dtype
    names = vae.names_in_file(found.vae)
    for key, tensor in read_pickle(found.folder / VAE).items():
        check_finite(found.folder / VAE, key, tensor)
        put(found.vae, names[key], tensor.to(stored, copy=True))
    return WanNetwork(found.transformer, vae.WanVae(found.vae)).requires_grad_(False).eval()


def write_wan(network: WanNetwork, config: RlinfConfig, source: Path, target: Path | str) -> Path:
    """Write a folder like `source`, with the transformer's present weights under the authors' names and in their types.

    The folder appears whole or not at all. Raises UserError if there is something already.
    """
    release, state = _transformer(source), network.transformer.state_dict()
    names = names_in_file(network.transformer)
    with written_like(source, target, TRANSFORMER, SETTINGS) as made:
        release.write_weights(made, {theirs: partial(state.__getitem__, ours) for theirs, ours in names.items()})
        (made / SETTINGS).write_text(dumps(asdict(config), indent=1) + "\n", encoding="utf-8")
    return Path(target).expanduser()


def _check_suite(folder: Path, suite: Suite) -> None:
    if len(suite.views) != 1:
        raise UserError(
            f"{folder} imagines one view, and {suite.name} shows {', '.join(suite.views)}: take a suite with one"
        )


def _transformer(folder: Path) -> Release:
    files = sorted(folder.glob(TRANSFORMER))
    if not files:
        raise CheckpointError(f"{folder} has no {TRANSFORMER}, the weights of its transformer; {AGAIN}")
    entries: dict[str, Entry] = {}
    for file in files:
        for key, shape in header(file).items():
            if key in entries:
                raise CheckpointError(f"{file} and {entries[key].file.name} both hold {key}; move one of them away")
            entries[key] = Entry(file, shape)
    return Release(folder, {}, entries)


def _vae(path: Path, sizes: WanSizes) -> nn.Module:
    if not path.exists():
        raise CheckpointError(f"{path.parent} has no {path.name}, its autoencoder; {AGAIN}")
    shapes = {key: tuple(tensor.shape) for key, tensor in read_pickle(path).items()}
    try:
        arguments: Mapping[str, Any] = vae.vae_sizes(shapes)
    except UserError as error:
        raise CheckpointError(f"{path}: {error}; {AGAIN}") from error
    made = vae.build_vae(arguments)
    _check(path, shapes, made, vae.names_in_file(made))
    if arguments["z_dim"] != sizes.channels:
        raise CheckpointError(
            f"{path} has latents of {arguments['z_dim']} channels, and the transformer beside it takes "
            f"{sizes.channels}: they are of different models; {AGAIN}"
        )
    return made


def _check(where: Path, found: Mapping[str, Shape], module: nn.Module, names: Mapping[str, str]) -> None:
    wanted: dict[str, torch.Tensor] = module.state_dict()
    check_shapes(where, found, {theirs: tuple(wanted[ours].shape) for theirs, ours in names.items()}, AGAIN)
