"""Released vision-language models as judges: by features of frames, by what the language model thinks, by yes or no.

The name of such a reflector is `vlm:FOLDER`. The folder is the authors' (a judge without labels), or one with a
reflector.json, which names the authors' folder and says how to ask, and with the head that was trained for it.
"""

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from worldenv.errors import UserError, nearest
from worldenv.fields import Within, check_fields, from_document, shown
from worldenv.files import read_json, write_text
from worldenv.interfaces.observation import Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.slots import Slots
from worldenv.ops.reward_head import reward_head
from worldenv.records.checkpoint import CheckpointError, load_weights, save_weights
from worldenv.reflector.small import Pooled
from worldenv.reflector.vlm.kept import frames as kept_frames
from worldenv.reflector.vlm.kept import keep, places
from worldenv.reflector.vlm.load import inspect_vlm, load_vlm
from worldenv.reflector.vlm.lora import Adapter, check_adapter
from worldenv.reflector.vlm.model import Vlm

SETTINGS, HEAD, ADAPTER = "reflector.json", "head.safetensors", "adapter"
KIND = "head of a vlm"
TAIL_BYTES = 1 << 20  # of every file of weights, by which a model is known again


@dataclass(frozen=True)
class VlmConfig:
    """How a vision-language model is asked: the fields of reflector.json."""

    vlm: Path  # folder of the model, as its authors publish it
    mode: Literal["zero-shot", "language", "features"] = "zero-shot"
    threshold: float = 0.5  # eta: stop when R > eta
    question: str = "Is the task done in the last picture? Answer yes or no."
    samples: int = 32  # frames of an episode that are kept for the language model
    every: int = 4  # frames between two questions; the reward in between is the last answer's
    side: int = 224  # pixels: Qwen-VL is shown frames at least this large; the others have a size of their own
    cells: int = 2  # mode features: a frame is pooled into cells x cells vectors
    width: int = 256  # of the head
    view: str = ""  # the camera whose frames are shown; "": the suite's first
    dtype: Literal["file", "float32", "bfloat16", "float16"] = "file"  # of the model; file: as its weights are stored
    memory_mb: int = 2048  # that a pass may take beside the weights

    def __post_init__(self) -> None:
        check_fields(
            self,
            threshold=Within(0, 1, open_low=True, open_high=True),
            samples=Within(4, 1024),
            every=Within(1, 1024),
            side=Within(28, 4096),
            cells=Within(1, 16),
            width=Within(1, 65_536),
            memory_mb=Within(1, 1_000_000),
        )


@dataclass
class Watched(Slots):
    """What is kept of each episode for the language model."""

    prompt: Tensor  # [E, P] int64, tokens before the frames; -1: the prompt is shorter
    kept: Tensor  # [E, samples, rows, columns, D], tokens of frames, spread over the episode (vlm/kept.py)
    count: Tensor  # [E] int64, frames so far
    reward: Tensor  # [E] float32, the last answer; 0 before the first


