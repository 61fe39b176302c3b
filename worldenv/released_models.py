"""The kinds of released models: for each role and kind, how one is looked through, loaded and counted.

`RELEASED` of config.py has their names, for who reads options.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from worldenv.interfaces.suite import Suite
from worldenv.nn.cost import Cost
from worldenv.policy.flow.cost import flow_cost
from worldenv.policy.flow.folder import inspect_policy as inspect_flow
from worldenv.policy.flow.policy import load_pi0, load_smolvla
from worldenv.policy.openvla_oft.cost import openvla_cost
from worldenv.policy.openvla_oft.folder import inspect_policy as inspect_openvla_oft
from worldenv.policy.openvla_oft.policy import load_openvla_oft
from worldenv.reflector.rlinf_resnet import inspect_rlinf_reflector, load_rlinf_reflector, rlinf_reflector_cost
from worldenv.reflector.transformers_vlm import inspect_vlm_reflector, load_vlm_reflector
from worldenv.reflector.vlm.cost import vlm_cost
from worldenv.worlds.causal.cost import latents_cost
from worldenv.worlds.causal.latents import inspect_causal_latents, load_causal_latents
from worldenv.worlds.video.cost import video_cost
from worldenv.worlds.video.folder import inspect_video
from worldenv.worlds.video.world import load_video
from worldenv.worlds.wan.cost import wan_cost
from worldenv.worlds.wan.folder import inspect_wan
from worldenv.worlds.wan.world import load_wan


@dataclass(frozen=True)
class Kind:
    """What is done with the folder of a released model, and the suite that it is for."""

    inspect: Callable[[Path, Suite], Any]  # raises UserError for what is wrong, before anything large is read
    load: Callable[[Path, Suite], Any]  # raises the same
    cost: Callable[[Path, Any, int], Cost]  # given an outline of the suite, and the chunk of the policy


KINDS: dict[tuple[str, str], Kind] = {
    ("policy", "openvla-oft"): Kind(
        inspect_openvla_oft,
        load_openvla_oft,
        lambda folder, suite, chunk: openvla_cost(folder, suite, suite.size),
    ),
    ("policy", "pi0"): Kind(
        lambda folder, suite: inspect_flow(folder, suite, "pi0"),
        load_pi0,
        lambda folder, suite, chunk: flow_cost(folder, suite, suite.size, "pi0"),
    ),
    ("policy", "smolvla"): Kind(
        lambda folder, suite: inspect_flow(folder, suite, "smolvla"),
        load_smolvla,
        lambda folder, suite, chunk: flow_cost(folder, suite, suite.size, "smolvla"),
    ),
    ("world", "rlinf-wan"): Kind(inspect_wan, load_wan, wan_cost),
    ("world", "svd"): Kind(inspect_video, load_video, video_cost),
    ("world", "causal-latents"): Kind(inspect_causal_latents, load_causal_latents, latents_cost),
    ("reflector", "vlm"): Kind(
        lambda folder, suite: inspect_vlm_reflector(folder, suite.views),
        lambda folder, suite: load_vlm_reflector(folder, suite.views),
        lambda folder, suite, chunk: vlm_cost(folder, chunk, suite.size),
    ),
    ("reflector", "rlinf-wan"): Kind(  # the reward model beside a world model
        lambda folder, suite: inspect_rlinf_reflector(folder),
        load_rlinf_reflector,
        lambda folder, suite, chunk: rlinf_reflector_cost(folder, suite.size, chunk),
    ),
}


def kinds_of(role: str) -> dict[str, Callable[[Path, Suite], Any]]:
    """By KIND:FOLDER, what loads a model of this role."""
    return {f"{kind}:FOLDER": found.load for (of, kind), found in KINDS.items() if of == role}
