"""What the authors' evaluation does to numbers and pictures, against rows worked by hand."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from worldenv.interfaces.observation import Key
from worldenv.policy.flow.config import FlowConventions, SmolVLAConfig
from worldenv.policy.flow.pi0 import canonical
from worldenv.policy.flow.pictures import prepared
from worldenv.policy.flow.sde import density, drawn, transition
from worldenv.policy.flow.statistics import Scale, Units, read_statistics
from worldenv.records.released import inspect


def colours(rows, size, **conventions) -> list[list[float]]:
    """What the policy looks at, in its colours of -1 to 1."""
    grey = torch.tensor(rows, dtype=torch.uint8)[None, None, :, :, None].expand(-1, -1, -1, -1, 3)
    seen = prepared(grey, size, FlowConventions(**{"orientation": "upright"} | conventions))
    assert seen.shape == (1, 1, 3, size, size) and torch.equal(seen[0, 0, 0], seen[0, 0, 2])
    return seen[0, 0, 0].tolist()


@pytest.mark.parametrize(
    ("orientation", "expected"),
    [("upright", [[-1, 1], [1, 1]]), ("turned", [[1, -1], [1, 1]]), ("flipped", [[1, 1], [-1, 1]])],
)
def test_pictures_are_turned_as_the_policy_was_shown_them(orientation, expected):
    assert colours([[0, 255], [255, 255]], 2, orientation=orientation) == expected


WIDE, B = [[0, 0, 255, 255]], -3.0  # one row of four: four rows are missing in a square of five, three of four


@pytest.mark.parametrize(
    ("place", "expected"),
    [
        ("middle", [[B] * 4, [-1, -1, 1, 1], [B] * 4, [B] * 4]),  # the odd row below
        ("left-top", [[B] * 4, [B] * 4, [B] * 4, [-1, -1, 1, 1]]),  # what is filled is at the left and top
        ("right-bottom", [[-1, -1, 1, 1], [B] * 4, [B] * 4, [B] * 4]),
    ],
)
def test_a_picture_keeps_its_shape_and_the_square_is_filled(place, expected):
    assert colours(WIDE, 4, place=place) == expected
    high = colours([[value] for value in WIDE[0]], 4, place=place)
    assert high == [list(column) for column in zip(*expected, strict=True)]


def test_each_policy_has_the_fillings_of_its_authors():
    # pi0 fills with -1 where colours are 0 .. 1, so with -3; SmolVLA with 0, so with -1.
    pi0, smolvla = FlowConventions(), SmolVLAConfig().conventions
    assert (pi0.place, pi0.fill, smolvla.place, smolvla.fill) == ("middle", -3.0, "left-top", -1.0)


def test_smaller_pictures_are_sampled_and_not_averaged():
    # Four to two, bilinear without antialiasing: between the two middle ones of each pair of rows, columns 0.5 and 2.5.
    assert colours([[0, 102, 204, 255]] * 4, 2)[0] == pytest.approx([2 * 51 / 255 - 1, 2 * 229.5 / 255 - 1])
    frames = torch.randint(256, (1, 1, 33, 47, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    theirs = F.interpolate(
        frames[0].permute(0, 3, 1, 2) / 255, (19, 28), mode="bicubic", antialias=True, align_corners=False
    )
    ours = prepared(frames, 28, FlowConventions(orientation="upright", resize="bicubic", place="right-bottom"))
    torch.testing.assert_close(ours[0, :, :, :19], 2 * theirs.clamp(0, 1) - 1)


def test_actions_and_state_are_in_the_environments_units():
    scales = {"action": Scale((0.5, 2.0), (0.1, -1.0)), "state": Scale((0.5, 0.02, 0.02), (1.0, 0.0, 0.0))}
    conventions = {"proprio": (1, 2, 2), "proprio_factor": (1.0, 0.04, -0.04)}
    units = Units(scales, FlowConventions(**conventions, gripper=(-1.0, 0.5)))
    rows = torch.tensor([[[1.0, 1.0], [-1.0, 0.0]]])
    torch.testing.assert_close(units.action(rows)[0], torch.tensor([[0.6, -0.5], [-0.4, 1.5]]))  # -(2 - 1) + .5, ...
    torch.testing.assert_close(units.log_scale(torch.zeros(1, 1, 2)).exp()[0, 0], torch.tensor([0.5, 2.0]))
    state = units.state(torch.tensor([[9.0, 2.0, 0.25]]))
    torch.testing.assert_close(state, torch.tensor([[2.0, 0.5, -0.5]]))


MODES = {
    "MEAN_STD": ({"mean": 3.0, "std": 2.0}, (2.0, 3.0)),
    "MIN_MAX": ({"min": -1.0, "max": 3.0}, (2.0, 1.0)),  # -1 .. 3 becomes -1 .. 1
    "QUANTILES": ({"q01": 0.0, "q99": 1.0}, (0.5, 0.5)),
    "QUANTILE10": ({"q10": 0.0, "q90": 4.0}, (2.0, 2.0)),
    "IDENTITY": ({}, (1.0, 0.0)),
}


@pytest.mark.parametrize("mode", MODES)
def test_statistics_are_read_in_every_mode(copied, mode):
    release, (numbers, (factor, offset)) = copied("pi0"), MODES[mode]
    values = {f"action.{name}": torch.full((7,), value) for name, value in numbers.items()}
    for document in release.path.glob("policy_*processor.json"):
        said = json.loads(document.read_text())
        said["steps"][1]["config"]["norm_map"]["ACTION"] = mode
        document.write_text(json.dumps(said))
        file = release.path / said["steps"][1]["state_file"]
        save_file({k: t for k, t in load_file(file).items() if k.startswith("obs")} | values, file)
    found = read_statistics(inspect(release.path, ("pi0",)), {"state": 8, "action": 7})
    assert found["action"].factor == pytest.approx((factor,) * 7) and found["action"].offset == (offset,) * 7
    assert found["state"].offset == pytest.approx([0.1 * i for i in range(8)])


def without_processors(release):
    files = [*release.path.glob("policy_*processor*")]
    numbers = load_file(next(file for file in files if file.name.endswith("_normalizer_processor.safetensors")))
    for file in files:
        file.unlink()
    return numbers


def test_buffers_of_older_releases_say_the_same(copied, load, moments):
    release = copied("smolvla")
    numbers, tensors = without_processors(release), release.tensors()
    for name, value in numbers.items():
        part = "normalize_inputs" if name.startswith("obs") else "unnormalize_outputs"
        tensors[f"{part}.buffer_{name.replace('observation.', 'observation_')}"] = value
    save_file(tensors, release.path / "model.safetensors")
    starts, key = moments(2)
    acted = [
        p.act(starts.seen, p.read(starts.texts), key, False).action
        for p in (load("smolvla"), load("smolvla", release.path))
    ]
    assert torch.equal(*acted)


def test_transformers_own_processor_says_the_same(copied, load, moments, written, tmp_path):
    """A folder as `PI0ForConditionalGeneration.save_pretrained` writes it, with the processor's numbers."""
    release = copied("pi0")
    numbers = without_processors(release)
    of = {"state": "observation.state", "actions": "action"}
    said = {f"{n}_{s}": numbers[f"{of[n]}.{s}"].tolist() for n in of for s in ("mean", "std")}
    release.write_json("processor_config.json", {"processor_class": "PI0Processor"} | said)
    lerobot = load("pi0")
    lerobot.network.net.config.save_pretrained(release.path)
    made = load("pi0", release.path)
    assert made.found.chunk == 6 and made.config.chunk is None  # it does not say how many are carried out
    starts, key = moments(2)
    one, other = (p.act(starts.seen, p.read(starts.texts), key, False).action for p in (lerobot, made))
    assert torch.equal(one, other[:, :4])


