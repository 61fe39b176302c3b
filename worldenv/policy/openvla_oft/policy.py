"""OpenVLA-OFT behind the interface `Policy`: Laplace actions of its L1 head, or draws of its action tokens."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from worldenv.interfaces.observation import Key, Observation
from worldenv.interfaces.pieces import Piece
from worldenv.interfaces.policy import Decision
from worldenv.interfaces.slots import Slots
from worldenv.interfaces.suite import Suite
from worldenv.nn.attention import check_usable
from worldenv.nn.compiled import compile_if_wanted
from worldenv.ops.philox import Use, philox
from worldenv.policy import lora
from worldenv.policy.adapted import Adapted
from worldenv.policy.laplace import LaplacePolicy
from worldenv.policy.openvla_oft.config import OpenVLAConfig
from worldenv.policy.openvla_oft.folder import (
    ADAPTER,
    OUTPUT,
    Found,
    has_adapter_alone,
    inspect_policy,
    read_head,
    write_policy,
)
from worldenv.policy.openvla_oft.network import ActionHead
from worldenv.policy.openvla_oft.pictures import prepared
from worldenv.policy.openvla_oft.statistics import Units
from worldenv.records.released import DTYPES


@dataclass
class Moment(Slots):
    """All that the policy looks at, of B moments, and what it drew. Frames cost less than the states of a chunk."""

    frames: Tensor  # [B, V, H, W, 3] uint8
    proprio: Tensor  # [B, P] float32
    tokens: Tensor  # [B, L] int64
    bins: Tensor | None = None  # [B, K * A] int64, of a policy with action tokens


class OpenVLA(Adapted):
    """What both kinds have in common. Made by `load_openvla_oft`.

    Of the network, low-rank adapters learn, and else nothing; the heads learn as a whole.
    """

    def __init__(self, found: Found, known: int, merged: Sequence[str]):
        super().__init__(found.folder, known)
        self.found, self.config, self.views, self.chunk = found, found.config, found.views, found.config.chunk
        self.network, self.prompt = found.network, found.prompt
        self.numbers = self.chunk * len(found.bounds["action"].low)  # K * A
        self.units = Units(found.bounds["action"], found.bounds.get("proprio"), self.config.conventions)
        self.register_buffer("mean", torch.tensor(found.mean), persistent=False)  # [2, 3]
        self.register_buffer("std", torch.tensor(found.std), persistent=False)  # [2, 3]
        self.proprio_projector = found.heads.get("proprio_projector")
        self._merged = merged  # weights that the checkpoint's own adapter has changed: the files do not have them so
        self.network.requires_grad_(False)
        if self.config.lora:
            lora.add_lora(self.network, self.config.lora, self.config.layers, but=OUTPUT)
        if self.proprio_projector is not None:
            self.proprio_projector.requires_grad_(self.config.lora > 0)  # its gradient goes through the whole network

    @property
    def reads_proprio(self) -> bool:
        return self.proprio_projector is not None

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:  # [M, L] int64
        """The prompts of the instructions, in ids."""
        return self.prompt.read(texts).to(self.frozen.device)

    def moment(self, seen: Observation, read: Tensor, key: Key | None = None) -> Moment:
        """What `log_prob` will need of these moments."""
        return Moment(seen.frames, seen.proprio, read[seen.text])

    def hidden(self, moment: Moment) -> Tensor:  # [B, K * A, D], in the network's dtype
        """The state of every number of the chunk."""
        given = self.found.size, self.config.conventions, self.mean, self.std
        pixels = prepared(moment.frames, *given)
        proprio = None
        if self.proprio_projector is not None:
            proprio = self.proprio_projector(self.units.proprio(moment.proprio))
        return self.network(pixels, moment.tokens, proprio, self.numbers, self.config.conventions.stop)

    def write_back(self, folder: Path | str) -> Path:
        """Write the policy as it is now in its authors' layout, so that their code runs it; see `write_policy`."""
        names = {*self._merged, *(lora.adapted(self.network) if self.config.lora else ())}
        changed = {name: partial(lora.whole, self.network, name) for name in names}
        return write_policy(self.found, folder, changed, self._heads())

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """Both vision towers and the projector, of pictures that are prepared; adapters are applied."""
        s = self.found.size

        def pixels(rows: int) -> dict[str, Tensor]:
            return {"pixels": torch.randn(rows, len(self.views), 2, 3, s, s)}

        return {"vision-tower": Piece(self.network, self.network.seen, pixels, ("patches",))}

    def _heads(self) -> dict[str, nn.Module]:
        return {} if self.proprio_projector is None else {"proprio_projector": self.proprio_projector}


