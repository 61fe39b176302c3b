"""A released vision-language model in two steps: every frame is seen once, then a prompt is read with what was seen."""

import inspect
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.reflector.vlm.pixels import Look

TASK = "A robot has this task: {task}.\nThese pictures show how it goes, from the first one to the present one:\n"
ANSWERS = (("Yes", "yes", " Yes", " yes"), ("No", "no", " No", " no"))


class Heard(NamedTuple):
    """The beginning of a prompt, which many episodes share: what every layer of the language model keeps of it."""

    length: int  # P, tokens
    layers: list[tuple[Tensor, Tensor]]  # keys and values [1, heads, P, D / heads]


class Vlm(nn.Module):
    """`network` is transformers' own class; a subclass per family says how pictures go into it.

        before (with the task) | open, frame 1, close | open, frame 2, close | ... | question

    The task comes first, so that episodes with one task share it. A frame is a grid of tokens h x w of D numbers; where
    the model also adds features to its first layers (Qwen3-VL), these follow in the same row.
    """

    before: str  # of the chat, with {task}
    ends: tuple[str, str] = ("", "")  # what stands around a frame
    after: str  # of the chat, with {question}

    def __init__(
        self,
        network: nn.Module,
        encode: Callable[[str], list[int]],  # the tokenizer, without tokens that it would add
        look: Look,
        side: int,  # pixels: frames are shown as large as this, where the model lets us choose
        question: str,
        budget: int,  # bytes that a pass may take beside the weights
    ):
        super().__init__()
        self.network, self.encode, self.look, self.side, self.budget = network, encode, look, side, budget
        self.around = [encode(text) for text in self.ends]
        self.question = encode(self.after.format(question=question))
        self.answers = answers_of(encode)

    @property
    def language(self) -> nn.Module:
        return self.network.model.language_model

    @property
    def vision(self) -> nn.Module:
        """The vision tower."""
        raise NotImplementedError

    @property
    def width(self) -> int:
        """D, of the language model."""
        return self.network.config.get_text_config().hidden_size

    @property
    def row(self) -> int:
        """Numbers of one token of a frame."""
        return self.width

    @property
    def weight(self) -> Tensor:
        return self.network.get_input_embeddings().weight

    def size(self, height: int, width: int) -> tuple[int, int]:
        """Pixels of a frame as the vision tower sees it."""
        raise NotImplementedError

    def look_at(self, pixels: Tensor) -> Tensor:  # [N, 3, h, w] -> [N, rows, columns, row]
        """The tokens of frames."""
        raise NotImplementedError

    def tower(self, pixels: Tensor) -> Tensor:
        """`look_at` in a form that can be exported."""
        raise NotImplementedError

    def see(self, frames: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [N, rows, columns, row]
        """The tokens of every frame, in as many passes as the budget asks for."""
        size, vision = self.size(*frames.shape[1:3]), self.network.config.vision_config
        each = size[0] * size[1] // vision.patch_size**2 * _work(vision) * self.weight.element_size()
        at_once = max(1, self.budget // max(1, each))
        return torch.cat([self.look_at(self.look(part, size).to(self.weight)) for part in frames.split(at_once)])

    def prompt(self, task: str) -> list[int]:
        """The tokens before the frames."""
        return self.encode(self.before.format(task=task.strip().rstrip(".")))

    def hear(self, prompt: Tensor) -> Heard:  # [P] int64
        """Read the beginning of a prompt once."""
        positions = self.positions(0, len(prompt), 0, (1, 1))
        cache = self._read(self._embedded(prompt)[None], positions, None, {})[1]
        return Heard(len(prompt), [(layer.keys, layer.values) for layer in cache.layers])

    def hidden(
        self,
        heard: Heard,
        seen: Tensor,  # [B, n, rows, columns, row], n frames in order
    ) -> Tensor:  # [B, D] float32
        """What the language model thinks after frames and question, of episodes that begin with one prompt."""
        text = self.network.config.get_text_config()
        tokens = self.length(heard.length, seen.shape[1], seen.shape[2:4])
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        kept = 2 * text.num_hidden_layers * text.num_key_value_heads * head
        each = tokens * (kept + _work(text)) * self.weight.element_size()
        at_once = max(1, self.budget // each)
        return torch.cat([self._hidden(heard, part) for part in seen.split(at_once)])

    def length(self, prompt: int, frames: int, grid: Sequence[int]) -> int:
        """Tokens of a whole question."""
        return (
            prompt + frames * (len(self.around[0]) + grid[0] * grid[1] + len(self.around[1])) + len(self.question) + 1
        )

    def check_length(self, prompt: int, frames: int, grid: Sequence[int]) -> None:
        """Raise UserError for a question that is longer than the model reads."""
        most, tokens = self.network.config.get_text_config().max_position_embeddings, self.length(prompt, frames, grid)
        if tokens > most:
            raise UserError(
                f"a question about {frames} frames of {grid[0]} x {grid[1]} tokens has {tokens:,} tokens, and the "
                f"model reads {most:,}: lower samples or side"
            )

    def yes(self, hidden: Tensor) -> Tensor:  # [B, D] -> [B] float32
        """log P(yes) - log P(no), of the next token."""
        head = self.network.get_output_embeddings()
        rows = torch.tensor([*self.answers[0], *self.answers[1]], device=hidden.device)
        said = F.linear(hidden.to(head.weight.dtype), head.weight[rows]).float()
        count = len(self.answers[0])
        return said[:, :count].logsumexp(1) - said[:, count:].logsumexp(1)

    def positions(self, begin: int, text: int, frames: int, grid: tuple[int, int]) -> Tensor:  # [1, T] or [3, 1, T]
        """Where tokens stand that come after `begin` others: some frames, and then `text` tokens."""
        tokens = frames * (len(self.around[0]) + grid[0] * grid[1] + len(self.around[1])) + text
        return torch.arange(begin, begin + tokens, device=self.weight.device)[None]

    def tail(self) -> Tensor:  # [Q, D]
        """What follows the frames."""
        return self._embedded(self.question)

    def deep(self, seen: Tensor, tail: int) -> dict[str, Any]:
        """What else the language model takes of frames."""
        return {}

    def _embedded(self, tokens: Tensor | Sequence[int]) -> Tensor:  # [T, D]
        ids = torch.as_tensor(tokens, dtype=torch.int64, device=self.weight.device)
        return self.network.get_input_embeddings()(ids)

    def _hidden(self, heard: Heard, seen: Tensor) -> Tensor:  # [B, D] float32
        from transformers import DynamicCache

        b, n, rows, columns = seen.shape[:4]
        frames = seen[..., : self.width].flatten(2, 3)
        ends = [self._embedded(tokens).expand(b, n, -1, -1) for tokens in self.around]
        tail = self.tail()
        x = torch.cat([torch.cat([ends[0], frames, ends[1]], 2).flatten(1, 2), tail.expand(b, -1, -1)], 1)
        cache = DynamicCache()
        for i, (keys, values) in enumerate(heard.layers):
            cache.update(keys.expand(b, -1, -1, -1), values.expand(b, -1, -1, -1), i)
        positions = self.positions(heard.length, len(tail), n, (rows, columns))
        return self._read(x, positions, cache, self.deep(seen, len(tail)))[0][:, -1].float()

    def _read(self, x: Tensor, positions: Tensor, cache: Any, deep: dict[str, Any]) -> tuple[Tensor, Any]:
        # transformers 5.24 calls `cache` what was `past_key_values`.
        name = "cache" if "cache" in inspect.signature(self.language.forward).parameters else "past_key_values"
        positions = positions.expand(*positions.shape[:-2], len(x), -1)
        out = self.language(inputs_embeds=x, position_ids=positions, use_cache=True, **{name: cache}, **deep)
        return out.last_hidden_state, getattr(out, name)


def _work(config: Any) -> int:
    """Numbers that a token takes while a layer reads it: input, queries, keys, values, results, the MLP's middle."""
    return 6 * config.hidden_size + 3 * config.intermediate_size


def answers_of(encode: Callable[[str], list[int]], where: object = "tokenizer.json") -> tuple[list[int], list[int]]:
    """The tokens with which "yes" and "no" begin. Raises UserError if the tokenizer cannot tell them apart."""
    yes, no = ({tokens[0] for word in words if (tokens := encode(word))} for words in ANSWERS)
    if not yes - no or not no - yes:
        raise UserError(f"{where} has no tokens of their own for yes and no; download the model's own file")
    return sorted(yes - no), sorted(no - yes)
