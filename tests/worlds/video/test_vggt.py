"""VGGT's trunk: DINOv2 against the library's, the blocks after it against the authors' arithmetic, and its refusals."""

import re

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.worlds.vggt import inspect_vggt

D, HEAD, HIDDEN, LAYERS, REGISTERS = 16, 8, 32, 2, 4  # as tests/worlds/video/conftest.py writes it
FILE = "model.safetensors"


@pytest.fixture(scope="module")
def state(writers):
    return writers("worlds/video").vggt


@pytest.fixture
def folder(tmp_path, writers):
    return writers("worlds/video").write_vggt(tmp_path / "geometry")


NAMES = (  # the library's -> theirs
    (r"^embeddings\.patch_embeddings\.projection", "patch_embed.proj"),
    (r"^embeddings\.position_embeddings", "pos_embed"),
    (r"^embeddings\.", ""),
    (r"^encoder\.layer\.", "blocks."),
    (r"^layernorm\.", "norm."),
    (r"\.attention\.o_proj\.", ".attn.proj."),
    (r"\.layer_scale(\d)\.lambda1", r".ls\1.gamma"),
)


@pytest.mark.parametrize("side", [28, 56])
def test_patches_are_those_of_the_librarys_dinov2(folder, state, side):
    from transformers import Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    sizes = {"hidden_size": D, "num_hidden_layers": LAYERS, "num_attention_heads": D // HEAD, "mlp_ratio": HIDDEN // D}
    config = Dinov2WithRegistersConfig(**sizes, image_size=28, patch_size=14, num_register_tokens=REGISTERS)
    library, s = Dinov2WithRegistersModel(config).eval(), state()
    filled = {}
    for ours in library.state_dict():
        name = ours
        for pattern, other in NAMES:
            name = re.sub(pattern, other, name)
        if part := re.search(r"\.attention\.([qkv])_proj\.(\w+)", name):
            whole = s["aggregator.patch_embed." + re.sub(r"\.attention\..*", f".attn.qkv.{part[2]}", name)]
            filled[ours] = whole.chunk(3)["qkv".index(part[1])]
        else:
            filled[ours] = s[f"aggregator.patch_embed.{name}"]
    library.load_state_dict(filled)
    encoder = inspect_vggt(folder).read(None)
    pictures = torch.randn(2, 3, side, side)
    with torch.no_grad():
        wanted = library(pixel_values=pictures).last_hidden_state[:, 1 + REGISTERS :]
        torch.testing.assert_close(encoder.patch_embed(pictures), wanted, atol=1e-4, rtol=1e-4)


def by_hand(s, patches, side):
    """The alternating blocks as their authors compute them for one picture."""

    def rope(tokens, place):  # [N, H, L, head], [L, 2]
        n = HEAD // 2
        rates = 1 / 100 ** (torch.arange(0, n, 2) / n)

        def one(t, at):
            angle = torch.cat([at[:, None] * rates] * 2, -1)
            turned = torch.cat([-t[..., n // 2 :], t[..., : n // 2]], -1)
            return t * angle.cos() + turned * angle.sin()

        return torch.cat([one(tokens[..., :n], place[:, 0]), one(tokens[..., n:], place[:, 1])], -1)

    def block(name, x, place):
        def get(part):
            return s[f"aggregator.{name}.{part}.weight"], s[f"aggregator.{name}.{part}.bias"]

        h = F.layer_norm(x, (D,), *get("norm1"))
        q, k, v = F.linear(h, *get("attn.qkv")).view(len(x), -1, 3, D // HEAD, HEAD).permute(2, 0, 3, 1, 4)
        q, k = (rope(F.layer_norm(t, (HEAD,), *get(f"attn.{n}_norm")), place) for n, t in (("q", q), ("k", k)))
        seen = ((q @ k.transpose(-1, -2)) * HEAD**-0.5).softmax(-1) @ v
        x = x + s[f"aggregator.{name}.ls1.gamma"] * F.linear(seen.transpose(1, 2).flatten(2), *get("attn.proj"))
        h = F.linear(F.gelu(F.linear(F.layer_norm(x, (D,), *get("norm2")), *get("mlp.fc1"))), *get("mlp.fc2"))
        return x + s[f"aggregator.{name}.ls2.gamma"] * h

    special = torch.cat([s["aggregator.camera_token"][:, 0], s["aggregator.register_token"][:, 0]], 1)
    x = torch.cat([special.expand(len(patches), -1, -1), patches], 1)
    grid = torch.cartesian_prod(torch.arange(side), torch.arange(side)) + 1
    place = torch.cat([torch.zeros(1 + REGISTERS, 2), grid.float()])
    for i in range(LAYERS):
        within = block(f"frame_blocks.{i}", x, place)
        x = block(f"global_blocks.{i}", within, place)
    return torch.cat([within, x], -1)[:, 1 + REGISTERS :]


def test_features_are_those_of_the_authors(folder, state):
    encoder = inspect_vggt(folder, size=50).read(None)
    frames = torch.randint(256, (2, 64, 64, 3), dtype=torch.uint8)
    pictures = encoder.prepare(frames)
    assert pictures.shape == (2, 3, 42, 42) and encoder.width == 2 * D
    with torch.no_grad():
        wanted = by_hand(state(), encoder.patch_embed(pictures), 3)
    found = encoder.encode(pictures)
    assert found.shape == (2, 9, 2 * D) and found.std() > 0.1
    torch.testing.assert_close(found, wanted, atol=1e-5, rtol=1e-5)


def test_it_takes_the_place_of_the_geometry_encoder_in_a_pipeline(writers, tmp_path, load, tabletop):
    world = load(writers("worlds/video").write_pipeline(tmp_path / "svd", vggt=True), clip="none")
    starts = tabletop.reset(tabletop.tasks[:2], range(2), "train")
    assert world.begin(starts.seen, 4).tokens.shape == (2, 4, 16)
    assert type(world.network.conditioning.encoders["geometry"]).__name__ == "VggtEncoder"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f.unlink(), "there is no such file"),
        (lambda f: f.write_bytes(f.read_bytes()[:-9]), "is no complete safetensors file"),
        (lambda f: f.write_text("version https://git-lfs.github.com/spec/v1\n"), "a pointer of Git LFS"),
    ],
)
def test_a_file_that_is_none_is_said(folder, change, message):
    change(folder / FILE)
    with pytest.raises(UserError, match=message):
        inspect_vggt(folder)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s.pop("aggregator.camera_token"), "is no VGGT"),
        (lambda s: s.pop("aggregator.patch_embed.pos_embed"), "is no VGGT"),
        (lambda s: s.pop("aggregator.frame_blocks.0.attn.q_norm.weight"), "is no VGGT"),
        (lambda s: s.update({"aggregator.frame_blocks.9.norm1.bias": torch.ones(16)}), "lacks frame_blocks.2."),
        (lambda s: s.pop("aggregator.frame_blocks.1.attn.proj.bias"), "lacks frame_blocks.1.attn.proj.bias"),
        (lambda s: s.update({"aggregator.query": torch.ones(1)}), "has query, which this model does not know"),
        (lambda s: s.update({"aggregator.patch_embed.norm.bias": torch.ones(9)}), r"norm.bias \[9\] where \[16\] fits"),
        (lambda s: s.pop("aggregator.register_token"), "is no VGGT"),
        (lambda s: s["aggregator.camera_token"].fill_(torch.inf), "camera_token holds numbers that are not finite"),
    ],
)
def test_what_is_wrong_with_the_file_is_said(folder, change, message):
    tensors = load_file(folder / FILE)
    change(tensors)
    save_file(tensors, folder / FILE)
    with pytest.raises(UserError, match=message):
        inspect_vggt(folder).read(None)
