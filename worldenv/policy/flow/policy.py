"""Flow policies behind the interface `Policy`: Laplace actions around the last step, or noise in one of the steps."""

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
from worldenv.nn.compiled import compile_if_wanted
from worldenv.ops.laplace_chunk import laplace_chunk
from worldenv.ops.philox import Use, philox
from worldenv.policy import lora
from worldenv.policy.adapted import Adapted
from worldenv.policy.flow.config import Pi0Config, SmolVLAConfig
from worldenv.policy.flow.folder import (
    Found,
    ScaleHead,
    inspect_policy,
    layers_of,
    read_scale_head,
    stored_dtype,
    write_policy,
)
from worldenv.policy.flow.pictures import prepared
from worldenv.policy.flow.sde import density, drawn, transition
from worldenv.policy.flow.statistics import Units
from worldenv.policy.laplace import LaplacePolicy
from worldenv.records.released import DTYPES


@dataclass
class Moment(Slots):
    """All that the policy looks at, of B moments, and the keys that its noise is made from again."""

    frames: Tensor  # [B, V, H, W, 3] uint8
    proprio: Tensor  # [B, P] float32
    tokens: Tensor  # [B, L] int64
    seed: Tensor  # [B] int64; the next two as in a Key
    episode: Tensor  # [B] int64
    chunk: Tensor  # [B] int64


@dataclass
class NoisyMoment(Moment):
    """And the step that noise was added in."""

    step: Tensor  # [B] int64, from 0
    before: Tensor  # [B, K, D] float32
    after: Tensor  # [B, K, D] float32


