"""The causal world model in the latents of diffusers' autoencoders: engine, training, distillation, its folder."""

import copy
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

pytest.importorskip("diffusers")

import worldenv  # noqa: E402
from worldenv.assemble import Parts  # noqa: E402
from worldenv.commands.export import export_onnx  # noqa: E402
from worldenv.data.clips import Clips  # noqa: E402
from worldenv.errors import UserError  # noqa: E402
from worldenv.interfaces.observation import Key  # noqa: E402
from worldenv.records import model_files  # noqa: E402
from worldenv.records.model_files import save_model  # noqa: E402
from worldenv.records.released import Release  # noqa: E402
from worldenv.suites.tabletop.suite import TabletopSuite  # noqa: E402
from worldenv.training.train_causal import causal_loss, distillation_loss  # noqa: E402
from worldenv.worlds.causal.latents import (  # noqa: E402
    FILE,
    LatentCausalNetwork,
    LatentsConfig,
    load_causal_latents,
    read_tokenizer,
    save_causal_latents,
)
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork  # noqa: E402

SEED, WEIGHTS = 3, "diffusion_pytorch_model.safetensors"
SIZES = {"chunk": 4, "window": 4, "width": 32, "layers": 2, "heads": 2, "key_heads": 1, "map_shrink": 4}


@pytest.fixture(scope="module")
def folder(make_latents, tmp_path_factory):
    return make_latents(tmp_path_factory.mktemp("latents"))


@pytest.fixture(scope="module")
def tabletop():
    return TabletopSuite()


@pytest.fixture(scope="module")
def starts(tabletop):
    return tabletop.reset(tabletop.tasks[:8], range(8), "train")


def test_the_engine_holds_64_episodes_and_one_is_the_same_alone(tiny, folder, tabletop, starts):
    world = load_causal_latents(folder, tabletop)
    whole = tiny.engine(horizon=12, world=world, size=64).run(starts, 8, SEED, stop=False, video=True)
    assert len(whole) == 64 and not whole.broken.any() and (whole.chunks == 3).all()
    alone = tiny.engine(horizon=12, world=world, capacity=2, batch=1, size=64)
    some = alone.run(starts.pick(torch.tensor([5])), 3, SEED, first_episode=40, stop=False, video=True)
    assert ((some.video.int() - whole.video[40:43].int()).abs() <= 2).float().mean() > 0.999


def imagined(world, starts):
    torch.manual_seed(6)
    n = len(starts)
    action, key = 2 * torch.rand(n, 8, 7) - 1, Key(1, torch.arange(n), torch.zeros(n, dtype=torch.int64))
    return world.imagine(world.begin(starts.seen, 8), starts.seen, action, key).frames


def test_only_the_frame_that_the_policy_looks_at_is_decoded(folder, tabletop, starts):
    some = starts.pick(torch.arange(2))
    every, last = (imagined(load_causal_latents(folder, tabletop, LatentsConfig(d)), some) for d in ("all", "last"))
    assert ((last[:, -1].int() - every[:, -1].int()).abs() <= 1).all()
    assert (last[:, :-1] == some.seen.frames[:, None]).all() and not torch.equal(every[:, 3], every[:, 7])