class VlmReflector(nn.Module):
    """R_t in [0, 1] after every frame (World-Env, arXiv 2509.24948, reflector); nothing of the model is trained.

    - features: head(present, change since the first frame, mean so far) of pooled tokens of the vision tower, beside
      what the language model makes of the instruction. Frames are seen once, and an episode is a few vectors.
    - language: head(what the language model thinks after the sampled frames and the question), every `every` frames.
    - zero-shot: its next token, P(yes) / (P(yes) + P(no)). There is no head.

    A question costs a pass of the language model over all sampled frames of the episodes that are due.
    """

    def __init__(self, vlm: Vlm, config: VlmConfig, view: int = 0, adapter: Adapter | None = None):
        super().__init__()
        self.vlm, self.config, self.view = vlm, config, view
        self.adapter = adapter  # no module of its own: it shares those of `vlm`
        inputs = 3 * vlm.width * (config.cells**2 + 1) if config.mode == "features" else vlm.width
        self.head = None if config.mode == "zero-shot" else _head(inputs, config.width)

    @property
    def every(self) -> int:
        """Frames between two judgements."""
        return 1 if self.config.mode == "features" else self.config.every

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """The vision tower with its projector, of pictures that are prepared."""
        shown = self.vlm.size(*size)

        def pixels(rows: int) -> dict[str, Tensor]:
            return {"pixels": torch.randn(rows, 3, *shown)}

        return {"vision-tower": Piece(self.vlm, self.vlm.tower, pixels, ("tokens",))}

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:  # [M, P] int64, or [M, D] float32 for the features
        """The beginnings of the prompts as tokens, or what the language model makes of them."""
        prompts = [torch.tensor(self.vlm.prompt(text), device=self.vlm.weight.device) for text in texts]
        if self.config.mode != "features":
            return nn.utils.rnn.pad_sequence(prompts, batch_first=True, padding_value=-1)
        unseen = self.vlm.weight.new_zeros(1, 0, 1, 1, self.vlm.row)
        read = torch.cat([self.vlm.hidden(self.vlm.hear(prompt), unseen) for prompt in prompts])
        return F.layer_norm(read, read.shape[-1:])

    @torch.no_grad()
    def begin(self, seen: Observation, read: Tensor) -> Pooled | Watched:
        """See the first frames of new episodes."""
        tokens, read = self.vlm.see(seen.frames[:, self.view]), read[seen.text]
        count = torch.ones(len(tokens), dtype=torch.int64, device=tokens.device)
        if self.config.mode == "features":
            feature = self.feature(tokens, read)
            return Pooled(read, feature, feature.clone(), count[:, None].float())
        self.vlm.check_length(read.shape[1], self.config.samples, tokens.shape[1:3])
        kept = tokens.new_zeros(len(tokens), self.config.samples, *tokens.shape[1:])
        kept[:, 0] = tokens
        return Watched(read, kept, count, torch.zeros(len(tokens), device=tokens.device))

    @torch.no_grad()
    def judge(
        self,
        frames: Tensor,  # [B, K, V, H, W, 3] uint8, the new frames
        state: Pooled | Watched,  # moved on in place
    ) -> tuple[Tensor, Tensor]:  # [B, K] float32 in [0, 1]; [B, K] bool
        """Reward and stop after each new frame; only the new frames are seen."""
        b, k = frames.shape[:2]
        tokens = self.vlm.see(frames[:, :, self.view].flatten(0, 1)).unflatten(0, (b, k))
        if isinstance(state, Pooled):
            feature = self.feature(tokens, state.instruction[:, None].expand(-1, k, -1))
            weights = (part for layer in (self.head[0], *self.head[1::2]) for part in (layer.weight, layer.bias))
            return reward_head(feature, state.first, state.total, state.count, *weights, self.config.threshold)
        reward, ages = torch.empty(b, k, device=tokens.device), _by_age(state.count)
        for i in range(k):
            for count, rows in ages:
                self._watch(state, rows, count + i, tokens[:, i])
            state.count += 1
            reward[:, i] = state.reward
        return reward, reward > self.config.threshold

    def _watch(self, state: Watched, rows: Tensor, count: int, tokens: Tensor) -> None:
        """Show episodes that have seen `count` frames the next one, and ask where it is time to."""
        room = self.config.samples
        keep(state.kept, rows, count, tokens[rows])
        if count % self.every == 0:
            kept = places(count + 1, room)
            place = torch.arange(len(kept), device=rows.device)  # made there: a copy from the host would wait
            place[-1:] = kept[-1]
            hidden = self.hidden(state.prompt[rows], state.kept[rows[:, None], place])
            state.reward[rows] = torch.sigmoid(self.logit(hidden))

    def feature(self, tokens: Tensor, read: Tensor) -> Tensor:  # [..., rows, columns, row], [..., D] -> [..., D']
        """Pooled tokens of frames beside the instruction, each normalised."""
        leading, cells = tokens.shape[:-3], self.config.cells
        grid = tokens[..., : self.vlm.width].flatten(0, -4).permute(0, 3, 1, 2).float()
        pooled = F.adaptive_avg_pool2d(grid, cells).flatten(1)
        return torch.cat([F.layer_norm(pooled, pooled.shape[-1:]).unflatten(0, leading), read], -1)

    def hidden(self, prompts: Tensor, seen: Tensor) -> Tensor:  # [B, P], [B, n, rows, columns, row] -> [B, D] float32
        """What the language model thinks of n frames of each episode; a prompt that several share is read once."""
        unique, which = prompts.unique(dim=0, return_inverse=True)
        out = torch.zeros(len(seen), self.vlm.width, device=seen.device)
        for i, prompt in enumerate(unique):
            rows = (which == i).nonzero()[:, 0]
            out = out.index_copy(0, rows, self.vlm.hidden(self.vlm.hear(prompt[prompt >= 0]), seen[rows]))
        return out

    @torch.no_grad()
    def features(self, frames: Tensor, texts: Sequence[str]) -> Tensor:  # [N, T, V, H, W, 3] -> [N, T, D] float32
        """What the head gets after each frame of whole episodes, on the CPU; zeros where it is not asked."""
        tokens, read = self.tokens(frames), self.read(texts)
        if self.config.mode == "features":
            return self.feature(tokens, read[:, None].expand(-1, tokens.shape[1], -1)).cpu()
        out = torch.zeros(*tokens.shape[:2], self.vlm.width)
        for t in range(0, tokens.shape[1], self.every):
            out[:, t] = self.hidden(read, tokens[:, kept_frames(t + 1, self.config.samples)]).cpu()
        return out

    @torch.no_grad()
    def tokens(self, frames: Tensor) -> Tensor:  # [N, T, V, H, W, 3] uint8 -> [N, T, rows, columns, row]
        """Whole episodes as the vision tower sees them."""
        shown = frames[:, :, self.view].flatten(0, 1).to(self.vlm.weight.device)
        return self.vlm.see(shown).unflatten(0, frames.shape[:2])

    def logit(self, feature: Tensor, first: Tensor | None = None, mean: Tensor | None = None) -> Tensor:
        """[..., D] features -> [...] logits; mode features also looks at the first feature and the mean so far."""
        if self.config.mode == "zero-shot":
            return self.vlm.yes(feature.flatten(0, -2)).unflatten(0, feature.shape[:-1])
        if self.config.mode == "features":
            feature = torch.cat([feature, feature - first, mean], dim=-1)
        return self.head(feature)[..., 0]

    def trainable(self) -> nn.ModuleList:
        """What training changes: the head and the adapter, as far as there are any, and no more than these."""
        adapter = [] if self.adapter is None else self.adapter.parameters()
        return nn.ModuleList([*([self.head] if self.head else []), nn.ParameterList(adapter)])

    def save(self, folder: Path, made: dict) -> None:
        """Write what `load_vlm_reflector` reads; the model itself stays where it is."""
        if self.adapter is not None:
            self.adapter.save(folder / ADAPTER)
        if self.head is not None:
            known = {"kind": KIND, "model": fingerprint(self.config.vlm), "made": made}
            save_weights(folder / HEAD, self.head, known)
        settings = asdict(self.config) | {"vlm": str(self.config.vlm.absolute())}
        write_text(folder / SETTINGS, json.dumps(settings, indent=1) + "\n")


