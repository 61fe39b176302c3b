"""`python -m worldenv train ...` is `worldenv-train ...`, with `eval` it is `worldenv-eval`: what torchrun starts."""

import sys

from worldenv.commands.cli import evaluate, train

command = {"train": train, "eval": evaluate}.get((sys.argv + [""])[1])
command(sys.argv[2:]) if command else train(sys.argv[1:])
