import pytest
import torch

import worldenv.ops.denoise_step as module
from worldenv import ops
from worldenv.ops.denoise_step import denoise_step, denoise_step_reference
from worldenv.ops.philox import Use, philox

TOLERANCE = {torch.float32: 4e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}  # of numbers up to 6
FACES = pytest.mark.parametrize("face", [denoise_step, denoise_step_reference])
DTYPES = pytest.mark.parametrize("dtype", ops.FLOATS)


def inputs(*shape, t=0.75, t_next=0.5, dtype=torch.float32, seed=0):
    draw = torch.Generator().manual_seed(seed)
    noisy, velocity = (torch.randn(*shape, generator=draw).to(dtype) for _ in range(2))
    episode, chunk = torch.arange(shape[0]) * 3 + 2**33, torch.arange(shape[0]) % 5
    return noisy, velocity, t, t_next, 2**40 + 9, episode, chunk, int(Use.FRAME)


def assert_same(actual, expected):
    assert actual.dtype == expected.dtype
    torch.testing.assert_close(actual, expected, rtol=0, atol=TOLERANCE[expected.dtype])


@pytest.mark.parametrize("shape", [(0, 3), (2, 0), (1,), (3, 1), (3, 63), (2, 3, 5, 7), (2, 16384 + 1), (1, 3 * 16384)])
@DTYPES
@pytest.mark.parametrize("t_next", [0.0, 0.3])
def test_compiled_face_equals_the_reference(shape, dtype, t_next):
    arguments = inputs(*shape, dtype=dtype, t_next=t_next)
    assert_same(denoise_step(*arguments), denoise_step_reference(*arguments))


@pytest.mark.parametrize("level", ["plain", "avx2"])
@DTYPES
def test_lower_instruction_sets_give_the_same(level, dtype, at_level):
    arguments = inputs(3, 71, dtype=dtype)
    assert_same(at_level(level, "denoise_step", *arguments), denoise_step_reference(*arguments))


@FACES
def test_last_step_has_no_noise(face):
    noisy, velocity, *_ = arguments = inputs(3, 63, t=0.25, t_next=0.0)
    torch.testing.assert_close(face(*arguments), noisy - 0.25 * velocity, rtol=0, atol=1e-6)


@FACES
def test_true_velocity_leads_to_the_clean_numbers_under_the_noise_of_philox(face):
    clean, noise, t, t_next, seed, episode, chunk, use = inputs(3, 5, 7)
    noisy, velocity = (1 - t) * clean + t * noise, noise - clean
    found = face(noisy, velocity, t, t_next, seed, episode, chunk, use)
    again = philox(seed, episode, chunk, use, (5, 7), normal=True)
    torch.testing.assert_close(found, (1 - t_next) * clean + t_next * again, rtol=0, atol=4e-6)


@FACES
def test_an_episode_steps_the_same_in_any_company(face):
    noisy, velocity, *between, episode, chunk, use = inputs(5, 63)
    alone = face(noisy[3:4], velocity[3:4], *between, episode[3:4], chunk[3:4], use)
    assert torch.equal(alone[0], face(noisy, velocity, *between, episode, chunk, use)[3])


def test_batch_may_be_strided():
    noisy, velocity, *rest = inputs(3, 63)
    wide = torch.stack([noisy, velocity], dim=1)
    assert torch.equal(denoise_step(wide[:, 0], wide[:, 1], *rest), denoise_step(noisy, velocity, *rest))


def test_a_number_that_is_not_finite_spoils_no_other():
    arguments = inputs(3, 63)
    expected = denoise_step(*arguments)
    arguments[1][1, 5] = torch.nan
    found = denoise_step(*arguments)
    assert found[1, 5].isnan()
    found[1, 5] = expected[1, 5]
    assert torch.equal(found, expected)


def test_operator_passes_opcheck():
    for t_next in (0.0, 0.5):
        torch.library.opcheck(torch.ops.worldenv.denoise_step.default, inputs(2, 5, t_next=t_next))


def test_operator_is_traced_without_a_graph_break():
    arguments = inputs(3, 9)

    def step(noisy, velocity, episode, chunk):
        return denoise_step(noisy * 1.0, velocity, 0.5, 0.25, 3, episode, chunk, 1) + 1.0

    traced = torch.compile(step, backend="aot_eager", fullgraph=True)
    tensors = arguments[0], arguments[1], arguments[5], arguments[6]
    torch.testing.assert_close(traced(*tensors), step(*tensors))


def test_backend_variable_forces_the_reference(monkeypatch):
    monkeypatch.setattr(ops, "BACKEND", "reference")
    monkeypatch.setattr(module, "denoise_step_reference", lambda *arguments: "reference ran")
    assert denoise_step(*inputs(2, 3)) == "reference ran"


@pytest.mark.parametrize(
    ("place", "value", "message"),
    [
        (0, torch.tensor(0.0), r"noisy \[\]; it should be 0 <= t_next < t <= 1"),
        (0, torch.zeros(3, 7).double(), "noisy is torch.float64; it should be torch.float32 or torch.bfloat16"),
        (1, torch.zeros(3, 7).half(), "velocity is torch.float16; it should be torch.float32"),
        (1, torch.zeros(3, 6), r"velocity has shape \[3, 6\]; it should be \[3, 7\]"),
        (2, 1.5, r"t is 1.5, t_next 0.5, use 1 .*; it should be 0 <= t_next < t <= 1"),
        (3, 0.75, r"t is 0.75, t_next 0.75, use 1 .*; it should be 0 <= t_next < t <= 1"),
        (5, torch.zeros(3), r"episode is torch.float32 \[3\] on cpu; it should be torch.int64 \[3\] on cpu"),
        (6, torch.zeros(2, dtype=torch.int64), r"chunk is torch.int64 \[2\] on cpu; it should be torch.int64 \[3\]"),
        (7, 256, r"use 256 .*; it should be 0 <= t_next < t <= 1, use in \[0, 256\)"),
    ],
)
def test_wrong_input_is_refused_by_name(place, value, message):
    arguments = list(inputs(3, 7))
    arguments[place] = value
    with pytest.raises(ValueError, match=message):
        denoise_step(*arguments)
