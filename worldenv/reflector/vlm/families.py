"""How pictures go into the language model, for each family of released models."""

import math

import torch
from torch import Tensor

from worldenv.reflector.vlm.model import TASK, Vlm
from worldenv.reflector.vlm.pixels import patches, whole_patches
from worldenv.reflector.vlm.qwen_tower import qwen_tokens


class Qwen25Vl(Vlm):
    """Qwen2.5-VL: pictures of nearly any size, positions in time, height and width."""

    before = "<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n<|im_start|>user\n" + TASK
    ends = ("<|vision_start|>", "<|vision_end|>")
    after = "{question}<|im_end|>\n<|im_start|>assistant\n"

    @property
    def vision(self) -> torch.nn.Module:
        return self.network.model.visual

    def size(self, height: int, width: int) -> tuple[int, int]:
        vision, document = self.network.config.vision_config, self.look.document
        limits = document.get("size") or {}
        least = max(document.get("min_pixels") or limits.get("shortest_edge") or 0, self.side**2)
        most = max(document.get("max_pixels") or limits.get("longest_edge") or 0, least)
        return whole_patches(height, width, vision.patch_size * vision.spatial_merge_size, least, most)

    def look_at(self, pixels: Tensor) -> Tensor:
        vision, n = self.network.config.vision_config, len(pixels)
        side, merge = vision.patch_size, vision.spatial_merge_size
        grid = [pixels.shape[2] // side, pixels.shape[3] // side]
        cut = patches(pixels, side, merge, vision.temporal_patch_size)
        seen = self.network.model.get_image_features(cut, torch.tensor([[1, *grid]] * n, device=pixels.device))
        levels = [seen.pooler_output, *(getattr(seen, "deepstack_features", None) or ())]
        rows, columns = (count // merge for count in grid)
        return torch.cat([torch.cat(list(level)).view(n, rows, columns, -1) for level in levels], -1)

    def tower(self, pixels: Tensor) -> Tensor:
        vision = self.network.config.vision_config
        cut = patches(pixels, vision.patch_size, vision.spatial_merge_size, vision.temporal_patch_size)
        rows, columns = (count // vision.patch_size for count in pixels.shape[2:])
        return qwen_tokens(self.vision, cut.unflatten(0, (-1, rows * columns)), rows, columns)

    def positions(self, begin: int, text: int, frames: int, grid: tuple[int, int]) -> Tensor:  # [3, 1, T]
        device = self.weight.device
        before, after = (torch.arange(len(tokens), device=device).expand(3, -1) for tokens in self.around)
        row, column = (
            x.flatten() for x in torch.meshgrid(*(torch.arange(n, device=device) for n in grid), indexing="ij")
        )
        inside = torch.stack([torch.zeros_like(row), row, column]) + before.shape[1]
        block = torch.cat([before, inside, after + before.shape[1] + max(grid)], 1)
        step = before.shape[1] + max(grid) + after.shape[1]
        parts = [block + begin + i * step for i in range(frames)]
        parts.append(torch.arange(text, device=device).expand(3, -1) + begin + frames * step)
        return torch.cat(parts, 1)[:, None]


class Qwen3Vl(Qwen25Vl):
    """Qwen3-VL: as Qwen2.5-VL, and features of lower layers of the tower are added in the first language layers."""

    before = "<|im_start|>user\n" + TASK

    @property
    def row(self) -> int:
        return self.width * (1 + len(self.network.config.vision_config.deepstack_visual_indexes))

    def deep(self, seen: Tensor, tail: int) -> dict:
        b, n = seen.shape[:2]
        levels = seen[..., self.width :].flatten(2, 3).unflatten(-1, (-1, self.width))  # [B, n, L, levels, D]
        before, after = (len(tokens) for tokens in self.around)
        is_frame = torch.ones(b, n, before + levels.shape[2] + after, dtype=torch.bool, device=seen.device)
        is_frame[:, :, :before] = is_frame[:, :, before + levels.shape[2] :] = False
        mask = torch.cat([is_frame.flatten(1), is_frame.new_zeros(b, tail)], 1)
        return {"visual_pos_masks": mask, "deepstack_visual_embeds": list(levels.flatten(0, 2).unbind(1))}


class LlavaOnevision(Vlm):
    """LLaVA-OneVision, as it watches videos: 2 x 2 tokens of a frame become one, and a newline ends the video."""

    before = "<|im_start|>user " + TASK
    after = "\n{question}<|im_end|><|im_start|>assistant\n"

    @property
    def vision(self) -> torch.nn.Module:
        return self.network.model.vision_tower

    def size(self, height: int, width: int) -> tuple[int, int]:
        side = self.network.config.vision_config.image_size
        return side, side

    def look_at(self, pixels: Tensor) -> Tensor:
        vision = self.network.config.vision_config
        side = math.ceil(vision.image_size // vision.patch_size / 2)
        seen = self.network.model.get_video_features(pixels[:, None]).pooler_output
        return seen[:, :-1].unflatten(1, (side, side))  # each video of one frame ends in a newline of its own

    def tower(self, pixels: Tensor) -> Tensor:
        return self.look_at(pixels)

    def tail(self) -> Tensor:
        return torch.cat([self.network.model.image_newline[None], super().tail()])


class SmolVlm(Vlm):
    """SmolVLM and SmolVLM2: square pictures, of which a square of neighbours becomes one token."""

    before = "<|im_start|>User: " + TASK
    ends = ("<fake_token_around_image><global-img>", "<fake_token_around_image>")
    after = "{question}<end_of_utterance>\nAssistant:"

    @property
    def language(self) -> torch.nn.Module:
        return self.network.model.text_model

    @property
    def vision(self) -> torch.nn.Module:
        return self.network.model.vision_model

    def size(self, height: int, width: int) -> tuple[int, int]:
        side = self.network.config.vision_config.image_size
        return side, side

    def look_at(self, pixels: Tensor) -> Tensor:
        config = self.network.config
        side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        seen = self.network.model.get_image_features(pixels[:, None]).pooler_output
        return torch.stack(list(seen)).unflatten(1, (side, side))

    def tower(self, pixels: Tensor) -> Tensor:
        config, model = self.network.config, self.network.model
        side = config.vision_config.image_size // config.vision_config.patch_size // config.scale_factor
        return model.connector(self.vision(pixel_values=pixels).last_hidden_state).unflatten(1, (side, side))


# model_type of config.json -> our class, and the class of transformers.
FAMILIES: dict[str, tuple[type[Vlm], str]] = {
    "qwen2_5_vl": (Qwen25Vl, "Qwen2_5_VLForConditionalGeneration"),
    "qwen3_vl": (Qwen3Vl, "Qwen3VLForConditionalGeneration"),
    "llava_onevision": (LlavaOnevision, "LlavaOnevisionForConditionalGeneration"),
    "smolvlm": (SmolVlm, "SmolVLMForConditionalGeneration"),
}
