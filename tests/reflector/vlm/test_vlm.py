"""Each family against transformers' own forward on the same weights, from pixels and tokens, without any cache."""

import pytest
import torch

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
IMAGE, VIDEO = 500, 501


def library_hidden(vlm, prompt, frames):  # [B, n, H, W, 3] -> [B, D]
    """The last state of the library's model for whole sequences with placeholders, all pictures at once."""
    family, (b, n) = vlm.network.config.model_type, frames.shape[:2]
    size = vlm.size(*frames.shape[2:4])
    pixels = vlm.look(frames.flatten(0, 1), size)
    tokens = vlm.see(frames[0, :1]).shape[1:3].numel()
    place = VIDEO if family == "llava_onevision" else IMAGE
    shown = [*vlm.around[0], *[place] * tokens, *vlm.around[1]] * n
    newline = [VIDEO] if family == "llava_onevision" else []
    ids = torch.tensor([[*prompt, *shown, *newline, *vlm.question]] * b)
    if family.startswith("qwen"):
        from worldenv.reflector.vlm.pixels import patches

        vision = vlm.network.config.vision_config
        grid = torch.tensor([[1, size[0] // vision.patch_size, size[1] // vision.patch_size]] * (b * n))
        given = {
            "pixel_values": patches(pixels, vision.patch_size, 2, 2),
            "image_grid_thw": grid,
            "mm_token_type_ids": (ids == IMAGE).int(),
        }
    elif family == "llava_onevision":
        given = {"pixel_values_videos": pixels.unflatten(0, (b, n))}
    else:
        given = {"pixel_values": pixels.unflatten(0, (b, n))}
    with torch.no_grad():
        return vlm.network(input_ids=ids, output_hidden_states=True, **given)


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("size", [(40, 40), (30, 61)])
def test_answer_is_that_of_the_library_without_any_cache(reflector, frames, family, size):
    vlm, shown = reflector(family).vlm, frames(2, 3, *size)[:, :, 0]
    prompt = vlm.prompt("put the red block on the green pad")
    whole = library_hidden(vlm, prompt, shown)
    with torch.no_grad():
        heard = vlm.hear(torch.tensor(prompt))
        hidden = vlm.hidden(heard, vlm.see(shown.flatten(0, 1)).unflatten(0, (2, 3)))
        yes = vlm.yes(hidden)
    torch.testing.assert_close(hidden, whole.hidden_states[-1][:, -1], rtol=0, atol=1e-5)
    said = whole.logits[:, -1].log_softmax(-1)
    expected = [said[:, rows].logsumexp(1) for rows in vlm.answers]
    torch.testing.assert_close(yes, expected[0] - expected[1], rtol=0, atol=1e-5)
    assert hidden[0].sub(hidden[1]).abs().max() > 0.1  # the pictures count


@pytest.mark.parametrize("family", FAMILIES)
def test_passes_of_one_episode_and_of_all_agree(reflector, frames, family):
    vlm, shown = reflector(family).vlm, frames(3, 2)[:, :, 0]
    with torch.no_grad():
        tokens = vlm.see(shown.flatten(0, 1))
        heard = vlm.hear(torch.tensor(vlm.prompt("slide the puck")))
        hidden = vlm.hidden(heard, tokens.unflatten(0, (3, 2)))
        vlm.budget = 1  # byte: one at a time
        torch.testing.assert_close(vlm.see(shown.flatten(0, 1)), tokens, rtol=0, atol=1e-5)
        torch.testing.assert_close(vlm.hidden(heard, tokens.unflatten(0, (3, 2))), hidden, rtol=0, atol=1e-5)


@pytest.mark.parametrize("family", FAMILIES)
def test_what_the_task_is_counts(reflector, frames, family):
    vlm, tokens = reflector(family).vlm, None
    with torch.no_grad():
        tokens = vlm.see(frames(1, 2)[0, :, 0])[None]
        one, other = (vlm.hidden(vlm.hear(torch.tensor(vlm.prompt(text))), tokens) for text in ("lift it", "drop it"))
    assert (one - other).abs().max() > 1e-3
    assert vlm.prompt("lift it. ") == vlm.prompt("lift it")


@pytest.mark.parametrize("family", FAMILIES)
def test_tower_and_language_model_are_compiled_by_one_switch_and_answer_the_same(reflector, frames, family, request):
    plain, shown = reflector(family).vlm, frames(2, 3)[:, :, 0]
    made = request.getfixturevalue("compiling")
    vlm = reflector(family).vlm
    assert made == [vlm.vision, vlm.language]
    answers, called = [], set()
    for network in made:
        network.register_forward_hook(lambda own, *_: called.add(own))
    for one in (vlm, plain):
        with torch.no_grad():
            heard = one.hear(torch.tensor(one.prompt("put the red block on the green pad")))
            answers.append(one.hidden(heard, one.see(shown.flatten(0, 1)).unflatten(0, (2, 3))))
    assert called == set(made)
    torch.testing.assert_close(*answers, rtol=0, atol=1e-5)