@pytest.mark.parametrize(("kind", "patch", "channels"), [("AutoencoderTiny", 16, 16), ("AutoencoderKLWan", 8, 16)])
def test_tokens_are_squares_of_latents(tmp_path, make_latents, starts, tabletop, kind, patch, channels):
    world = load_causal_latents(make_latents(tmp_path, kind, patch, channels), tabletop)
    tokenizer, frames = world.network.tokenizer, starts.seen.frames[:2, 0]
    latents = tokenizer._frames[0].encode(frames)
    tokens = tokenizer.encode(frames)
    side = 64 // patch
    assert tokens.shape == (2, side**2, channels)
    square = latents[0, :, : patch // 8, patch // 8 : 2 * (patch // 8)]  # the second token: first row, second column
    assert torch.equal(tokens[0, 1], square.flatten().float())
    assert torch.equal(tokenizer.decode(tokens, 64), tokenizer._frames[0].decode(latents))
    assert not any(name.startswith("tokenizer.") for name in world.network.state_dict())
    assert imagined(world, starts.pick(torch.arange(2))).shape == (2, 8, 1, 64, 64, 3)


@pytest.mark.parametrize(("kind", "patch", "channels"), [("AutoencoderTiny", 8, 4), ("AutoencoderKLWan", 8, 16)])
def test_pieces_agree_under_onnxruntime(tmp_path, make_latents, tabletop, kind, patch, channels):
    world = load_causal_latents(make_latents(tmp_path / "latents", kind, patch, channels), tabletop)
    files = export_onnx(Parts(None, None, world, None), tmp_path / "out", ("world",))["files"]
    assert set(files) == {f"world-{piece}.onnx" for piece in ("encoder", "decoder", "denoising-step")}
    assert max(file["difference"] for file in files.values()) <= 1e-4


def test_it_learns_and_a_student_learns_from_it(tiny, folder, tabletop, tmp_path, starts, make_latents):
    clips = Clips.of([tiny.trajectory(9, 0, size=64), tiny.trajectory(12, 1, size=64)])
    world = worldenv.load(world=f"causal-latents:{folder}").world
    teacher = world.network
    student = copy.deepcopy(teacher)

    def learn(network, loss, steps):
        optimizer, seen = torch.optim.Adam(network.parameters(), 3e-3), []
        for _ in range(steps):
            value, _ = loss(torch.Generator().manual_seed(7))
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            seen.append(value.item())
        return seen

    taught = learn(teacher, causal_loss(teacher, tabletop.robot, clips, 4, 2), 15)
    given = student, teacher, tabletop.robot, clips, 4, 2
    distilled = learn(student, distillation_loss(*given, levels=(1.0,)), 5)
    assert taught[-1] < 0.9 * taught[0] and distilled[-1] < 0.9 * distilled[0]
    again = make_latents(tmp_path)
    save_causal_latents(again, student, {}, levels=(1.0,))
    loaded, some = load_causal_latents(again, tabletop), starts.pick(torch.arange(2))
    assert loaded.levels == (1.0,)
    world.network, world.levels = student, (1.0,)
    assert ((imagined(loaded, some).int() - imagined(world, some).int()).abs() <= 2).float().mean() > 0.99


def test_what_does_not_fit_the_suite_is_refused(folder, tabletop, starts):
    with pytest.raises(UserError, match="imagines one view, and pens shows agentview, wrist"):
        load_causal_latents(folder, SimpleNamespace(name="pens", views=("agentview", "wrist"), robot=tabletop.robot))
    blind = replace(tabletop.robot, kinematics=None)
    with pytest.raises(UserError, match="needs a robot with kinematics and a gripper"):
        load_causal_latents(folder, SimpleNamespace(name="pens", views=("agentview",), robot=blind))
    with pytest.raises(UserError, match="imagines 4 frames per pass; a chunk should be a multiple of that, not 6"):
        load_causal_latents(folder, tabletop).begin(starts.seen, 6)
    for path in ("org/causal-latents", "", None):
        with pytest.raises(UserError, match="is not there; give the folder of a released model|is no path"):
            load_causal_latents(path, tabletop)


def test_tokens_that_the_autoencoder_does_not_give_are_refused(folder):
    tokenizer = read_tokenizer(folder / "vae")
    for patch, channels in ((8, 5), (4, 4), (16, 4)):
        with pytest.raises(UserError, match="patch should be a multiple of 8 and channels 4"):
            LatentCausalNetwork(CausalConfig(image_size=64, patch=patch, channels=channels, **SIZES), tokenizer)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, a: (f / "vae").rename(f / "autoencoder"), "has no folder vae, its autoencoder"),
        (lambda f, a: (f / "causal.safetensors").unlink(), "causal.safetensors: there is no such file"),
        (lambda f, a: (f / "causal.safetensors").write_bytes(b"1"), "not a complete safetensors file"),
        (lambda f, a: (f / "worldenv.json").write_text('{"frames": 1}'), "does not know 'frames'"),
        (lambda f, a: (f / "worldenv.json").write_text('{"decode": "none"}'), "decode is 'none'"),
        (lambda f, a: (f / "vae" / "config.json").unlink(), "has no config.json"),
        (lambda f, a: a("AutoencoderKLWan").save_pretrained(f / "vae"), "does not fit .*channels"),
        (lambda f, a: (f / "vae" / WEIGHTS).unlink(), "vae has neither"),
        (lambda f, a: (f / "vae" / WEIGHTS).rename(f / "vae" / "model.bin"), "in model.bin: pickles, which may run"),
        (lambda f, a: (f / "vae" / WEIGHTS).write_bytes(b"1"), "is no complete safetensors file"),
        (lambda f, a: (f / "vae" / "config.json").write_text('{"_class_name": "VQModel"}'), "'VQModel', not"),
        (
            lambda f, a: save_model(f / FILE, CausalNetwork(CausalConfig(image_size=64, **SIZES)), "causal", {}),
            "holds a causal; a causal-latents was expected",
        ),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_before_a_weight_is_read(
    tmp_path, folder, tabletop, make_autoencoder, monkeypatch, change, message
):
    shutil.copytree(folder, tmp_path / "copy")
    change(tmp_path / "copy", make_autoencoder)
    for part, name in ((Release, "fill"), (model_files, "load_weights")):
        monkeypatch.setattr(part, name, lambda *_, name=name, **__: pytest.fail(f"{name} read weights"))
    with pytest.raises(UserError, match=message) as error:
        load_causal_latents(tmp_path / "copy", tabletop)
    assert str(tmp_path / "copy") in str(error.value) and "\n" not in str(error.value)
