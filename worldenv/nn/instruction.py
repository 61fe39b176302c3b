"""Instructions as tokens: a closed vocabulary of words, enough for the embedded suite."""

import re
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from worldenv.errors import UserError

WORDS = (
    *("<pad>", "<unknown>", "put", "place", "move", "set", "push", "slide", "stack", "drop", "the", "a"),
    *("on", "onto", "to", "into", "in", "top", "of", "down", "over"),
    *("red", "green", "blue", "yellow", "purple", "orange", "cyan", "white", "block", "can", "puck", "pad", "tray"),
)
MAX_WORDS = 12
_INDEX = {word: i for i, word in enumerate(WORDS)}


def tokenize(instructions: Sequence[str]) -> Tensor:  # [B, MAX_WORDS] int64, on the CPU
    """Words to indices, padded with 0; a word or number outside the vocabulary becomes `<unknown>`.

    Raises UserError if an instruction is empty, longer than MAX_WORDS words, or has no known word at all, and if two
    that differ in unknown words would be read alike.
    """
    tokens = torch.zeros(len(instructions), MAX_WORDS, dtype=torch.long, device="cpu")
    said: dict[tuple[int, ...], list[str]] = {}
    for row, text in zip(tokens, instructions, strict=True):
        words = re.findall(r"[^\W_]+", text.lower())
        known = [_INDEX.get(word, 1) for word in words]
        if not 0 < len(words) <= MAX_WORDS or max(known) == 1:
            raise UserError(
                f"instruction {text!r} should have 1 to {MAX_WORDS} words, some of them among: {' '.join(WORDS[2:])}"
            )
        if (other := said.setdefault(tuple(known), words)) != words:
            raise UserError(
                f"instructions {' '.join(other)!r} and {' '.join(words)!r} differ in unknown words alone, and would be "
                f"read alike; known are: {' '.join(WORDS[2:])}"
            )
        row[: len(known)] = torch.tensor(known, device="cpu")
    return tokens


class InstructionEncoder(nn.Module):
    """Tokens [B, L] int64 -> one vector [B, D]: word embeddings read by a GRU, so that word order counts.

    Float32 input [B, D] has been read already and is returned unchanged, so that a caller can read each text once.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.embed = nn.Embedding(len(WORDS), 32, padding_idx=0)
        self.read = nn.GRU(32, width, batch_first=True)

    tokenize = staticmethod(tokenize)

    def forward(self, tokens: Tensor) -> Tensor:
        if tokens.is_floating_point():
            return tokens
        unique, index = torch.unique(tokens, dim=0, return_inverse=True)  # a batch has few distinct instructions
        hidden, _ = self.read(self.embed(unique))
        last = (unique != 0).sum(1) - 1
        return hidden[torch.arange(len(unique), device=tokens.device), last][index]