class FlowPolicy(Adapted):
    """What both explorations have in common. Made by `load_pi0` and `load_smolvla`.

    An action is where an ordinary differential equation ends that begins at noise; S Euler steps integrate it. The
    noise is made from the key, and made again from the record: it is never stored. Low-rank adapters learn, the layer
    that gives the velocity as a whole, and the scale head if there is one.
    """

    def __init__(self, found: Found, known: int):
        super().__init__(found.folder, known)
        self.found, self.config, self.views, self.chunk = found, found.config, found.views, found.chunk
        self.network, self.prompt = found.architecture.network, found.architecture.prompt
        self.units = Units(found.scales, self.config.conventions)
        self.actions = len(found.scales["action"])  # A
        self.network.requires_grad_(False)
        if self.config.lora:
            lora.add_lora(self.network, self.config.lora, *layers_of(self.network, self.config))
        for parameter in self.network.head_layer().parameters():
            parameter.data = parameter.data.float()
            parameter.requires_grad_(True)

    @torch.no_grad()
    def read(self, texts: Sequence[str]) -> Tensor:  # [M, L] int64
        """The prompts of the instructions, in ids; -1 is padding."""
        return self.prompt.read(texts).to(self.frozen.device)

    def moment(self, seen: Observation, read: Tensor, key: Key) -> Moment:
        """What `log_prob` will need of these moments."""
        seed = torch.full_like(key.episode, key.seed)
        return Moment(seen.frames, seen.proprio, read[seen.text], seed, key.episode, key.chunk)

    def noise(self, key: Key) -> Tensor:  # [B, K, D] float32, standard normal
        """Where the flow begins."""
        return philox(*key, Use.FLOW, (self.network.horizon, self.network.numbers), normal=True)

    def noise_again(self, record: Moment) -> Tensor:  # [B, K, D] float32
        """The noise of recorded moments, which may be of several seeds."""
        seeds = record.seed.unique().tolist()
        if len(seeds) == 1:
            return self.noise(Key(seeds[0], record.episode, record.chunk))
        out = record.proprio.new_empty(len(record), self.network.horizon, self.network.numbers)
        for seed in seeds:
            rows = record.seed == seed
            out[rows] = self.noise(Key(seed, record.episode[rows], record.chunk[rows]))
        return out

    def prefix(self, record: Moment) -> object:
        """What the network reads once, whatever the number of steps."""
        pixels = prepared(record.frames, self.found.architecture.size, self.config.conventions)
        state = self.units.state(record.proprio)
        return self.network.prefix(pixels, record.tokens, _filled(state, self.network.state_numbers))

    def time(self, step: int, like: Tensor) -> Tensor:  # [B] float32
        """The time at which a step begins, from 1 to 0."""
        return torch.full((len(like),), 1.0 - step / self.found.steps, dtype=torch.float32, device=like.device)

    def flow(self, record: Moment, noise: Tensor) -> tuple[Tensor, Tensor]:  # [B, K, D], [B, K, W] float32
        """Where the flow ends, and the expert's state at the last step, through which alone there is a gradient."""
        prefix, x, steps = self.prefix(record), noise, self.found.steps
        with torch.no_grad():
            for step in range(steps - 1):
                x = x - self.network.velocity(prefix, x, self.time(step, x))[0] / steps
        velocity, hidden = self.network.velocity(prefix, x, self.time(steps - 1, x))
        return x - velocity / steps, hidden

    def action(self, x: Tensor) -> Tensor:  # [B, K, D] -> [B, chunk, A] float32
        """What of the flow's end is carried out, in the environment's units."""
        return self.units.action(x[:, : self.chunk, : self.actions])

    def pieces(self, size: tuple[int, int]) -> dict[str, Piece]:
        """Vision tower, language model, and one step of the flow over its keys and values; adapters are applied.

        `size` is of no matter: pictures are prepared for the tower.
        """
        network, s, longest = self.network, self.found.architecture.size, self.prompt.longest

        def pixels(rows: int) -> dict[str, Tensor]:
            return {"pixels": torch.rand(rows, len(self.views), 3, s, s) * 2 - 1}

        def read(rows: int) -> dict[str, Tensor]:
            tokens = torch.randint(2, (rows, longest))  # any ids do, and prompts of several lengths
            tokens[torch.arange(longest) > torch.arange(rows)[:, None] + longest // 2] = -1
            return {"tokens": tokens, "state": torch.randn(rows, network.state_numbers)}

        def said(rows: int) -> dict[str, Tensor]:
            given = {"patches": network.seen(**pixels(rows)), **read(rows)}
            if network.state_in_step:
                del given["state"]
            return given

        def moment(rows: int) -> dict[str, Tensor]:
            kept = network.kept(network.prefix(**pixels(rows), **read(rows)))
            return {"noisy": torch.randn(rows, network.horizon, network.numbers), "time": torch.rand(rows), **kept}

        return {
            "vision-tower": Piece(network, network.seen, pixels, ("patches",)),
            "language-model": Piece(network, network.language, said, ("keys", "values", "real")),
            "denoising-step": Piece(network, network.step, moment, ("velocity", "hidden")),
        }

    def write_back(self, folder: Path | str) -> Path:
        """Write the policy as it is now in its authors' layout, so that their code runs it; see `write_policy`."""
        adapted = lora.adapted(self.network) if self.config.lora else []
        changed = {name: partial(lora.whole, self.network, name) for name in adapted}
        for name, parameter in self.network.head_layer().named_parameters():
            changed[f"{self.network.head}.{name}"] = partial(nn.Parameter.detach, parameter)
        return write_policy(self.found, folder, changed, getattr(self, "scale_head", None))


class FlowLaplace(FlowPolicy, LaplacePolicy):
    """Laplace(mu, exp(beta)): mu is where the flow ends, beta comes from a scale head on the expert's last state.

    Both are in the environment's units. What is likely is so given the noise, which depends on no weight. A new scale
    head gives exp(beta) = `scale` everywhere; `worldenv.fit_scale` fits it to demonstrations.
    """

    def __init__(self, found: Found, known: int):
        super().__init__(found, known)
        self.scale_head = self._new_scale_head() if found.scale_head is None else read_scale_head(found)
        self.scale_head.requires_grad_(True)
        self.finish()

    def distribution(self, record: Moment, noise: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """mu and beta [B, K, A] float32, in the environment's units; noise: None for that of the record's keys."""
        x, hidden = self.flow(record, self.noise_again(record) if noise is None else noise)
        low, high = math.log(self.config.scale_low), math.log(self.config.scale_high)
        beta = low + (high - low) * self.scale_head(hidden[:, : self.chunk])
        return self.action(x), self.units.log_scale(beta)

    @torch.no_grad()
    def act(self, seen: Observation, read: Tensor, key: Key, explore: bool) -> Decision:
        """A draw from the distribution, or its mean, which depends on the noise, too."""
        record = self.moment(seen, read, key)
        action, log_prob = laplace_chunk(*self.distribution(record, self.noise(key)), *key, explore)
        return Decision(action, log_prob, record)

    def _new_scale_head(self) -> ScaleHead:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(1)
            head = ScaleHead(self.network.width, self.actions)
        low, middle, high = (math.log(x) for x in (self.config.scale_low, self.config.scale, self.config.scale_high))
        share = (middle - low) / (high - low)
        nn.init.zeros_(head.outer.weight)
        nn.init.constant_(head.outer.bias, math.log(share / (1 - share)))
        return head


class FlowSDE(FlowPolicy):
    """Flow-SDE: one step, drawn from the key, is a step of the stochastic equation with the same distributions.

    The log-probability of a chunk is that of this step, of the numbers that are carried out. Where the step begins is
    recorded and counts as seen, as in RLinf; the other numbers' influence through later steps is left out. See
    `flow/sde.py`.
    """

    def __init__(self, found: Found, known: int):
        super().__init__(found, known)
        self.finish()

    @torch.no_grad()
    def act(self, seen: Observation, read: Tensor, key: Key, explore: bool) -> Decision:
        """The end of a flow with noise in one step, or without any."""
        moment, steps = self.moment(seen, read, key), self.found.steps
        chosen = drawn(key, steps)  # [B]
        again = philox(*key, Use.ACTION, (self.network.horizon, self.network.numbers), normal=True)
        prefix, x = self.prefix(moment), self.noise(key)
        before, after, likely = torch.empty_like(x), torch.empty_like(x), x.new_empty(len(x))
        for step in range(steps):
            velocity, _ = self.network.velocity(prefix, x, self.time(step, x))
            plain, here = x - velocity / steps, (chosen == step)[:, None, None]
            mean, deviation = transition(x, velocity, self.time(step, x), steps, self.config.noise_level)
            there = mean + deviation * again if explore else plain
            before, after = torch.where(here, x, before), torch.where(here, there, after)
            likely = torch.where(here[:, 0, 0], self._density(there, mean, deviation), likely)
            x = torch.where(here, there, plain)
        record = NoisyMoment(*(getattr(moment, name) for name in Moment.__dataclass_fields__), chosen, before, after)
        return Decision(self.action(x), likely, record)

    def log_prob(self, record: NoisyMoment, action: Tensor) -> Tensor:  # [B]
        steps = self.found.steps
        time = 1.0 - record.step.float() / steps
        velocity, _ = self.network.velocity(self.prefix(record), record.before, time)
        given = record.before, velocity, time, steps, self.config.noise_level
        return self._density(record.after, *transition(*given))

    def _density(self, x: Tensor, mean: Tensor, deviation: Tensor) -> Tensor:  # [B]
        x, mean = (tensor[:, : self.chunk, : self.actions] for tensor in (x, mean))
        return density(x, mean, deviation)


def _filled(x: Tensor, numbers: int) -> Tensor:  # [B, n] -> [B, numbers], 0 after them
    return nn.functional.pad(x, (0, numbers - x.shape[1]))


def load_pi0(folder: Path | str, suite: Suite, config: Pi0Config | None = None) -> FlowPolicy:
    """A policy from a folder of pi0 in LeRobot's layout, or as transformers saves it.

    config: None for what worldenv.json in the folder says, or else the defaults. Raises UserError, before anything
    large is read, as `inspect_policy` does.
    """
    return _load(inspect_policy(folder, suite, "pi0", config))


def load_smolvla(folder: Path | str, suite: Suite, config: SmolVLAConfig | None = None) -> FlowPolicy:
    """A policy from a folder of SmolVLA in LeRobot's layout, in which `vlm` has configuration and tokenizer of SmolVLM.

    config and errors as for `load_pi0`.
    """
    return _load(inspect_policy(folder, suite, "smolvla", config))


def _load(found: Found) -> FlowPolicy:
    made = found.architecture
    dtype = DTYPES[found.config.dtype] or stored_dtype(found)
    known = found.release.fill(made.network, made.names, dtype)
    made.network.off_meta()
    policy = (FlowSDE if found.config.exploration == "sde" else FlowLaplace)(found, known)
    compile_if_wanted(*made.network.to_compile())
    return policy
