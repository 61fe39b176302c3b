"""Train the composer: a multi-step teacher on true clips, then a student of one step on its own rollouts."""

import copy
from collections.abc import Callable

import torch
from torch import Tensor

from worldenv.data.clips import Clips
from worldenv.launch.ranks import ALONE, Ranks
from worldenv.nn.encoder import VisionLanguageEncoder
from worldenv.ops.action_map import ARM_CHANNELS, action_map
from worldenv.ops.known_pictures import known_pictures, moved
from worldenv.ops.patchify import patchify, unit
from worldenv.ops.unpatchify import to_frames
from worldenv.robot.hand import drawn_poses
from worldenv.robot.robot import Robot
from worldenv.training.layers import Layers
from worldenv.training.share import WHOLE, Share
from worldenv.worlds.composer.layer import POSITION, Thing, renewed, with_other
from worldenv.worlds.composer.network import ComposerNetwork, Seen

# How much more a pixel counts that changes within the chunk: few do, and they are all that matters. Five in six of them
# show the arm coming or going, which is easy: the action map says where it is. But what it hid before, such as a pad,
# has to be guessed, and counts in full.
CHANGE_WEIGHT, ARM_CHANGE_WEIGHT = 40.0, 4.0
ARM_LEVEL = 0.05  # of the action map's strokes: where the arm is, a little generously
CHANGE_LEVEL = 0.15  # what counts as change, of the range [-1, 1]
OPEN, CLOSED = 0.95, 0.4  # opening of the gripper: above OPEN and higher than all things, it touches nothing
IDLE_SHARE, CLOSING_SHARE = 0.2, 3.0  # how often chunks are drawn in which it touches nothing; closes low
MOVING_SHARE = 3.0  # likewise, chunks in which something has been moved since it was last away
THING_WEIGHT = 10.0  # how much more the pixels of the moved thing count, whether they change or not
FEATURE_WEIGHT = 0.3  # of the encoder's view of the frames against the pixels'
BACKGROUND_FRAMES = 1000
FIRST_SHARE = 0.25  # of the training samples are an episode's first chunk: what goes wrong there stays wrong
PURE_NOISE_SHARE = 0.7  # of the training samples start at t = 1, where few-step sampling spends its pass
MEMORY_NOISE = 0.04  # largest standard deviation added to memory frames: blunts drift


class ChunkBatch:
    """B chunks of true clips, ready for the network: what is known before, poses and the frames that follow.

    Of the first view. The layers are those of the labels.
    """

    def __init__(self, clips: Clips, layers: Layers, robot: Robot, plate: Tensor, episode: Tensor, step: Tensor):
        chunk = layers.chunk
        index = step[:, None] + torch.arange(chunk + 1)
        size = clips.frame_shape[1]
        self.camera, self.gripper = clips.still_camera()[episode][:, :1], robot.gripper
        self.poses = drawn_poses(clips.proprio[episode[:, None], index], robot)
        self.layer = layers.at(episode, step)
        self.tips = torch.cat([clips.proprio[episode, :1], self.poses], dim=1)[..., POSITION]
        self.is_clear = self.layer.clear == step  # where the present frame is the clear one
        cameras = self.camera.repeat_interleave(chunk + 1, 0)
        maps = action_map(self.poses.flatten(0, 1), cameras, self.gripper, size, size)[:, 0]
        maps = maps.unflatten(0, (len(episode), chunk + 1))
        arm = (maps[:, :, ARM_CHANNELS].amax(2, keepdim=True) > ARM_LEVEL).movedim(2, 4)
        known = torch.stack([torch.zeros_like(step), self.layer.clear, step], dim=1)
        frames = clips.frames_at(episode, torch.cat([known, index[:, 1:]], dim=1))[:, :, 0]
        self.first, self.clear, self.last = frames[:, :3].unbind(1)  # uint8
        self.clean = unit(frames[:, 3:])
        empty = to_frames(plate.detach()[None, :, :, None])  # [1, 1, H, W, 3]
        is_empty = (self.clean - empty).abs().amax(4, keepdim=True) <= CHANGE_LEVEL
        self.arm = arm[:, 1:] | (arm[:, :1] & is_empty)  # [B, K, H, W, 1]: it is there, or bares the empty scene
        share = moved(self.layer.mask[..., None], self.layer.places, self.camera)[:, 1:]
        self.thing = share.clamp(0, 255) / 255  # [B, K, H, W, 1], of each pixel

    def seen_by(self, network: ComposerNetwork, last: Tensor, clear: Tensor) -> Seen:  # [B, H, W, 3] uint8
        """What the network knows before the noise, from these frames."""
        layer = self.layer
        last, clear = self._with_other(last, clear, network.plate)
        pictures = known_pictures(
            self.first, last, clear, layer.mask, layer.hidden, self.tips, layer.places, self.camera, network.plate
        )
        return network.see(pictures, self.poses, self.camera, self.gripper)

    def _with_other(self, last: Tensor, clear: Tensor, plate: Tensor) -> tuple[Tensor, Tensor]:
        """Present and clear frame with the pushed thing already where it is at the chunk's end, as in imagination."""
        mask, (was, now, then) = self.layer.other_mask, self.layer.other_places.unbind(1)
        given = self.camera[:, 0], to_frames(plate.detach()[None, :, :, None])[0, 0]
        before, after = (with_other(clear, self.layer.mask, Thing(mask, was, at), *given) for at in (now, then))
        return renewed(last, before, after), after

    def weight(self, predicted: Tensor, *last: Tensor) -> Tensor:  # [B, K, H, W, 3], [B, H, W, 3] each, in [-1, 1]
        """How much each pixel counts, [B, K, H, W, 1]: those that change, and those of the moved thing."""
        return change_weight(self.clean, predicted, self.arm, *last) + THING_WEIGHT * self.thing


