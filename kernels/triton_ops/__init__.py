"""Triton faces of the ops, one file each; installed as `worldenv.kernels`. Can be imported without triton."""

TRITON_ERROR: str | None = None  # why no Triton face can run; None where triton imports

try:
    import triton  # noqa: F401
except Exception as error:  # a broken install raises more than ImportError; the reason is kept and shown
    TRITON_ERROR = f"{type(error).__name__}: {error}"
