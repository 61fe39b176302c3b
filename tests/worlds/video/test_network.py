"""The U-Net against the library's own model and sampler on the same weights; what its tokens are."""

from dataclasses import replace

import pytest
import torch
from torch import nn

from worldenv.interfaces.observation import Key
from worldenv.ops.philox import Use, philox
from worldenv.worlds.conditioning import Conditioning

SVD = {
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "sigma_max": 700.0,
    "sigma_min": 0.002,
    "timestep_spacing": "leading",
    "timestep_type": "continuous",
    "use_karras_sigmas": True,
    "steps_offset": 1,
}


@pytest.fixture(scope="module")
def world(load):
    return load()


@pytest.fixture(scope="module")
def starts(tabletop):
    return tabletop.reset(tabletop.tasks[:3], range(3), "train")


@pytest.fixture(scope="module")
def known(world, starts):
    """What a pass over three episodes is given."""
    torch.manual_seed(5)
    memory = world.begin(starts.seen, 4)
    memory.latents.add_(0.3 * torch.randn_like(memory.latents))
    poses = torch.cat([memory.poses, memory.poses[:, :1] + 0.02 * torch.randn(3, 4, 7)], 1)
    actions = 2 * torch.rand(3, 4, 7) - 1
    with torch.no_grad():
        return world.network.know(memory.latents, poses, starts.seen.camera, actions, [memory.tokens])


def test_a_grown_first_layer_computes_what_the_library_does(world, written, known):
    from diffusers import UNetSpatioTemporalConditionModel

    library = UNetSpatioTemporalConditionModel.from_pretrained(written / "unet", local_files_only=True).eval()
    assert library.config.in_channels == 8 and world.network.unet.config.in_channels == 13
    torch.manual_seed(0)
    sample, ids = torch.randn(3, 7, 13, 8, 8), torch.tensor([[6.0, 127.0, 0.02]]).expand(3, 3)
    t = torch.tensor([0.3, 0.7, 1.2])
    with torch.no_grad():
        wanted = library(sample[:, :, :8], t, known.context, added_time_ids=ids).sample
        found = world.network.unet(sample, t, known.context, added_time_ids=ids).sample
    assert wanted.std() > 0.01
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


