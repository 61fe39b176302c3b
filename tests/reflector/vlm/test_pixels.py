"""Our preprocessing against Pillow and against the processors of transformers, which read the models' own files."""

import json
from importlib import import_module

import numpy as np
import pytest
import torch
from PIL import Image

from worldenv.errors import UserError
from worldenv.reflector.vlm.pixels import Look, patches, resized, whole_patches


def pictures(n, height, width):
    generator = torch.Generator().manual_seed(height)
    noise = torch.randint(256, (n, height, width, 3), generator=generator).float()
    ramp = torch.linspace(0, 255, width)[None, None, :, None]
    return (0.5 * noise + 0.5 * ramp).to(torch.uint8)


@pytest.mark.parametrize("number", [1, 2, 3])
@pytest.mark.parametrize(("old", "new"), [((64, 64), (224, 224)), ((37, 61), (28, 140)), ((90, 64), (60, 40))])
def test_resizing_is_that_of_pillow(number, old, new):
    shown = pictures(2, *old)
    ours = resized(shown, new, number).permute(0, 2, 3, 1)
    theirs = [np.array(Image.fromarray(x.numpy()).resize(new[::-1], number)) for x in shown]
    assert torch.equal(ours, torch.from_numpy(np.stack(theirs)).float())


PROCESSORS = {
    "qwen2_5_vl": ("qwen2_vl", "Qwen2VLImageProcessorPil"),
    "qwen3_vl": ("qwen2_vl", "Qwen2VLImageProcessorPil"),
    "llava_onevision": ("llava_onevision", "LlavaOnevisionImageProcessorPil"),
    "smolvlm": ("smolvlm", "SmolVLMImageProcessorPil"),
}


def processed(family, folder, images, **more):
    """What the library's processor, made from the model's own file, makes of pictures."""
    model, kind = PROCESSORS[family]
    module = import_module(f"transformers.models.{model}.image_processing_pil_{model}")
    processor = getattr(module, kind)(**json.loads((folder / "preprocessor_config.json").read_text()))
    return processor(images=images, return_tensors="pt", **more)


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen3_vl"])
@pytest.mark.parametrize("size", [(64, 64), (100, 171)])
def test_qwen_sees_what_its_processor_makes(reflector, released, family, size):
    vlm, shown = reflector(family, side=64).vlm, pictures(3, *size)
    vision = vlm.network.config.vision_config
    pixels = vlm.look(shown, vlm.size(*size))
    limits = {"shortest_edge": max(64**2, vlm.look.document.get("min_pixels") or 4096), "longest_edge": 16777216}
    theirs = processed(family, released(family), [*shown.numpy()], size=limits)
    grid = [pixels.shape[2] // vision.patch_size, pixels.shape[3] // vision.patch_size]
    assert theirs["image_grid_thw"].tolist() == [[1, *grid]] * 3
    ours = patches(pixels, vision.patch_size, 2, 2)
    torch.testing.assert_close(ours, theirs["pixel_values"], rtol=0, atol=1e-5)


def test_llava_sees_what_its_processor_makes_of_several_pictures(reflector, released):
    vlm, shown = reflector("llava_onevision").vlm, pictures(3, 64, 64)
    images = [[*shown.numpy()]]  # of one question, so they are not cut into tiles: as frames of a video
    theirs = processed("llava_onevision", released("llava_onevision"), images)["pixel_values"][:, 0]
    torch.testing.assert_close(vlm.look(shown, vlm.size(64, 64)), theirs, rtol=0, atol=1e-5)


def test_smolvlm_sees_what_its_processor_makes_of_a_frame(reflector, released):
    vlm, shown = reflector("smolvlm").vlm, pictures(3, 64, 64)
    given = {"do_image_splitting": False, "size": {"longest_edge": 32}}  # as its processor shows videos
    theirs = processed("smolvlm", released("smolvlm"), [*shown.numpy()], **given)["pixel_values"]
    ours = vlm.look(shown, vlm.size(64, 64))
    torch.testing.assert_close(ours, theirs.reshape(ours.shape), rtol=0, atol=1e-5)


def test_size_is_that_of_the_authors_rule():
    pytest.importorskip("transformers")
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import smart_resize

    for height, width in ((64, 64), (256, 256), (480, 640), (37, 111), (30, 29), (2000, 3000)):
        for least, most in ((3136, 12845056), (65536, 16777216), (3136, 100352)):
            assert whole_patches(height, width, 28, least, most) == smart_resize(height, width, 28, least, most)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"image_mean": None}, "image_mean is None"),
        ({"image_std": [0.5, 0, 0.5]}, "image_std is"),
        ({"image_std": 0.5}, "three numbers"),
        ({"resample": 5}, "resample is 5; known are 1, 2, 3"),
    ],
)
def test_preprocessing_that_is_none_is_refused(change, message):
    good = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
    Look.of(good, "x.json")
    with pytest.raises(UserError, match=message):
        Look.of(good | change, "x.json")
