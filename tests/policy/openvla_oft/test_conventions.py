"""What the authors' evaluation does to numbers and pictures, against rows worked by hand."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from worldenv.policy.openvla_oft.config import OpenVLAConventions
from worldenv.policy.openvla_oft.folder import inspect_policy
from worldenv.policy.openvla_oft.network import ActionHead
from worldenv.policy.openvla_oft.pictures import prepared, resized
from worldenv.policy.openvla_oft.statistics import Bounds, Units

PLAIN = {"orientation": "upright", "crop": 1.0}
MEAN, STD = torch.tensor([[0.0] * 3, [0.5] * 3]), torch.tensor([[1.0] * 3, [0.5] * 3])


def picture(rows) -> torch.Tensor:  # [1, 1, H, W, 3], grey
    return torch.tensor(rows, dtype=torch.uint8)[None, None, :, :, None].expand(-1, -1, -1, -1, 3).contiguous()


def levels(rows, size, **conventions) -> list[list[int]]:
    """Grey levels of what the first tower looks at."""
    seen = prepared(picture(rows), size, OpenVLAConventions(**PLAIN | conventions), MEAN, STD)
    assert torch.equal(seen[0, 0, 0, 0], seen[0, 0, 0, 2])
    return (255 * seen[0, 0, 0, 0]).round().int().tolist()


def test_a_picture_of_the_right_size_is_left_as_it_is():
    assert levels([[0, 10], [20, 255]], 2) == [[0, 10], [20, 255]]


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [
        ("turned", [[2, 1], [4, 3]]),  # LIBERO's upside-down picture [[3, 4], [1, 2]], turned by 180 degrees
        ("flipped", [[3, 4], [1, 2]]),
        ("upside-down", [[4, 3], [2, 1]]),
    ],
)
def test_pictures_are_turned_as_the_policy_was_shown_them(orientation, expected):
    assert levels([[1, 2], [3, 4]], 2, orientation=orientation) == expected


def test_the_default_is_libero_s_upside_down_picture_turned_by_180_degrees():
    upside_down = torch.tensor([[3, 4], [1, 2]])  # as MuJoCo's renderer gives the upright [[1, 2], [3, 4]]
    default = OpenVLAConventions().orientation
    assert levels([[1, 2], [3, 4]], 2, orientation=default) == upside_down.flip(0, 1).tolist()


def test_smaller_pictures_are_averaged_and_larger_ones_have_the_kernel_s_overshoot():
    # Two pixels to one: both are 1/4 of the widened kernel away, so they count alike.
    assert levels([[0, 100], [100, 40]], 1) == [[60]]
    # Two to four: w(1/4) = .890067, w(5/4) = -.132871, w(3/4) = .270189; divided by their sums .757196 and 1.160256
    # they are 1.175478, -.175478 and .767130, .232870. 100 * -.175 is cut off at 0.
    assert levels([[0, 100], [0, 100]], 4)[0] == [0, 23, 77, 118]


@pytest.mark.parametrize(("height", "width", "size"), [(256, 256, 224), (64, 48, 224), (300, 200, 28)])
def test_pictures_are_resized_as_pillow_does(height, width, size):
    generator = torch.Generator().manual_seed(0)
    smooth = torch.rand(1, 3, height // 4, width // 4, generator=generator)
    frames = (255 * F.interpolate(smooth, (height, width), mode="bilinear"))[0].round().to(torch.uint8)
    theirs = Image.fromarray(frames.permute(1, 2, 0).numpy()).resize((size, size), Image.Resampling.LANCZOS)
    ours = resized(frames.float(), size).round().clamp(0, 255)
    away = (ours.permute(1, 2, 0) - torch.from_numpy(np.array(theirs)).float()).abs()
    assert away.max() <= 1  # Pillow rounds to 8 bits between rows and columns
    try:
        theirs = F.interpolate(frames[None].float(), (size, size), mode="lanczos", antialias=True)[0]
    except (NotImplementedError, ValueError):  # torch before 2.13
        return
    torch.testing.assert_close(resized(frames.float(), size), theirs, atol=1e-2, rtol=0)


@pytest.mark.parametrize(("height", "width", "size"), [(256, 256, 224), (64, 48, 224), (300, 200, 28)])
def test_pictures_are_resized_as_torch_does_with_the_other_kernel(height, width, size):
    frames = torch.randint(256, (1, 3, height, width), generator=torch.Generator().manual_seed(0)).float()
    theirs = F.interpolate(frames, (size, size), mode="bicubic", antialias=True)
    torch.testing.assert_close(resized(frames, size, "bicubic"), theirs, atol=1e-2, rtol=0)


def test_the_crop_is_torch_s_grid_sample_with_aligned_corners():
    frames = torch.randint(256, (1, 1, 28, 28, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    ours = prepared(frames, 28, OpenVLAConventions(orientation="upright"), MEAN, STD)[0, 0, 0]
    place = 0.9**0.5 * torch.linspace(-1, 1, 28)
    grid = torch.stack(torch.meshgrid(place, place, indexing="xy"), dim=-1)[None]
    theirs = F.grid_sample(frames[:, 0].permute(0, 3, 1, 2) / 255, grid, align_corners=True)[0]
    away = (255 * ours - (255.5 * theirs).floor()).abs()
    assert away.max() < 1.01 and (away > 0.5).float().mean() < 1e-3  # a sum near a whole number may round otherwise


def test_the_middle_is_cropped_by_area_and_its_corners_are_kept():
    # A quarter of the area is half of each side: places .5, 1, 1.5 of 0, 1, 2.
    rows = [[0, 100, 200]] * 3
    assert levels(rows, 3, crop=0.25) == [[50, 100, 150]] * 3
    assert levels(list(map(list, zip(*rows, strict=True))), 3, crop=0.25) == [[50] * 3, [100] * 3, [150] * 3]
    # .9 of the area: sqrt(.9) = .948683 of a side; the first place of 11 is 10 * (1 - .948683) / 2 = .256583.
    ramp = [[20 * i for i in range(11)]] * 11
    first, last = 20 * 0.256583, 200 - 20 * 0.256583
    expected = [int((first + (last - first) * i / 10) * 255.5 / 255) for i in range(11)]
    assert levels(ramp, 11, crop=0.9)[0] == expected


def test_each_tower_has_its_own_colours():
    mean, std = torch.tensor([[0.5, 0.4, 0.3], [0.5] * 3]), torch.tensor([[0.25, 0.2, 0.1], [0.5] * 3])
    seen = prepared(picture([[255]]), 1, OpenVLAConventions(**PLAIN), mean, std)
    assert seen.shape == (1, 1, 2, 3, 1, 1)
    torch.testing.assert_close(seen.flatten(), torch.tensor([2.0, 3.0, 7.0, 1.0, 1.0, 1.0]))


def test_colours_are_those_that_the_authors_processor_applies(release, two_views):
    assert inspect_policy(release.path, two_views).mean == ((0.484, 0.455, 0.406), (0.5, 0.5, 0.5))
    rounded = [{"mean": [0.484375, 0.455, 0.40625], "std": [0.2285, 0.2236, 0.2246], "inplace": False}] * 2
    release.change("preprocessor_config.json", tvf_normalize_params=rounded)
    found = inspect_policy(release.path, two_views)
    assert found.mean[0] == (0.484375, 0.455, 0.40625) and found.std[1] == (0.2285, 0.2236, 0.2246)


def units(**conventions) -> Units:
    action = Bounds((-0.5, 0.0) + (-1.0,) * 4 + (0.0,), (0.7, 0.4) + (1.0,) * 4 + (1.0,), (True,) * 6 + (False,))
    proprio = Bounds((-0.2,) * 3 + (2.0,) * 3 + (0.0, -0.04), (0.2,) * 3 + (4.0,) * 3 + (0.04, 0.0), (True,) * 8)
    return Units(action, proprio, OpenVLAConventions(**conventions))


def test_actions_are_unnormalised_and_the_gripper_has_its_sign():
    rows = torch.tensor([[[1.0, 1, 1, 0, 0, 0, 1], [-1, -1, -1, 0.5, 0, 0, 0], [0, 0.5, 0, 0, 0, 0, 0.5]]])
    expected = [
        [0.7, 0.4, 1, 0, 0, 0, -1],  # 1 is their open; -1 is open here, and LIBERO's
        [-0.5, 0, -1, 0.5, 0, 0, 1],  # 0 is their closed
        [0.1, 0.3, 0, 0, 0, 0, 0],
    ]
    torch.testing.assert_close(units().action(rows)[0], torch.tensor(expected), atol=1e-7, rtol=1e-6)


def test_a_scale_is_in_the_units_of_its_action():
    beta = torch.zeros(1, 1, 7)
    torch.testing.assert_close(units().log_scale(beta).exp()[0, 0, [0, 1, 6]], torch.tensor([0.6, 0.2, 2.0]))


def test_a_number_that_never_moved_keeps_a_scale_that_can_be_divided_by():
    still = Units(Bounds((0.3, 0.0), (0.3, 1.0), (True, False)), None, OpenVLAConventions())
    assert still.action(torch.tensor([[[5.0, 0.0]]]))[0, 0, 0].item() == pytest.approx(0.3)
    assert still.log_scale(torch.zeros(1, 1, 2)).exp()[0, 0, 0].item() == pytest.approx(1e-3)


def test_proprioception_becomes_theirs_and_is_normalised_and_cut_off():
    ours = torch.tensor([[0.1, -0.2, 0.9, 3.0, 3.5, 1.0, 0.25]])  # opening 1/4: fingers at .01 and -.01 m
    expected = [[0.5, -1, 1, 0, 0.5, -1, -0.5, 0.5]]
    torch.testing.assert_close(units().proprio(ours), torch.tensor(expected), atol=1e-5, rtol=1e-5)


def test_a_chunk_s_numbers_are_in_the_order_of_its_actions():
    head = ActionHead(2, 3).eval()
    hidden = torch.randn(1, 4 * 3, 2)
    whole = head(hidden)
    assert whole.shape == (1, 4, 3)
    for k in range(4):  # an action's numbers follow each other
        torch.testing.assert_close(head(hidden[:, 3 * k : 3 * k + 3])[0, 0], whole[0, k])


@pytest.mark.parametrize(
    ("identifier", "value"),
    [(31744, 254 / 255), (31745, 254 / 255), (31746, 252 / 255), (31871, 2 / 255), (31872, 0.0), (31999, -254 / 255)],
)
def test_tokens_are_bins_from_the_end_of_the_vocabulary(load, identifier, value):
    # The authors' bins are the 255 middles between 256 edges from -1 to 1, and a token's is
    # clip(32000 - id - 1, 0, 254); so the first two of the last 256 ids share the last bin.
    policy = load("tokens")
    assert policy.found.first_bin == 31744
    assert policy.middles[identifier - 31744].item() == pytest.approx(value, abs=1e-6)


def test_prompt_is_the_authors_and_ends_with_their_last_id(load):
    policy = load("tokens")
    short, long = policy.read(["Put the RED block", "put the red block on the pad"]).tolist()
    said = "In : What action should the robot take to put the red block on the pad ? Out :"
    known = policy.prompt.tokenizer.get_vocab()
    assert long == [1, *[known[word] for word in said.split()], 29871] and 0 not in long
    # A shorter one is padded after <s>, where the pictures come, so that all end alike.
    said = said.replace(" on the pad", "")
    assert short == [1, *[32000] * 3, *[known[word] for word in said.split()], 29871]
