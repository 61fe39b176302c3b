"""Instructions as flow policies read them: the text and a new line, in the tokens of the model that they grew from."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import open_tokenizer

FILE = "tokenizer.json"
PADDING = -1  # no id of a token


class Prompt:
    """Turns instructions into ids.

    `begin` is the token that all prompts begin with; None: those that the tokenizer adds itself. Raises CheckpointError
    if the tokenizer is missing or damaged.
    """

    def __init__(self, folders: Sequence[Path], begin: str | None, longest: int, source: str):
        path = next((folder / FILE for folder in folders if (folder / FILE).is_file()), None)
        if path is None:
            raise CheckpointError(
                f"{folders[0]} has no {FILE}: the policy reads instructions in the tokens of {source}; copy that "
                f"model's {FILE} into {folders[-1]}, or name the folder where it lies, `vlm`"
            )
        self.tokenizer = open_tokenizer(path)
        self.longest = longest
        self.begin = None if begin is None else self.tokenizer.token_to_id(begin)
        if begin is not None and self.begin is None:
            raise CheckpointError(f"{path} has no token {begin}, so it is not that of {source}; copy it again")

    def ids(self, text: str) -> list[int]:
        """The ids of an instruction; what is longer than the policy was trained with is cut off."""
        said = text if text.endswith("\n") else f"{text}\n"
        own = self.tokenizer.encode(said, add_special_tokens=self.begin is None).ids
        return [*([] if self.begin is None else [self.begin]), *own][: self.longest]

    def read(self, texts: Sequence[str]) -> Tensor:  # [M, L] int64, on the CPU
        """Prompts of one length, padded at their ends."""
        rows = [self.ids(text) for text in texts]
        longest = max(map(len, rows))
        padded = [[*row, *[PADDING] * (longest - len(row))] for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device="cpu")