@pytest.mark.filterwarnings("ignore:__array__:DeprecationWarning")  # within the library
@pytest.mark.parametrize("steps", [1, 4])
def test_sampling_is_that_of_the_librarys_scheduler(world, known, steps):
    from diffusers import EulerDiscreteScheduler

    scheduler, network = EulerDiscreteScheduler(**SVD), world.network
    scheduler.set_timesteps(steps)
    key = Key(3, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    x = philox(*key, Use.FRAME, (4, 4, 8, 8), normal=True) * scheduler.sigmas[0]
    past = known.latents
    shown = torch.cat([past, past[:, -1:].repeat(1, 4, 1, 1, 1)], 1) / network.tokenizer.scale
    mask = torch.cat([torch.ones(3, 3, 1, 8, 8), torch.zeros(3, 4, 1, 8, 8)], 1)
    ids = torch.tensor([[6.0, 127.0, 0.02]]).expand(3, 3)
    with torch.no_grad():
        for i, t in enumerate(scheduler.timesteps):
            scaled = scheduler.scale_model_input(x, t)
            memory = past * (scheduler.sigmas[i] ** 2 + 1) ** -0.5
            sample = torch.cat([torch.cat([memory, scaled], 1), shown, mask, known.maps], 2)
            out = network.unet(sample, t, known.context, added_time_ids=ids).sample[:, 3:]
            x = scheduler.step(out, t, x).prev_sample
        network.config, before = replace(network.config, steps=steps), network.config
        found = world._pass(known, key)
        network.config = before
    # In one step the library subtracts again the noise of 700 that it has added to: a rounding of 1e-4.
    torch.testing.assert_close(found, x, atol=1e-3 if steps == 1 else 1e-4, rtol=1e-4)


def test_every_depth_attends_to_the_tokens_of_encoders_and_actions(world, known):
    lengths = {}

    def note(name):
        def hook(module, given, named):
            lengths[name] = (named.get("encoder_hidden_states", given[1] if len(given) > 1 else None)).shape[1]

        return hook

    unet = world.network.unet
    handles = [
        module.register_forward_pre_hook(note(name), with_kwargs=True)
        for name, module in unet.named_modules()
        if name.endswith("attn2")
    ]
    noisy, sigma = torch.randn(3, 4, 4, 8, 8), torch.ones(3)
    with torch.no_grad():
        first = world.network.denoised(noisy, sigma, known)
        for handle in handles:
            handle.remove()
        other = world.network.denoised(noisy, sigma, replace(known, context=known.context.flip(0)))
    assert {name.split(".")[0] for name in lengths} == {"down_blocks", "mid_block", "up_blocks"}
    assert set(lengths.values()) == {1 + 4 + 4 + 4}  # CLIP's own token, its patches, DINOv2's patches, actions
    assert (first - other).abs().max() > 1e-4


def test_encoders_look_once_and_are_those_of_the_library(load, starts, monkeypatch):
    world = load()
    clip, geometry = (world.network.conditioning.encoders[name] for name in ("clip", "geometry"))
    looked = []
    for encoder in (clip, geometry):
        monkeypatch.setattr(encoder, "encode", lambda given, real=encoder.encode: looked.append(1) or real(given))
    memory = world.begin(starts.seen, 8)
    key = Key(1, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    world.imagine(memory, starts.seen, torch.zeros(3, 8, 7), key)
    assert len(looked) == 2
    frames = starts.seen.frames[:, 0]
    with torch.no_grad():
        embedded = clip.model(pixel_values=clip.prepare(frames)).image_embeds
        patches = geometry.model(pixel_values=geometry.prepare(frames)).last_hidden_state[:, 1:]
        wanted = world.network.conditioning.projections["geometry"](patches)
    torch.testing.assert_close(memory.tokens[:, 0], embedded, atol=1e-5, rtol=0)  # unchanged, as the U-Net knows it
    torch.testing.assert_close(memory.tokens[:, 5:], wanted, atol=1e-5, rtol=0)


def test_pictures_are_prepared_as_the_librarys_processor_does(world, starts):
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    frames = starts.seen.frames[:, 0]
    size = {"size": {"shortest_edge": 16}, "crop_size": {"height": 16, "width": 16}}
    wanted = CLIPImageProcessorPil(**size)(list(frames.numpy()), return_tensors="pt").pixel_values
    found = world.network.conditioning.encoders["clip"].prepare(frames)
    assert (found - wanted).abs().max() < 0.03  # it rounds to 8 bits between two passes: two levels


@pytest.mark.parametrize(
    ("settings", "tokens"),
    [
        ({"clip": "pooled"}, 5),
        ({"clip": "none"}, 4),
        ({"geometry": "none"}, 5),
        ({"clip": "none", "geometry": "none"}, 0),
    ],
)
def test_each_encoder_can_be_left_out(load, starts, settings, tokens):
    world = load(**settings)
    memory = world.begin(starts.seen, 4)
    assert memory.tokens.shape == (3, tokens, 16)
    key = Key(1, torch.arange(3), torch.zeros(3, dtype=torch.int64))
    assert world.imagine(memory, starts.seen, torch.zeros(3, 4, 7), key).finite.all()


class Colours(nn.Module):
    """An encoder of the user's own."""

    width = 3

    def prepare(self, frames):
        return frames.movedim(-1, 1).float() / 255

    def encode(self, pictures):
        return pictures.mean((2, 3))[:, None]


def test_any_encoder_with_the_two_methods_takes_the_place(load, starts):
    world = load()
    world.network.conditioning = Conditioning({"colours": Colours()}, 16)
    memory = world.begin(starts.seen, 4)
    means = starts.seen.frames[:, 0].float().mean((1, 2)) / 255
    with torch.no_grad():
        torch.testing.assert_close(memory.tokens[:, 0], world.network.conditioning.projections["colours"](means))