def draw_steps(
    clips: Clips, layers: Layers, batch: int, chunks: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    """Random (episode, step) with room for `chunks` chunks within the episode's own steps (at least from step 0).

    Steps where the gripper is open and above everything are drawn less often, there is little to learn, and those where
    it closes low, or where something is moved, more often. FIRST_SHARE of the steps are 0.
    """
    steps, chunk = clips.actions.shape[1], layers.chunk
    last = steps - chunk * chunks
    if last < 0:
        raise ValueError(f"the longest clip has {steps} steps; {chunks} chunks of {chunk} are more")
    begin, end = (clips.proprio[:, first : first + last + 1] for first in (0, chunk))
    low = torch.minimum(begin[..., 2], end[..., 2]) < layers.clear_m
    idle = ~low & (torch.minimum(begin[..., 6], end[..., 6]) > OPEN)
    closing = low & (begin[..., 6] > OPEN) & (end[..., 6] < CLOSED)
    weight = torch.where(closing, CLOSING_SHARE, torch.where(idle, IDLE_SHARE, 1.0))
    weight = torch.where(layers.moves()[:, : last + 1], MOVING_SHARE, weight)
    weight = weight * (torch.arange(last + 1) <= (clips.length[:, None] - chunk * chunks).clamp(min=0))
    drawn = torch.multinomial(weight.flatten(), batch, replacement=True, generator=generator)
    first = torch.rand(batch, generator=generator) < FIRST_SHARE
    return drawn // (last + 1), torch.where(first, 0, drawn % (last + 1))


def change_weight(
    clean: Tensor,  # [B, K, H, W, 3]
    predicted: Tensor,  # [B, K, H, W, 3]
    arm: Tensor,  # [B, K, H, W, 1] bool
    *memory: Tensor,  # [B, H, W, 3] each
) -> Tensor:  # [B, K, H, W, 1]
    """1, and 1 + CHANGE_WEIGHT (ARM_CHANGE_WEIGHT at the arm) for pixels that differ from one of the memory frames, in
    truth or as predicted: a thing that is wrongly taken along costs as much as one that is wrongly left behind."""
    change = torch.stack(
        [
            (frames.detach() - last[:, None]).abs().amax(4, keepdim=True)
            for frames in (clean, predicted)
            for last in memory
        ]
    ).amax(0)
    return 1 + torch.where(arm, ARM_CHANGE_WEIGHT, CHANGE_WEIGHT) * (change > CHANGE_LEVEL)


def clean_background(frames: Tensor) -> Tensor:  # [N, H, W, 3] uint8 -> [H / 2, W / 2, 12] patches in [-1, 1]
    """What the fixed camera sees when nothing is in the way: the median of random frames, pixel by pixel."""
    median = frames.median(0)[0]
    return patchify(unit(median)[None, None])[0, :, :, 0]


def teacher_loss(
    network: ComposerNetwork, clips: Clips, layers: Layers, robot: Robot, batch: int, ranks: Ranks = ALONE
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """Flow matching, x_t = (1 - t) x_0 + t noise, with clean frames predicted: squared error times the weight."""
    share = Share(batch, ranks)

    def noise(like: Tensor, generator: torch.Generator) -> Tensor:
        return share.own(torch.randn(batch, *like.shape[1:], generator=generator))

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        place = map(share.own, draw_steps(clips, layers, batch, 1, generator))
        part = ChunkBatch(clips, layers, robot, network.plate, *place)
        amount = MEMORY_NOISE * share.own(torch.rand(batch, 1, 1, 1, generator=generator))
        last = unit(part.last) + amount * noise(part.last, generator)
        t = torch.rand(batch, generator=generator) * 0.95 + 0.05
        t = torch.where(torch.rand(batch, generator=generator) < PURE_NOISE_SHARE, 1.0, t)
        t = share.own(t)
        mix = t.view(-1, 1, 1, 1, 1)
        noisy = (1 - mix) * part.clean + mix * noise(part.clean, generator)
        seen = part.seen_by(network, to_pixels(last), part.clear)
        predicted = to_frames(network.denoise(patchify(noisy), t, seen))
        weight = part.weight(predicted, unit(part.last))
        value = share.mean(weight * (predicted - part.clean).square())
        return value, {"mse": share.mean((predicted.detach() - part.clean).square()).item()}

    return loss


def unlike(
    encoder: VisionLanguageEncoder,
    predicted: Tensor,  # [B, K, H, W, 3]
    part: ChunkBatch,
    tokens: Tensor,  # [B, L, ...], the episodes' instructions
    share: Share = WHOLE,
) -> Tensor:
    """How differently a frozen encoder reads the last predicted frames and the true ones, under the episodes'
    instructions: mean absolute difference of its features, relative to the true ones' mean absolute value."""
    with torch.no_grad():
        true = encoder(part.clean[:, -1], tokens)
    return share.mean((encoder(predicted[:, -1], tokens) - true).abs()) / share.whole(share.mean(true.abs()))


def student_loss(
    student: ComposerNetwork,
    encoder: VisionLanguageEncoder,
    clips: Clips,
    layers: Layers,
    robot: Robot,
    batch: int,
    unroll: int,
    ranks: Ranks = ALONE,
) -> Callable[[torch.Generator], tuple[Tensor, dict[str, float]]]:
    """One pass from pure noise, learned on the student's own rollouts.

    The student, which begins as the teacher, imagines `unroll` chunks in a row, each from its own last one, and each is
    pulled to the true frames: absolute error, weighted as `change_weight` by the last true frame and by its own, so
    that it learns to repair what it painted wrong. The absolute error asks for the likelier of two outcomes where the
    squared one asks for a ghost of both. Gradients do not flow from chunk to chunk.

    What policy and reflector make of a frame hangs on a few pixels, so the last frame of each chunk is also to look
    like the true one to `encoder`, pretrained and frozen (after World-Env, arXiv 2509.24948, semantic features; here
    as a loss).
    """
    chunk, share = student.config.chunk, Share(batch, ranks)
    encoder = copy.deepcopy(encoder).requires_grad_(False)
    tokens = encoder.text.tokenize(clips.instructions)

    def loss(generator: torch.Generator) -> tuple[Tensor, dict[str, float]]:
        episode, step = map(share.own, draw_steps(clips, layers, batch, unroll, generator))
        last, total, errors = None, torch.zeros(()), []
        for i in range(unroll):
            part = ChunkBatch(clips, layers, robot, student.plate, episode, step + i * chunk)
            if last is None:
                last, clear = part.last, part.clear
            clear = torch.where(part.is_clear[:, None, None, None], last, clear)
            noise = share.own(torch.randn(batch, *part.clean.shape[1:], generator=generator))
            seen = part.seen_by(student, last, clear)
            predicted = to_frames(student.denoise(patchify(noise), torch.ones(len(noise)), seen))
            weight = part.weight(predicted, unit(part.last), unit(last))
            apart = unlike(encoder, predicted, part, tokens[episode], share)
            total = total + (share.mean(weight * (predicted - part.clean).abs()) + FEATURE_WEIGHT * apart) / unroll
            errors.append(share.mean((predicted.detach() - part.clean).square()).item())
            last = to_pixels(predicted.detach()[:, -1])
        return total, {"mse_first": errors[0], "mse_last": errors[-1], "unlike_last": apart.item()}

    return loss


def to_pixels(frames: Tensor) -> Tensor:  # in [-1, 1] -> uint8
    return ((frames + 1) * 127.5).round().clamp(0, 255).to(torch.uint8)