@pytest.mark.parametrize(
    ("called", "expected"),
    [
        (
            "model.paligemma_with_expert.paligemma.model.language_model.norm.weight",
            "model.vlm.language_model.norm.weight",
        ),
        ("paligemma_with_expert.paligemma.language_model.model.norm.weight", "model.vlm.language_model.norm.weight"),
        ("paligemma_with_expert.paligemma.lm_head.weight", "model.vlm.language_model.embed_tokens.weight"),
        ("model.paligemma_with_expert.paligemma.vision_tower.vision_model.x", "model.vlm.vision_tower.x"),
        ("paligemma_with_expert.gemma_expert.model.norm.weight", "model.dit.norm.weight"),
        ("model.state_proj.bias", "embed_action_time.state_proj.bias"),
        ("action_time_mlp_out.weight", "embed_action_time.action_time_mlp_out.weight"),
        ("model.action_out_proj.weight", "action_out_proj.weight"),
        ("net.model.dit.norm.weight", "model.dit.norm.weight"),
    ],
)
def test_tensors_of_pi0_are_known_by_all_their_names(called, expected):
    assert canonical(called) == expected


def test_releases_may_say_the_same_in_the_words_of_other_versions(copied, load, moments):
    release = copied("pi0")
    release.write_json("config.json", {k: v for k, v in release.json().items() if "steps" not in k})
    release.change(num_steps=3, n_action_steps=4)  # pi0 of LeRobot before 0.4
    starts, key = moments(2)
    ways = load("pi0"), load("pi0", release.path)
    assert torch.equal(*(p.act(starts.seen, p.read(starts.texts), key, False).action for p in ways))


