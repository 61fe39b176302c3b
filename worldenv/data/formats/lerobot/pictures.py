"""Pictures in videos (mp4) and in tables (PNG, JPEG), decoded and encoded by av."""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np

from worldenv.data.formats.hdf5 import TrajectoryFormatError
from worldenv.data.formats.lerobot.extra import need, reading
from worldenv.launch.share import own_cpus

NEAR = 0.25  # of the time between two frames: how far from its place a frame may be
RATE_ERROR = 0.01
BLOCK = 128  # pixels, the largest to which a codec fills up a picture
MAGIC = {b"\x89PNG": "png", b"\xff\xd8\xff": "mjpeg"}
# Name -> libav's encoder and its options. Every second frame is a key frame, as in LeRobot: any is soon reached.
CODECS = {
    "h264": ("libx264", {"g": "2", "crf": "18", "preset": "fast"}),
    "av1": ("libsvtav1", {"g": "2", "crf": "30", "preset": "8", "svtav1-params": "lp=1"}),
}


@contextmanager
def _opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """The container and its video. As mp4 and from an open file: nothing that the file names is opened."""
    av = need("av")
    if not os.path.isfile(path):
        raise TrajectoryFormatError(f"{path}: there is no such video")
    with reading(path, "the video cannot be read"), open(path, "rb") as file:
        with av.open(file, format="mp4", metadata_errors="replace") as container:
            if not container.streams.video:
                raise ValueError("it has no pictures")
            yield container, container.streams.video[0]


def check_video(
    path: Path,
    size: tuple[int, int],  # H, W
    fps: float,
    end_s: float,  # of the last episode in it
) -> None:
    """Raise TrajectoryFormatError unless the video's header promises frames of this size and rate up to `end_s`."""
    with _opened(path) as (container, video):
        found = (video.codec_context.height, video.codec_context.width)
        if found != size:
            raise TrajectoryFormatError(f"{path}: its pictures are {_size(found)}, meta/info.json says {_size(size)}")
        rate = float(video.average_rate or 0)
        if abs(rate - fps) > RATE_ERROR * fps:
            raise TrajectoryFormatError(f"{path}: it has {rate:g} frames/s, meta/info.json says {fps:g}")
        if video.duration is not None and float(video.duration * video.time_base) < end_s - 0.5 / fps:
            length = float(video.duration * video.time_base)
            raise TrajectoryFormatError(
                f"{path}: it is {length:.3f} s long, but episodes are listed up to {end_s:.3f} s: it is truncated"
            )


def read_video(
    path: Path,
    begin_s: float,
    fps: float,
    size: tuple[int, int],  # H, W
    out: np.ndarray,  # [N, h, w, 3] uint8; another size than H, W: pictures are averaged
) -> None:
    """The N frames from `begin_s` on. Raises TrajectoryFormatError if one of them is not there."""
    shape = _Shape(size, out.shape[1:3])
    have = np.zeros(len(out), bool)
    with _opened(path) as (container, video):
        video.codec_context.options = _limits(size)
        video.thread_type = "AUTO"
        video.codec_context.thread_count = own_cpus()  # libav would take those of the machine
        if begin_s > 0:
            container.seek(max(int((begin_s - NEAR / fps) / video.time_base), 0), stream=video)
        for frame in container.decode(video):
            if frame.pts is None:
                raise ValueError("a frame has no time")
            place = (float(frame.pts * video.time_base) - begin_s) * fps
            step = round(place)
            if step >= len(out):
                break
            if step >= 0 and abs(place - step) <= NEAR and not have[step]:
                shape.draw(frame, out[step])
                have[step] = True
    if not have.all():
        first = int(np.argmin(have))
        raise TrajectoryFormatError(
            f"{path}: {int(have.sum())} of {len(out)} frames are there; the first that is missing is frame {first}, at "
            f"{begin_s + first / fps:.3f} s: the video is truncated, or not of this episode"
        )


def read_pictures(path: Path, cells: Sequence[bytes], size: tuple[int, int], out: np.ndarray) -> None:
    """Pictures of a table, PNG or JPEG, into `out` as `read_video` does; `path` is the table's, for messages."""
    av, shape = need("av"), _Shape(size, out.shape[1:3])
    for row, cell in enumerate(cells):
        with reading(path, f"picture {row}"):
            name = next((name for magic, name in MAGIC.items() if cell.startswith(magic)), None)
            if name is None:
                raise ValueError("it is neither PNG nor JPEG")
            decoder = av.CodecContext.create(name, "r")
            decoder.options = _limits(size)
            frames = decoder.decode(av.Packet(cell)) + decoder.decode(None)
            if len(frames) != 1:
                raise ValueError(f"it has {len(frames)} pictures, not one")
            shape.draw(frames[0], out[row])


@dataclass(frozen=True)
class _Shape:
    """From the pictures' size to the one that is wanted."""

    size: tuple[int, int]  # H, W
    wanted: tuple[int, int]  # h, w

    def __post_init__(self) -> None:
        object.__setattr__(self, "reformatter", need("av.video.reformatter").VideoReformatter())

    def draw(self, frame: Any, out: np.ndarray) -> None:
        if (frame.height, frame.width) != self.size:
            raise ValueError(
                f"a picture is {_size((frame.height, frame.width))}, meta/info.json says {_size(self.size)}"
            )
        h, w = self.wanted
        how = {} if self.wanted == self.size else {"interpolation": "AREA"}
        out[...] = self.reformatter.reformat(frame, w, h, "rgb24", **how).to_ndarray()


def png(picture: np.ndarray) -> bytes:  # [H, W, 3] uint8
    """The picture as a PNG file, without loss."""
    av = need("av")
    encoder = av.CodecContext.create("png", "w")
    encoder.height, encoder.width, encoder.pix_fmt = *picture.shape[:2], "rgb24"
    encoder.time_base = Fraction(1, 1)
    frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
    return b"".join(bytes(packet) for packet in encoder.encode(frame) + encoder.encode(None))


class VideoWriter:
    """Writes pictures [H, W, 3] into an mp4, with loss."""

    def __init__(self, path: Path, codec: str, fps: float, size: tuple[int, int]) -> None:
        encoder, options = CODECS[codec]
        os.environ.setdefault("SVT_LOG", "1")  # errors only: it prints forty lines about itself
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = open(path, "wb")  # noqa: SIM115, closed by `close`
        try:
            self._container = need("av").open(self._file, "w", format="mp4")
            self._video = self._container.add_stream(
                encoder, rate=Fraction(fps).limit_denominator(10_000), options=options
            )
            self._video.height, self._video.width, self._video.pix_fmt = *size, "yuv420p"
            self._video.codec_context.thread_count = 1  # the same file on every machine
        except BaseException:
            self._file.close()
            raise
        self.frames = 0

    @property
    def bytes(self) -> int:
        """Written so far."""
        return self._file.tell()

    def add(self, picture: np.ndarray) -> None:
        frame = need("av").VideoFrame.from_ndarray(np.ascontiguousarray(picture), format="rgb24")
        self._container.mux(self._video.encode(frame))
        self.frames += 1

    def close(self) -> None:
        """Write what is left."""
        with self._file:
            self._container.mux(self._video.encode(None))
            self._container.close()


def _limits(size: tuple[int, int]) -> dict[str, str]:
    """Options of a decoder, so that a picture of another size takes no memory."""
    return {"max_pixels": str((size[0] + BLOCK) * (size[1] + BLOCK))}


def _size(size: tuple[int, int]) -> str:
    return f"{size[1]} x {size[0]}"