def _by_age(count: Tensor) -> list[tuple[int, Tensor]]:
    """Ages and the rows of that age: they keep the same frames. The host waits for the device once."""
    ages, each = count.cpu().unique(return_counts=True)
    return list(zip(ages.tolist(), count.argsort(stable=True).split(each.tolist()), strict=True))


def _head(inputs: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.LayerNorm(inputs), nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, 64), nn.ReLU(), nn.Linear(64, 1)
    )


def new_vlm_reflector(config: VlmConfig, views: Sequence[str], rank: int = 0) -> VlmReflector:
    """A reflector whose head is not trained yet; `rank` > 0 gives the language model a new adapter.

    Raises UserError as `load_vlm` does, and for a view that there is not.
    """
    view = _view(config, views)
    vlm = load_vlm(config.vlm, config.dtype, config.side, config.question, config.memory_mb * 2**20)
    return VlmReflector(vlm, config, view, Adapter.new(vlm, rank) if rank else None)


def load_vlm_reflector(folder: Path, views: Sequence[str]) -> VlmReflector:
    """The judge of a folder: the authors' own folder of a model (mode zero-shot), or one with a reflector.json.

    Raises UserError, before weights of the model are read, as `inspect_vlm_reflector` does.
    """
    config = _settings_that_fit(folder, views)
    reflector = new_vlm_reflector(config, views)
    if reflector.head is not None:
        load_weights(folder / HEAD, reflector.head)
    if (folder / ADAPTER).is_dir():
        reflector.adapter = Adapter.load(reflector.vlm, folder / ADAPTER)
    return reflector.eval()


