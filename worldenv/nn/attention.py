"""Attention among all tokens of a sequence: torch's own function, or another library that was asked for by name.

Encoders and training use it. The op `windowed_attention` is another one: it reads an episode's past from a cache.
"""

import functools
import importlib
import importlib.util
import os
import warnings
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.ops.windowed_attention import windowed_attention

# WORLDENV_ATTENTION, read once at import, is one of these; sdpa where it is not set.
BACKENDS = ("flash-attn", "xformers", "sdpa", "ours")
WANTED = os.environ.get("WORLDENV_ATTENTION", "sdpa")
if WANTED not in BACKENDS:
    raise ValueError(f"WORLDENV_ATTENTION is {WANTED!r}; it should be one of {', '.join(BACKENDS)}, or not be set")
INSTALL = {
    "flash-attn": "not installed; see its own page for a wheel that fits this torch and CUDA",
    "xformers": 'not installed: pip install "worldenv[xformers]"',
}
# Library of released models -> its names of the backends that it knows.
NAMES = {
    "transformers": {"sdpa": "sdpa", "flash-attn": "flash_attention_2"},
    "diffusers": {"sdpa": "native", "flash-attn": "flash", "xformers": "xformers"},
}
LEAST_CAPABILITY = (8, 0)  # of a CUDA device, for flash-attn and xformers in bfloat16


def _flash(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return importlib.import_module("flash_attn").flash_attn_func(query, key, value)


def _xformers(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return importlib.import_module("xformers.ops").memory_efficient_attention(query, key, value)


def _sdpa(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    query, key, value = (x.transpose(1, 2) for x in (query, key, value))
    return F.scaled_dot_product_attention(query, key, value).transpose(1, 2)


def _ours(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    if torch.is_grad_enabled() and (query.requires_grad or key.requires_grad or value.requires_grad):
        raise ValueError("the attention of this package has no gradient: take another backend for training")
    key, value = (x.transpose(1, 2).contiguous() for x in (key, value))
    length = torch.full((len(query),), key.shape[2], dtype=torch.int32, device=query.device)
    return windowed_attention(query, key, value, length)


CALLS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "flash-attn": _flash,
    "xformers": _xformers,
    "sdpa": _sdpa,
    "ours": _ours,
}


@functools.cache
def why_not(backend: str) -> str | None:
    """Why a backend cannot be used on this machine's CUDA device; None if it can.

    An installed library may fail to import, and an imported one may fail on the device. So it is called once there.
    """
    if backend in ("sdpa", "ours"):
        return None
    try:
        found = importlib.util.find_spec({"flash-attn": "flash_attn", "xformers": "xformers"}[backend])
    except (ImportError, ValueError) as error:
        return f"{type(error).__name__}: {error}"
    if found is None:
        return INSTALL[backend]
    if not torch.cuda.is_available():
        return "needs a CUDA device"
    if torch.cuda.get_device_capability() < LEAST_CAPABILITY:
        return f"needs compute capability {'.'.join(map(str, LEAST_CAPABILITY))}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tokens = torch.zeros(1, 8, 1, 64, dtype=torch.bfloat16, device="cuda")
            CALLS[backend](tokens, tokens, tokens)
    except Exception as error:  # whatever a broken build raises; the reason is kept and shown
        return f"{type(error).__name__}: {str(error).splitlines()[0] if str(error) else ''}"
    return None


def attention(
    query: Tensor,  # [B, N, H, D]
    key: Tensor,  # [B, N, H, D]
    value: Tensor,  # [B, N, H, D]
    backend: str | None = None,  # one of BACKENDS; None: what WORLDENV_ATTENTION says, else sdpa
) -> Tensor:  # [B, N, H, D]
    """softmax(query key^T / sqrt(D)) value, every token looking at every other.

    sdpa is torch's own function, which picks the best of its kernels (flash attention among them) for the input.
    Raises ValueError, with the reason, if a backend asked for by name cannot be used; no other one replaces it.
    """
    backend = backend or WANTED
    if backend not in BACKENDS:
        raise ValueError(f"backend is {backend!r}; it should be one of {', '.join(BACKENDS)}")
    reason = None
    if backend in INSTALL:  # only these are probed: torch.compile warns of the cached probe
        reason = why_not(backend) or (None if query.is_cuda else "needs CUDA tensors")
    if reason:
        raise ValueError(f"attention backend {backend} cannot be used: {reason}")
    return CALLS[backend](query, key, value)


def name_in(library: str) -> str:
    """What transformers or diffusers call the backend that WORLDENV_ATTENTION asks for.

    Raises UserError if the library does not know it, or if it cannot be used here; no other one replaces it.
    """
    if WANTED not in NAMES[library]:
        raise UserError(
            f"WORLDENV_ATTENTION is {WANTED}, which models of {library} do not have; they have "
            f"{', '.join(NAMES[library])}"
        )
    check_usable()
    return NAMES[library][WANTED]


def check_usable() -> None:
    """Raise UserError if the backend that WORLDENV_ATTENTION asks for cannot be used here."""
    if reason := why_not(WANTED):
        raise UserError(f"WORLDENV_ATTENTION is {WANTED}, which cannot be used: {reason}")