def test_no_number_of_layers_means_all_of_them(copied, load):
    release = copied("smolvla")
    document = release.json("vlm/config.json")
    document["text_config"]["num_hidden_layers"] = 3
    release.write_json("vlm/config.json", document)
    release.change(num_vlm_layers=0)
    assert load("smolvla", release.path).network.sizes.layers == 3


def test_prompts_begin_and_end_as_in_training(load):
    known = load("pi0").prompt.tokenizer.get_vocab()
    said = ["put", "the", "red", "block"]
    ids = [known[word] for word in said]
    assert load("pi0").prompt.ids("put the red block") == [known["<bos>"], *ids, known["\n"]]
    assert load("smolvla").prompt.ids("put the red block\n") == [*ids, known["\n"]]
    rows = load("pi0").read(["put the red block", "put"])
    assert rows[1].tolist() == [known["<bos>"], known["put"], known["\n"], -1, -1, -1]
    assert len(load("smolvla").prompt.ids("put " * 40)) == 12  # tokenizer_max_length


def test_the_first_actions_of_those_predicted_are_carried_out_in_their_order(load, moments):
    starts, key = moments(2)
    few, all_of_them = load("pi0"), load("pi0", chunk=6)
    assert few.chunk == 4 and few.found.steps == 3  # as config.json says
    one, other = (p.act(starts.seen, p.read(starts.texts), key, False).action for p in (few, all_of_them))
    assert torch.equal(one, other[:, :4]) and other.shape == (2, 6, 7)
    finer = load("pi0", steps=7)
    assert (finer.act(starts.seen, finer.read(starts.texts), key, False).action - one).abs().max() > 1e-3


def test_without_exploration_both_ways_end_where_the_flow_ends(load, moments):
    starts, key = moments(3)
    ways = [load("smolvla", exploration=way) for way in ("laplace", "sde")]
    acted = [p.act(starts.seen, p.read(starts.texts), key, False).action for p in ways]
    torch.testing.assert_close(*acted, atol=1e-6, rtol=0)
    noisy = [p.act(starts.seen, p.read(starts.texts), key, True).action for p in ways]
    assert all((a - b).abs().amax((1, 2)).min() > 1e-2 for a, b in zip(acted, noisy, strict=True))


def test_a_stochastic_step_keeps_the_distribution_of_the_flow():
    """Actions ~ N(0, s^2), whose velocity and distributions at all times are known."""
    s, steps = 0.5, 10_000
    for start in (0.9, 0.7, 0.3, 0.05):
        variance = (1 - start) ** 2 * s**2 + start**2
        velocity = (start - (1 - start) * s**2) / variance  # of x = 1
        one = torch.ones(1, 1, 1)
        mean, deviation = transition(one, velocity * one, torch.tensor([start]), steps, 0.5)
        after = start - 1 / steps
        expected = (1 - after) ** 2 * s**2 + after**2
        found = mean.item() ** 2 * variance + deviation.item() ** 2
        # To first order in the step; without the drift that belongs to the noise, it would be off by `deviation`^2.
        assert abs(found - expected) < 0.1 * deviation.item() ** 2, start
    mean, deviation = transition(one, velocity * one, torch.tensor([0.3]), 10, 1e-6)
    assert mean.item() == pytest.approx(1 - velocity / 10, abs=1e-5) and deviation.item() < 1e-6


def test_density_is_torch_s():
    x, mean, deviation = torch.randn(3, 4, 7), torch.randn(3, 4, 7), torch.rand(3, 1, 1) + 0.1
    expected = torch.distributions.Normal(mean, deviation).log_prob(x).sum((1, 2))
    torch.testing.assert_close(density(x, mean, deviation), expected)


def test_every_step_is_drawn_as_often():
    key = Key(0, torch.arange(4000), torch.ones(4000, dtype=torch.int64))
    counts = torch.bincount(drawn(key, 5), minlength=5)
    assert len(counts) == 5 and (counts - 800).abs().max() < 120
