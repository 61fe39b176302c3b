"""The vision towers of Qwen2.5-VL and Qwen3-VL for pictures of one size, in tensors alone: what can be exported.

transformers' forward pass cuts one sequence of all pictures' patches at places that it counts on the host. Here the
pictures are a batch, and a window of attention is a mask.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def qwen_tokens(
    visual: nn.Module,  # transformers' own
    cut: Tensor,  # [N, rows * columns, C], in the order of `patches`
    rows: int,  # of patches
    columns: int,
) -> Tensor:  # [N, rows / merge, columns / merge, D + D for each level that goes into the first language layers]
    """What `visual` makes of N pictures, with its weights."""
    config, embed = visual.config, visual.patch_embed.proj
    merge, deep = config.spatial_merge_size, list(getattr(config, "deepstack_visual_indexes", ()))
    grid = torch.arange(rows * columns, device=cut.device).view(rows // merge, merge, columns // merge, merge)
    order = grid.transpose(1, 2).flatten()
    place = torch.stack([order // columns, order % columns], 1)  # [S, 2]
    x = F.linear(cut, embed.weight.flatten(1), embed.bias)
    if hasattr(visual, "pos_embed"):  # Qwen3-VL: places in a square that was learnt, between which it interpolates
        side = int(config.num_position_embeddings**0.5)
        learnt = visual.pos_embed.weight.view(1, side, side, -1).movedim(-1, 1)
        resized = F.interpolate(learnt, (rows, columns), mode="bilinear", align_corners=True)
        x = x + resized[0].flatten(1)[:, order].T
    angle = (place[:, :, None] * visual.rotary_pos_emb.inv_freq).flatten(1).repeat(1, 2)
    full, near, levels = getattr(config, "fullatt_block_indexes", None), None, []
    if full is not None:  # Qwen2.5-VL: the other layers attend within windows
        window = place // (config.window_size // merge // config.patch_size * merge)
        near = (window[:, None] == window[None]).all(-1)
    for layer, block in enumerate(visual.blocks):
        everywhere = full is None or layer in full
        x = x + _attended(block.attn, block.norm1(x), angle, None if everywhere else near)
        x = x + block.mlp(block.norm2(x))
        if layer in deep:
            levels.append(visual.deepstack_merger_list[deep.index(layer)](x))
    tokens = [visual.merger(x), *levels]
    return torch.cat([level.view(-1, rows // merge, columns // merge, level.shape[-1]) for level in tokens], -1)


def _attended(layer: nn.Module, x: Tensor, angle: Tensor, near: Tensor | None) -> Tensor:
    query, key, value = layer.qkv(x).unflatten(-1, (3, layer.num_heads, -1)).permute(2, 0, 3, 1, 4).unbind()
    out = F.scaled_dot_product_attention(_turned(query, angle), _turned(key, angle), value, near)
    return layer.proj(out.transpose(1, 2).flatten(2))


def _turned(x: Tensor, angle: Tensor) -> Tensor:  # [N, heads, S, D], [S, D]
    first, second = x.chunk(2, -1)
    return x * angle.cos().to(x.dtype) + torch.cat([-second, first], -1) * angle.sin().to(x.dtype)
