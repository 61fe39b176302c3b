"""Instructions as OpenVLA-OFT reads them: a prompt in the tokens of Llama 2."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from worldenv.records.checkpoint import CheckpointError
from worldenv.records.released import open_tokenizer

FILE = "tokenizer.json"
TEXT = "In: What action should the robot take to {}?\nOut:"
BEGIN, STOP = 1, 2  # ids of <s> and </s>
SPACE = 29871  # the id that ends every prompt, as when the policy was trained


class Prompt:
    """Turns instructions into ids. Raises CheckpointError if the tokenizer is missing or damaged."""

    def __init__(self, folder: Path, pad: int):
        path = folder / FILE
        if not path.is_file():
            raise CheckpointError(
                f"{folder} has no {FILE}; copy it from the release (tokenizer.model alone is not enough: load it with "
                "transformers' LlamaTokenizerFast and save it again)"
            )
        self.tokenizer = open_tokenizer(path)
        self.pad = pad

    def ids(self, text: str) -> list[int]:
        """<s>, the prompt, and the last id of all prompts."""
        ids = self.tokenizer.encode(TEXT.format(text.lower())).ids
        return [*([] if ids[:1] == [BEGIN] else [BEGIN]), *ids, *([] if ids[-1:] == [SPACE] else [SPACE])]

    def read(self, texts: Sequence[str]) -> Tensor:  # [M, L] int64, on the CPU
        """Prompts of one length: padded after <s>, where the pictures will be, so that all end alike."""
        rows = [self.ids(text) for text in texts]
        longest = max(map(len, rows))
        padded = [[row[0], *[self.pad] * (longest - len(row)), *row[1:]] for row in rows]
        return torch.tensor(padded, dtype=torch.int64, device="cpu")
