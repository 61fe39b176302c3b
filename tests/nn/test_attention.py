import sys
import types
import warnings

import pytest
import torch

from worldenv.nn import attention as module
from worldenv.nn.attention import attention, why_not


def tokens(seed=0, n=7, heads=3, width=16):
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(2, n, heads, width, generator=draw) for _ in range(3)]


@pytest.fixture(autouse=True)
def forget_what_was_found():
    why_not.cache_clear()
    yield
    why_not.cache_clear()


@pytest.mark.parametrize("backend", ["sdpa", "ours", None])
def test_backends_give_what_the_formula_says(backend):
    query, key, value = tokens()
    weight = (torch.einsum("bnhd,bmhd->bhnm", query, key) / 4).softmax(-1)
    expected = torch.einsum("bhnm,bmhd->bnhd", weight, value)
    torch.testing.assert_close(attention(query, key, value, backend), expected, rtol=1e-5, atol=1e-5)


def test_torchs_own_has_a_gradient_and_ours_says_that_it_has_none():
    query, key, value = (x.requires_grad_() for x in tokens())
    attention(query, key, value, "sdpa").sum().backward()
    assert query.grad.any()
    with pytest.raises(ValueError, match="has no gradient"):
        attention(query, key, value, "ours")


@pytest.mark.parametrize("backend", ["flash-attn", "xformers"])
def test_a_backend_that_was_asked_for_and_is_missing_is_refused_with_the_reason(backend, monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=f"{backend} cannot be used: not installed"):
        attention(*tokens(), backend)


def test_a_backend_that_is_installed_still_needs_a_device(monkeypatch):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert why_not("xformers") == "needs a CUDA device"


def on_a_device(monkeypatch, capability=(9, 0)):
    monkeypatch.setattr(module.importlib.util, "find_spec", lambda name: object())
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda: capability)
    zeros = torch.zeros
    monkeypatch.setattr(torch, "zeros", lambda *size, device=None, **how: zeros(*size, **how))


def test_a_broken_build_is_found_by_one_call_and_its_reason_kept(monkeypatch):
    on_a_device(monkeypatch)

    def broken(*_):
        raise RuntimeError("undefined symbol\nand more")

    monkeypatch.setitem(sys.modules, "flash_attn", types.SimpleNamespace(flash_attn_func=broken))
    assert why_not("flash-attn") == "RuntimeError: undefined symbol"


def test_an_old_device_is_named(monkeypatch):
    on_a_device(monkeypatch, (7, 5))
    assert why_not("flash-attn") == "needs compute capability 8.0"


def test_unknown_backend_is_refused():
    with pytest.raises(ValueError, match="backend is 'fast'; it should be one of flash-attn"):
        attention(*tokens(), "fast")


def test_torchs_own_is_compiled_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        compiled = torch.compile(lambda query, key, value: attention(query, key, value), backend="eager")
        torch.testing.assert_close(compiled(*tokens()), attention(*tokens()))