def inspect_vlm_reflector(folder: Path, views: Sequence[str]) -> None:
    """Look through the folder of a judge and that of its model.

    Raises UserError for settings, head or adapter that are missing, damaged, or belong to another model, and as
    `inspect_vlm` does.
    """
    inspect_vlm(_settings_that_fit(folder, views).vlm)


def _settings_that_fit(folder: Path, views: Sequence[str]) -> VlmConfig:
    config = settings_of(folder)
    _view(config, views)
    head = folder / HEAD
    if config.mode != "zero-shot" and not os.path.lexists(head):
        raise CheckpointError(
            f"{head} is not there, and mode {config.mode} needs a head: train one (worldenv-reflector), or set the "
            f"mode in {SETTINGS} to zero-shot"
        )
    if config.mode != "zero-shot":
        known = load_weights(head)[1]
        if known.get("kind") != KIND or known.get("model") != fingerprint(config.vlm):
            raise CheckpointError(f"{head} was trained on another model than {config.vlm}: train one for this model")
    if (folder / ADAPTER).is_dir():
        check_adapter(folder / ADAPTER)
    return config


def settings_of(folder: Path) -> VlmConfig:
    """Those of reflector.json, where what is left out has its default; of an authors' folder, the defaults."""
    path = folder / SETTINGS
    if not path.exists():
        return VlmConfig(vlm=folder)
    document = read_json(path)
    if not isinstance(document.get("vlm"), str):
        raise UserError(f'{path} does not say in "vlm" which folder the model is in; add it')
    defaults = asdict(VlmConfig(vlm=folder))
    if unknown := sorted(document.keys() - defaults.keys()):
        raise UserError(f"{path} has an unknown setting {shown(unknown[0])}{nearest(unknown[0], defaults)}")
    config = from_document(VlmConfig, defaults | document, str(path))
    return replace(config, vlm=folder / config.vlm)  # an absolute path stays what it is


def fingerprint(folder: Path) -> str:
    """What a model is known by: configuration, and size and end of every file of weights."""
    found = hashlib.sha256()
    for path in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        try:
            with path.open("rb") as file:
                size = file.seek(0, os.SEEK_END)
                file.seek(max(0, size - TAIL_BYTES))
                found.update(f"{path.name} {size}\n".encode() + file.read())
        except OSError as error:
            raise UserError(f"{path} cannot be read ({error.strerror}): give the folder of the model") from error
    return found.hexdigest()


def _view(config: VlmConfig, views: Sequence[str]) -> int:
    if config.view and config.view not in views:
        raise UserError(f"the reflector looks at the view {config.view!r}; there are {', '.join(views)}")
    return list(views).index(config.view) if config.view else 0
