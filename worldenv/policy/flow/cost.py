"""What a flow policy costs, from its folder's headers alone."""

from pathlib import Path

import torch
from torch import nn

from worldenv.interfaces.suite import Suite
from worldenv.nn.cost import Cost, matrices, size_of, transformer_flops
from worldenv.policy import lora
from worldenv.policy.flow.folder import ScaleHead, inspect_policy, layers_of, stored_dtype
from worldenv.policy.flow.pi0 import Pi0Network
from worldenv.policy.flow.smolvla import SmolVLANetwork
from worldenv.records.released import DTYPES

PROMPT = 16  # tokens of an instruction, or so
INT64, FLOAT32 = 8, 4  # bytes
KEYS = 3  # numbers of a record that the noise is made from


def flow_cost(path: Path | str, suite: Suite, pixels: int, kind: str) -> Cost:
    """Of a chunk that is decided on, and of one that is learnt from; pictures of `pixels` x `pixels` are recorded.

    Where other layers than the expert's learn (`layers`), the low-rank parts and the gradient beyond the last step are
    not counted. Raises UserError as `inspect_policy` does.
    """
    found = inspect_policy(path, suite, kind)
    network, config, numbers = found.architecture.network, found.config, len(found.scales["action"])
    number = (DTYPES[config.dtype] or stored_dtype(found)).itemsize
    parameters, head = size_of(network)[0], size_of(network.head_layer())[0]
    low = added = lora.numbers(network, config.lora, *layers_of(network, config))
    if config.exploration == "laplace":
        with torch.device("meta"):
            added += size_of(ScaleHead(network.width, numbers))[0]
    read = _read_pi0 if isinstance(network, Pi0Network) else _read_smolvla
    tokens, once = read(network, len(found.views), found.architecture.size)
    step, saved = _step(network, tokens)
    step += 2.0 * network.horizon * low * (config.layers is None)
    record = len(found.views) * 3 * pixels**2 + FLOAT32 * suite.robot.proprio_size + INT64 * (PROMPT + KEYS)
    if config.exploration == "sde":
        record += INT64 + 2 * FLOAT32 * network.horizon * network.numbers
    again = found.steps if config.exploration == "laplace" else 1
    # Frozen weights need no gradient of their own: back through the last step is as much as forward.
    return Cost(
        parameters + added,
        number * (parameters - head) + FLOAT32 * (head + added),
        head + added,
        found.chunk,
        record_bytes=record,
        chunk_flops=once + found.steps * step,
        update_flops=once + (again + 1) * step,
        update_bytes=number * saved,
    )


def _read_pi0(network: Pi0Network, views: int, size: int) -> tuple[int, float]:
    """Tokens that the steps look at, and FLOPs of reading pictures and prompt."""
    vlm = network.net.model.vlm
    vision, text = vlm.config.vision_config, vlm.config.text_config
    seen, flops = _looked(vlm.vision_tower, vision, size)
    tokens = views * seen + PROMPT
    flops = views * (flops + 2.0 * seen * matrices(vlm.multi_modal_projector))
    heads = text.num_attention_heads * text.head_dim
    return tokens, flops + transformer_flops(matrices(vlm.language_model), tokens, text.num_hidden_layers, heads)


def _read_smolvla(network: SmolVLANetwork, views: int, size: int) -> tuple[int, float]:
    model = network.vlm_with_expert.vlm.model
    vision, text = model.config.vision_config, model.config.text_config
    patches, flops = _looked(model.vision_model, vision, size)
    seen = patches // model.config.scale_factor**2
    tokens = views * seen + PROMPT + 1  # the state
    flops = views * (flops + 2.0 * seen * matrices(model.connector))
    last = model.text_model.layers[-1]  # of which keys and values alone are looked at
    used = matrices(model.text_model.layers) - matrices(last)
    used += last.self_attn.k_proj.weight.numel() + last.self_attn.v_proj.weight.numel()
    layers, heads = text.num_hidden_layers - 1, text.num_attention_heads * text.head_dim
    return tokens, flops + transformer_flops(used, tokens, layers, heads)


def _looked(tower: nn.Module, vision: object, size: int) -> tuple[int, float]:
    """Patches of a picture, and FLOPs of looking at it."""
    patches = (size // vision.patch_size) ** 2
    flops = 2.0 * patches * 3 * vision.patch_size**2 * vision.hidden_size
    numbers = matrices(tower)
    return patches, flops + transformer_flops(numbers, patches, vision.num_hidden_layers, vision.hidden_size)


def _step(network: Pi0Network | SmolVLANetwork, tokens: int) -> tuple[float, int]:
    """FLOPs of a step of the flow, which looks at `tokens`, and the numbers that its gradient needs."""
    is_pi0 = isinstance(network, Pi0Network)
    expert = network.net.model.dit if is_pi0 else network.vlm_with_expert.lm_expert
    own = network.horizon + is_pi0  # pi0's expert has the state before the actions
    flops, width, inner = 2.0 * network.horizon * _ends(network), network.width, expert.config.intermediate_size
    for i, layer in enumerate(expert.layers):
        attention, keys = layer.self_attn, tokens + own
        flops += 2.0 * own * matrices(layer)
        if not is_pi0 and not network.sees_itself(i):
            keys = tokens
            flops += 2.0 * (tokens - own) * (attention.k_proj.weight.numel() + attention.v_proj.weight.numel())
        flops += 4.0 * own * keys * attention.q_proj.out_features
    return flops, len(expert.layers) * (own * (8 * width + 4 * inner) + 2 * tokens * attention.k_proj.out_features)


def _ends(network: Pi0Network | SmolVLANetwork) -> int:
    """Weights of the layers before and after the expert, of an action."""
    if isinstance(network, Pi0Network):
        return matrices(network.net.embed_action_time) + matrices(network.net.action_out_proj)
    names = ("action_in_proj", "action_time_mlp_in", "action_time_mlp_out", "action_out_proj")
    return sum(getattr(network, name).weight.numel() for name in names)
