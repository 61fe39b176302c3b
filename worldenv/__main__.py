"""`python -m worldenv [train] ...` is `worldenv-train ...`: what torchrun starts."""

import sys

from worldenv.cli import train

train(sys.argv[2:] if sys.argv[1:2] == ["train"] else sys.argv[1:])
