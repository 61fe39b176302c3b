"""Networks against the libraries' and the authors' own arithmetic on the same weights."""

import math

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from worldenv.interfaces.observation import Key
from worldenv.interfaces.world import WorldModel
from worldenv.ops.philox import Use, philox
from worldenv.worlds.wan import network

HEADS, TOKENS = 2, 4


@pytest.fixture(scope="module")
def world(load):
    return load()


@pytest.fixture(scope="module")
def given():
    """Latents [3, 48, 4, 4, 4] and actions [3, 13, 7]."""
    torch.manual_seed(4)
    return torch.randn(3, 48, 4, 4, 4), torch.rand(3, 13, 7) * 2 - 1


def rotated(x, frames, side):
    """Rotary embedding of three axes: pairs of numbers as complex ones."""
    head = x.shape[-1]
    pairs = [(head - 2 * (head // 3)) // 2, head // 3 // 2, head // 3 // 2]
    place = torch.meshgrid(torch.arange(frames), torch.arange(side), torch.arange(side), indexing="ij")
    angles = [
        axis.flatten()[:, None].double() / 10000 ** (torch.arange(0, 2 * n, 2).double() / (2 * n))
        for axis, n in zip(place, pairs, strict=True)
    ]
    turn = torch.cat(angles, 1)
    turn = torch.polar(torch.ones_like(turn), turn)[:, None]  # [L, 1, head / 2]
    return torch.view_as_real(torch.view_as_complex(x.double().unflatten(-1, (-1, 2))) * turn).flatten(-2).float()


def authors_forward(s, x, sigma, action):
    """RLinf's transformer, by the names in its file."""

    def linear(name, h):
        return F.linear(h, s[f"{name}.weight"], s[f"{name}.bias"])

    def attention(name, h, context, rotary):
        def normed(part, y):
            y = linear(f"{name}.{part}", y)
            return y * torch.rsqrt(y.square().mean(-1, keepdim=True) + 1e-6) * s[f"{name}.norm_{part}.weight"]

        q, k, v = (
            t.unflatten(-1, (HEADS, -1)) for t in (normed("q", h), normed("k", context), linear(f"{name}.v", context))
        )
        if rotary:
            q, k = rotated(q, frames, side), rotated(k, frames, side)
        out = F.scaled_dot_product_attention(*(t.transpose(1, 2) for t in (q, k, v)))
        return linear(f"{name}.o", out.transpose(1, 2).flatten(2))

    b, _, frames, height, _ = x.shape
    side = height // 2
    h = F.conv3d(x, s["patch_embedding.weight"], s["patch_embedding.bias"], stride=(1, 2, 2)).flatten(2).transpose(1, 2)
    time = torch.cat([torch.zeros(2 * TOKENS), torch.full(((frames - 2) * TOKENS,), sigma * 1000)]).double()
    rates = 10000 ** (-torch.arange(8).double() / 8)
    waves = torch.cat([torch.cos(time[:, None] * rates), torch.sin(time[:, None] * rates)], 1).float()
    t = linear("time_embedding.2", F.silu(linear("time_embedding.0", waves)))
    grouped = torch.cat([action[:, :1].repeat(1, 3, 1), action], 1).reshape(b, frames, 28)
    added = linear("action_mlp2.2", F.silu(linear("action_mlp2.0", grouped)))
    t = t + added[:, :, None].repeat(1, 1, TOKENS, 1).flatten(1, 2)
    modulation = linear("time_projection.1", F.silu(t)).unflatten(2, (6, -1))
    context = linear("action_mlp1.2", F.gelu(linear("action_mlp1.0", action)))
    d = h.shape[-1]
    for i in range(2):
        block = f"blocks.{i}"
        m = (s[f"{block}.modulation"][:, None] + modulation).unbind(2)
        h = h + m[2] * attention(f"{block}.self_attn", *[F.layer_norm(h, (d,), eps=1e-6) * (1 + m[1]) + m[0]] * 2, True)
        normed = F.layer_norm(h, (d,), s[f"{block}.norm3.weight"], s[f"{block}.norm3.bias"], 1e-6)
        h = h + attention(f"{block}.cross_attn", normed, context, False)
        inner = linear(f"{block}.ffn.0", F.layer_norm(h, (d,), eps=1e-6) * (1 + m[4]) + m[3])
        h = h + m[5] * linear(f"{block}.ffn.2", F.gelu(inner, approximate="tanh"))
    shift, scale = (s["head.modulation"][:, None] + t[:, :, None]).unbind(2)
    out = linear("head.head", F.layer_norm(h, (d,), eps=1e-6) * (1 + scale) + shift)
    out = out.view(b, frames, side, side, 2, 2, -1).permute(0, 6, 1, 2, 4, 3, 5)
    return out.reshape(b, -1, frames, height, height)


def test_the_transformer_is_the_authors(world, draw, given):
    latents, actions = given
    wanted = authors_forward(draw["model-00001.safetensors"](), latents, 0.7, actions)
    found = world.network.velocity(latents, 0.7, actions)
    assert found.abs().mean() > 0.1
    torch.testing.assert_close(found, wanted[:, :, 2:], atol=1e-5, rtol=1e-5)


def test_every_name_is_the_one_that_the_library_converts_it_to(world, draw):
    from diffusers.loaders.single_file_utils import convert_wan_transformer_to_diffusers

    names = network.names_in_file(world.network.transformer)
    for theirs, tensor in draw["model-00001.safetensors"]().items():
        (library,) = convert_wan_transformer_to_diffusers({theirs: tensor})
        assert names[theirs].removeprefix("condition_embedder.") == library.removeprefix("condition_embedder."), theirs


def test_without_what_actions_add_to_noise_levels_it_is_the_librarys_forward(load, given):
    from diffusers import WanTransformer3DModel

    mine, (latents, actions) = load().network, given
    with torch.no_grad():
        for name in ("weight", "bias"):
            getattr(mine.transformer.condition_embedder.action_mlp2[2], name).zero_()
    config = {k: v for k, v in mine.transformer.config.items() if not k.startswith("_")}
    plain = WanTransformer3DModel(**config | {"text_dim": 7}).eval()
    text = {"action_mlp1.0": "text_embedder.linear_1", "action_mlp1.2": "text_embedder.linear_2"}
    state = mine.transformer.state_dict()
    for ours, theirs in text.items():
        state = {key.replace(ours, theirs): tensor for key, tensor in state.items() if "action_mlp2" not in key}
    plain.load_state_dict(state)
    plain.condition_embedder.text_embedder.act_1 = nn.GELU()  # theirs is the approximation by tanh
    level = torch.cat([torch.zeros(3, 8), torch.full((3, 8), 400.0)], 1)
    with torch.no_grad():
        wanted = plain(latents, level, actions, return_dict=False)[0][:, :, 2:]
        torch.testing.assert_close(mine.velocity(latents, 0.4, actions), wanted, atol=1e-5, rtol=1e-5)


def test_the_autoencoder_is_the_librarys(world):
    vae = world.network.vae
    frames = torch.randint(256, (2, 13, 64, 32, 3), dtype=torch.uint8)
    video = frames.movedim(-1, 1) / 127.5 - 1
    with torch.no_grad():
        mean = vae.model.encode(video).latent_dist.mode()
        latents = vae.encode(frames)
        torch.testing.assert_close(latents * vae.std + vae.mean, mean, atol=1e-5, rtol=1e-5)
        shown = vae.model.decode(latents * vae.std + vae.mean).sample
        wanted = (shown * 127.5 + 127.5).round().clamp(0, 255).movedim(1, -1)
    assert latents.shape == (2, 48, 4, 4, 2) and shown.std() > 0.1
    assert ((vae.decode(latents).float() - wanted).abs() <= 1).all()
    assert torch.equal(vae.decode(latents, skip=2), vae.decode(latents)[:, 5:])


def authors_rollout(world, frames, chunks, key, steps):
    """Frame queues and denoising as in RLinf's environment, all four latents from noise, the known ones put back."""
    vae, shift = world.network.vae, 5.0
    queue = frames[:, None].repeat(1, 5, 1, 1, 1)
    past = torch.zeros(len(frames), 5, 7)
    past[..., -1] = -1
    sigmas = torch.linspace(1, 0, steps + 1)[:-1]
    sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
    shown = []
    for number, chunk in enumerate(chunks):
        actions = torch.cat([past, chunk], 1)
        past[:, 1:] = actions[:, -4:]
        known = vae.encode(queue)
        k = key._replace(chunk=torch.full_like(key.chunk, number))
        noise = philox(*k, Use.FRAME, (48, 2, 4, 4), normal=True)
        x = torch.cat([known, noise], 2)
        for i, sigma in enumerate(sigmas):
            level = torch.cat([torch.zeros(len(x), 8), torch.full((len(x), 8), sigma * 1000)], 1)
            velocity = world.network.transformer(x, level, actions, return_dict=False)[0]
            after = sigmas[i + 1] if i + 1 < steps else 0
            x = x + velocity * (after - sigma)
            x[:, :, :2] = known
        video = vae.decode(x)
        queue[:, 1:] = video[:, -4:]
        shown.append(video[:, 5:])
    return torch.cat(shown, 1)


@pytest.mark.parametrize("steps", [1, 3])
def test_a_rollout_is_the_authors(load, tabletop, steps):
    world = load(steps=steps)
    starts = tabletop.reset(tabletop.tasks[:3], range(3), "train")
    torch.manual_seed(0)
    chunks = 2 * torch.rand(3, 3, 8, 7) - 1
    key = Key(5, torch.arange(3) + 7, torch.zeros(3, dtype=torch.int64))
    assert isinstance(world, WorldModel) and world.chunk == 8
    with torch.no_grad():
        wanted = authors_rollout(world, starts.seen.frames[:, 0], chunks, key, steps)
        seen, memory, found = starts.seen, world.begin(starts.seen, 8), []
        for number, chunk in enumerate(chunks):
            imagined = world.imagine(memory, seen, chunk, key._replace(chunk=torch.full_like(key.chunk, number)))
            assert imagined.finite.all()
            found.append(imagined.frames[:, :, 0])
            seen.frames.copy_(imagined.frames[:, -1])
    difference = (torch.cat(found, 1).int() - wanted.int()).abs()
    assert difference.float().mean() < 0.02 and difference.max() <= 3
    assert not math.isclose(wanted[:, 0].float().std().item(), 0, abs_tol=1)
