"""`python -m worldenv` is `worldenv-train`."""

from worldenv.cli import train

train()
