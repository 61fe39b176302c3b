"""The ops, one module each, and the only door to compiled code. Nothing lists them: import the one you need.

The device of the tensor picks the face. Where no face is built for a device, the op's reference is what torch runs
there, and `worldenv-info` says so; a face that cannot take its input raises. WORLDENV_BACKEND=reference, read once at
import, makes every op run its reference.
"""

import os

try:
    from worldenv import _C  # noqa: F401  importing it registers the CPU faces with torch
except ImportError as error:
    raise ImportError(
        f"worldenv._C cannot be loaded ({error}). Build it for this Python and this torch: run `pip install .` (or "
        "`python setup.py build_ext --inplace`) in the source tree."
    ) from error

BACKEND = os.environ.get("WORLDENV_BACKEND", "")
if BACKEND not in ("", "reference"):
    raise ValueError(f"WORLDENV_BACKEND is {BACKEND!r}; it should be 'reference' or not be set")
