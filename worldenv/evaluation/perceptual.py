"""Picture quality as large pretrained networks see it: LPIPS, FID and FVD, where their weights are present.

Needs torchmetrics: pip install "worldenv[metrics]". A TorchScript file is a program, and loading it may run it. It is
loaded only from the folder that the user names with --eval.weights: name only a folder of files that you trust.
"""

import warnings
from importlib.util import find_spec
from pathlib import Path
from zipfile import is_zipfile

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.records.checkpoint import one_line

# TorchScript files as StyleGAN2-ADA (the first two) and StyleGAN-V publish them; none comes with this package.
FILES = {"lpips": "vgg16.pt", "fid": "inception-2015-12-05.pt", "fvd": "i3d_torchscript.pt"}
FRAMES_AT_ONCE, VIDEOS_AT_ONCE = 64, 4
VIDEO_SIZE = 224  # what the video network was trained on
VIDEO_FRAMES = 10  # the fewest that it reads


def present(folder: Path) -> dict[str, Path]:
    """Metric -> file, for the files that `folder` has.

    Raises UserError if it has none, for a file of another kind, and if torchmetrics is missing.
    """
    if find_spec("torchmetrics") is None:
        raise UserError('--eval.weights needs torchmetrics, which is not installed: pip install "worldenv[metrics]"')
    found = {metric: folder / name for metric, name in FILES.items() if (folder / name).is_file()}
    if not found:
        raise UserError(f"{folder} has no weights to measure with; put there any of {', '.join(FILES.values())}")
    for path in found.values():
        if not is_zipfile(path):  # as TorchScript files are: the others would be found out after a long evaluation
            raise UserError(_not_torchscript(path))
    return found


def _not_torchscript(path: Path) -> str:
    return f"{path} is not a TorchScript file, is damaged, or cannot be read: fetch it again"


@torch.no_grad()
def check_networks(
    folder: Path,
    size: tuple[int, int],  # of the frames
) -> None:
    """Let every network in `folder` read blank frames, so that a wrong one is refused before any work.

    Raises UserError for a file that is not TorchScript, or whose network does not return features.
    """
    blank = torch.zeros(1, VIDEO_FRAMES, 3, *size, dtype=torch.uint8)
    for metric, path in present(folder).items():
        network = _load(path)
        try:
            found = _blank_features(metric, network, blank)
        except Exception as error:  # a network of another kind may raise anything
            raise UserError(f"{path} is not a network for {metric.upper()}: {one_line(error)}") from error
        if not isinstance(found, Tensor) or found.ndim != 2 or not found.isfinite().all():
            raise UserError(f"{path} is not a network for {metric.upper()}: it returns no finite features [n, D]")


@torch.no_grad()
def perceptual_quality(
    folder: Path,
    imagined: Tensor,  # [N, T + 1, H, W, 3] uint8, the start frame first
    true: Tensor,  # likewise
    chunk: int,
) -> dict[str, list[float] | float]:
    """The metrics whose weights are in `folder`; lower is better.

    `lpips` by chunk index (Zhang et al. 2018), `fid` over all imagined frames (Heusel et al. 2017), `fvd` over whole
    episodes (Unterthiner et al. 2018), if there are at least two, of at least 10 frames.

    Raises UserError for a file that is not TorchScript.
    """
    pairs, found = [video[:, 1:].movedim(-1, -3) for video in (imagined, true)], {}
    for metric, path in present(folder).items():
        network = _load(path)
        if metric == "lpips":
            apart = torch.cat([_lpips(network, *pair) for pair in zip(*map(_frames, pairs), strict=True)])
            found[metric] = [part.mean().item() for part in apart.view(len(imagined), -1).split(chunk, dim=1)]
        elif metric == "fid":
            features = ([network(x, return_features=True) for x in _frames(video)] for video in pairs)
            imagined_features, true_features = map(torch.cat, features)
            found[metric] = frechet_distance(true_features, imagined_features)
        elif pairs[0].shape[1] >= VIDEO_FRAMES and len(imagined) > 1:
            features = ([_video_features(network, x) for x in video.split(VIDEOS_AT_ONCE)] for video in pairs)
            imagined_features, true_features = map(torch.cat, features)
            found[metric] = frechet_distance(true_features, imagined_features)
    return found


def _blank_features(metric: str, network: torch.jit.ScriptModule, blank: Tensor) -> Tensor:
    if metric == "lpips":
        return _lpips(network, blank[0], blank[0])[:, None]
    return network(blank[0], return_features=True) if metric == "fid" else _video_features(network, blank)


def _load(path: Path) -> torch.jit.ScriptModule:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # torch.export cannot read these files
            return torch.jit.load(path, map_location="cpu").eval()
    except (RuntimeError, ValueError, OSError, EOFError) as error:
        raise UserError(f"{_not_torchscript(path)} ({one_line(error)})") from error


def _frames(video: Tensor) -> tuple[Tensor, ...]:  # [N, T, 3, H, W] -> of [n, 3, H, W]
    return video.flatten(0, 1).split(FRAMES_AT_ONCE)


def _lpips(network: torch.jit.ScriptModule, imagined: Tensor, true: Tensor) -> Tensor:  # [n]
    a, b = (network(x.float(), resize_images=False, return_lpips=True) for x in (imagined, true))
    return (a - b).square().sum(1)


def _video_features(network: torch.jit.ScriptModule, video: Tensor) -> Tensor:  # [n, T, 3, H, W] -> [n, D]
    n, size = len(video), (VIDEO_SIZE, VIDEO_SIZE)
    large = F.interpolate(video.flatten(0, 1).float(), size, mode="bilinear", align_corners=False)
    scaled = (large / 127.5 - 1).unflatten(0, (n, -1)).transpose(1, 2)
    return network(scaled, rescale=False, resize=False, return_features=True)


def frechet_distance(
    true: Tensor,  # [n, D] features
    imagined: Tensor,  # [m, D]
) -> float:
    """Squared Frechet distance of the two Gaussians fitted to the features: FID on image, FVD on video features.

        |m_t - m_i|^2 + tr(C_t) + tr(C_i) - 2 tr((C_t C_i)^(1/2))

    Raises ValueError for fewer than two rows or values that are not finite.
    """
    from torchmetrics.image.fid import FrechetInceptionDistance  # an extra, and slow to import

    for name, features in (("true", true), ("imagined", imagined)):
        if features.ndim != 2 or len(features) < 2 or not torch.isfinite(features).all():
            raise ValueError(f"{name} is {list(features.shape)}: it should be [n >= 2, D], with finite values")
    same = nn.Identity()  # the features are there already
    same.num_features = true.shape[1]
    distance = FrechetInceptionDistance(feature=same).set_dtype(torch.float64)
    distance.update(true.double(), real=True)
    distance.update(imagined.double(), real=False)
    return max(0.0, distance.compute().item())