class OpenVLALaplace(OpenVLA, LaplacePolicy):
    """Laplace(mu, exp(beta)): mu of the L1 head, beta of a scale head of the same shape, within bounds.

    Both are in the environment's units, so the authors' affine map of actions changes no ratio. A new scale head gives
    exp(beta) = `scale` everywhere; `worldenv.fit_scale` fits it to demonstrations.
    """

    def __init__(self, found: Found, known: int, merged: Sequence[str]):
        super().__init__(found, known, merged)
        self.action_head = found.heads["action_head"].requires_grad_(True)
        self.scale_head = (found.heads.get("scale_head") or self._new_scale_head()).requires_grad_(True)
        self.finish()

    def distribution(self, record: Moment) -> tuple[Tensor, Tensor]:
        """mu and beta [B, K, A] float32, in the environment's units."""
        hidden = self.hidden(record).float()
        low, high = math.log(self.config.scale_low), math.log(self.config.scale_high)
        beta = low + (high - low) * torch.sigmoid(self.scale_head(hidden))
        return self.units.action(self.action_head(hidden)), self.units.log_scale(beta)

    def _new_scale_head(self) -> ActionHead:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            inner = self.action_head.model.fc1
            head = ActionHead(inner.out_features, self.action_head.numbers)
        low, middle, high = (math.log(x) for x in (self.config.scale_low, self.config.scale, self.config.scale_high))
        share = (middle - low) / (high - low)
        nn.init.zeros_(head.model.fc2.weight)
        nn.init.constant_(head.model.fc2.bias, math.log(share / (1 - share)))
        return head

    def _heads(self) -> dict[str, nn.Module]:
        return super()._heads() | {"action_head": self.action_head, "scale_head": self.scale_head}


class OpenVLATokens(OpenVLA):
    """Each number of a chunk is one of 256 tokens, the last ones of the vocabulary, drawn at a temperature.

    The log-probability of a chunk is the sum of its tokens'. What `log_prob` is asked about is the record's tokens.
    """

    def __init__(self, found: Found, known: int, merged: Sequence[str]):
        super().__init__(found, known, merged)
        bins = found.bins
        edges = torch.linspace(-1, 1, bins, dtype=torch.float64)
        middles = (edges[:-1] + edges[1:]) / 2
        # The last token is the first bin; tokens one more than bins, so the first two share the last bin.
        order = (bins - 1 - torch.arange(bins)).clamp(max=bins - 2)
        self.register_buffer("middles", middles[order].float(), persistent=False)  # [256]
        self.finish()

    @torch.no_grad()
    def act(self, seen: Observation, read: Tensor, key: Key, explore: bool) -> Decision:
        """Tokens drawn by inversion, or the most likely ones."""
        moment = self.moment(seen, read)
        log_prob = self._log_probs(moment)
        if explore:
            drawn = philox(*key, Use.ACTION, (self.numbers, 1))
            bins = (log_prob.exp().cumsum(-1) < drawn).sum(-1).clamp(max=self.found.bins - 1)
        else:
            bins = log_prob.argmax(-1)
        moment.bins = bins
        action = self.units.action(self.middles[bins].unflatten(1, (self.chunk, -1)))
        return Decision(action, log_prob.gather(-1, bins[..., None]).sum((1, 2)), moment)

    def log_prob(self, record: Moment, action: Tensor) -> Tensor:  # [B]
        return self._log_probs(record).gather(-1, record.bins[..., None]).sum((1, 2))

    def _log_probs(self, moment: Moment) -> Tensor:  # [B, K * A, 256] float32
        first, bins = self.found.first_bin, self.found.bins
        weight = self.network.language_model.lm_head.weight[first : first + bins]
        logits = torch.nn.functional.linear(self.hidden(moment), weight)
        return torch.log_softmax(logits.float() / self.config.temperature, dim=-1)


def load_openvla_oft(
    folder: Path | str,
    suite: Suite,
    config: OpenVLAConfig | None = None,  # None: what worldenv.json in the folder says, or else the defaults
) -> OpenVLA:
    """A policy from its folder in the authors' layout: with its L1 head, or else with its action tokens.

    Raises UserError, before anything large is read, as `inspect_policy` does.
    """
    check_usable()
    found = inspect_policy(folder, suite, config)
    names = {name: name for name in found.network.state_dict()}
    known = found.release.fill(found.network, names, DTYPES[found.config.dtype])
    found.network.off_meta()
    merged: list[str] = []
    if has_adapter_alone(found.folder):
        merged, more = lora.merge_adapter(found.network, found.folder / ADAPTER)
        known = (known + more) % 2**62
    for name in found.heads:
        read_head(found, name)
    made = (OpenVLALaplace if "action_head" in found.heads else OpenVLATokens)(found, known, merged)
    compile_if_wanted(found.network.language_model.model, *found.network.vision_backbone.values())
    return made
