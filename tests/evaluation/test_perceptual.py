"""LPIPS, FID and FVD with tiny TorchScript networks that are called as the published ones are."""

import warnings

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig
from worldenv.evaluation.measure import world_quality
from worldenv.evaluation.perceptual import FILES, check_networks, frechet_distance, perceptual_quality
from worldenv.evaluation.replayed import replay_episodes


class Vgg(nn.Module):
    def forward(self, img: Tensor, resize_images: bool = True, return_lpips: bool = False) -> Tensor:
        assert return_lpips and not resize_images
        return img.mean([2, 3]) / 255


class Inception(nn.Module):
    def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
        assert return_features and img.dtype == torch.uint8
        return img.float().mean([2, 3])


class I3d(nn.Module):
    def forward(
        self, video: Tensor, rescale: bool = True, resize: bool = True, return_features: bool = False
    ) -> Tensor:
        assert return_features and not rescale and not resize and video.shape[1] == 3 and video.shape[3] == 224
        return video.mean([3, 4]).flatten(1)[:, ::5]


@pytest.fixture
def weights(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        for metric, network in (("lpips", Vgg()), ("fid", Inception()), ("fvd", I3d())):
            torch.jit.script(network).save(tmp_path / FILES[metric])
    return tmp_path


@pytest.fixture
def videos():
    generator = torch.Generator().manual_seed(0)
    return torch.randint(256, (2, 6, 13, 8, 8, 3), generator=generator, dtype=torch.uint8).unbind()


def test_all_three_by_hand(weights, videos):
    imagined, true = videos
    found = perceptual_quality(weights, imagined, true, chunk=4)
    colour = [video[:, 1:].float().mean((2, 3)) for video in videos]
    apart = ((colour[0] - colour[1]) / 255).square().sum(-1)
    assert found["lpips"] == pytest.approx([apart[:, i : i + 4].mean().item() for i in (0, 4, 8)], rel=1e-4)
    assert found["fid"] == pytest.approx(frechet_distance(*(c.flatten(0, 1) for c in colour)), rel=1e-3)
    assert found["fvd"] > 0


def test_equal_videos_have_no_distance(weights, videos):
    found = perceptual_quality(weights, videos[0], videos[0], chunk=4)
    assert found["lpips"] == [0, 0, 0] and found["fid"] < 1e-3 and found["fvd"] < 1e-6


def test_only_what_is_there_is_measured(weights, videos):
    (weights / FILES["fid"]).unlink()
    assert set(perceptual_quality(weights, *videos, chunk=4)) == {"lpips", "fvd"}
    few = [video[:, :9] for video in videos]  # eight frames: too few for the video network
    assert set(perceptual_quality(weights, *few, chunk=4)) == {"lpips"}


def test_folder_without_weights_is_refused(tmp_path, videos):
    with pytest.raises(UserError, match="no weights to measure with; put there any of vgg16.pt, inception"):
        perceptual_quality(tmp_path, *videos, chunk=4)


def test_damaged_file_is_named(weights, videos):
    (weights / FILES["lpips"]).write_bytes(b"no network")
    with pytest.raises(UserError, match="vgg16.pt is not a TorchScript file, is damaged, or cannot") as found:
        perceptual_quality(weights, *videos, chunk=4)
    assert "\n" not in str(found.value)


@pytest.mark.parametrize(("metric", "network"), [("lpips", nn.Identity()), ("fid", Vgg()), ("fvd", nn.Identity())])
def test_another_network_is_refused_in_one_line_before_any_work(weights, metric, network):
    check_networks(weights, (8, 8))
    torch.jit.script(network).save(weights / FILES[metric])
    with pytest.raises(UserError, match=f"{FILES[metric]} is not a network for {metric.upper()}: ") as found:
        check_networks(weights, (8, 8))
    assert "\n" not in str(found.value)


def test_network_whose_features_are_not_finite_is_refused(weights):
    class Infinite(Inception):
        def forward(self, img: Tensor, return_features: bool = False) -> Tensor:
            return img.float().mean([2, 3]) / 0

    torch.jit.script(Infinite()).save(weights / FILES["fid"])
    with pytest.raises(UserError, match="is not a network for FID: it returns no finite features"):
        check_networks(weights, (8, 8))


def test_quality_of_the_world_model_has_them_too(weights, tiny):
    trajectories = [tiny.trajectory(12, i) for i in range(3)]
    engine = tiny.engine()
    replayed = replay_episodes(engine, trajectories, seed=1)
    found = world_quality(replayed, np.array([True, True, False]), engine.world.chunk, weights)
    assert len(found["lpips"]) == len(found["psnr"]) == 3 and found["fid"] > 0 and found["fvd"] > 0


def test_frechet_distance_of_commuting_gaussians_is_closed_form():
    generator = torch.Generator().manual_seed(0)
    white = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    white = (white - white.mean(0)) @ torch.linalg.inv(torch.linalg.cholesky(torch.cov(white.T))).T
    scale_a, scale_b = torch.tensor([1.0, 2.0, 3.0]).double(), torch.tensor([2.0, 0.5, 3.0]).double()
    shift = torch.tensor([1.0, 0.0, -2.0]).double()
    distance = frechet_distance(white * scale_a, white * scale_b + shift)
    assert distance == pytest.approx(float(shift.square().sum() + (scale_a - scale_b).square().sum()), abs=1e-6)


def test_frechet_distance_equals_the_product_form_and_is_a_distance():
    generator = torch.Generator().manual_seed(1)
    a = torch.randn(60, 4, generator=generator) @ torch.randn(4, 4, generator=generator)
    b = torch.randn(50, 4, generator=generator) + 0.3
    root_trace = torch.linalg.eigvals(torch.cov(a.double().T) @ torch.cov(b.double().T)).real.sqrt().sum()
    expected = (
        (a.double().mean(0) - b.double().mean(0)).square().sum()
        + torch.cov(a.double().T).trace()
        + torch.cov(b.double().T).trace()
        - 2 * root_trace
    )
    assert frechet_distance(a, b) == pytest.approx(float(expected), abs=1e-6)
    assert frechet_distance(b, a) == pytest.approx(float(expected), abs=1e-6)
    assert frechet_distance(a, a) == pytest.approx(0, abs=1e-6)


def test_frechet_distance_with_fewer_rows_than_features_stays_sound():
    feature = torch.randn(5, 40, generator=torch.Generator().manual_seed(2))
    assert 0 <= frechet_distance(feature, feature) < 1e-4
    assert frechet_distance(feature[:, :1], feature[:, :1] + 2) == pytest.approx(4, abs=1e-6)


def test_frechet_distance_refuses_what_has_no_covariance():
    feature = torch.zeros(4, 3)
    with pytest.raises(ValueError, match=r"true is \[1, 3\]: it should be \[n >= 2, D\]"):
        frechet_distance(feature[:1], feature)
    with pytest.raises(ValueError, match="imagined is .* finite"):
        frechet_distance(feature, feature / 0)


def test_weights_without_torchmetrics_are_refused_before_any_work(weights, monkeypatch):
    from worldenv.evaluation import perceptual

    monkeypatch.setattr(perceptual, "find_spec", lambda name: None)
    with pytest.raises(UserError, match="needs torchmetrics, which is not installed: pip install"):
        EvalConfig(weights=weights)
