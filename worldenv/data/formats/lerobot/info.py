"""What meta/info.json says: the numbers and views of an episode, and where its files are."""

import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

from worldenv.data.formats.hdf5 import TrajectoryFormatError, listed
from worldenv.fields import shown
from worldenv.files import read_json
from worldenv.robot.kinematics import is_number

INFO = "meta/info.json"
VERSIONS = ("v2.0", "v2.1", "v3.0")  # v2.0 differs from v2.1 in its statistics, which are not read
STATES, ACTIONS = ("observation.state", "state"), ("action", "actions")
SUCCESS = ("next.success", "next.reward")
PLACE = re.compile(r"\{(\w+)(?::0?(\d{0,2})d?)?\}")  # {episode_index:06d}
MOST_PIXELS, MOST_NUMBERS, MOST_FPS = 2**26, 2**16, 10_000


@dataclass(frozen=True)
class View:
    """A camera's pictures."""

    name: str
    key: str  # of the feature
    size: tuple[int, int]  # H, W
    is_video: bool  # False: PNG or JPEG in the table


@dataclass(frozen=True)
class Numbers:
    """A vector of float32 at every row."""

    key: str
    names: tuple[str, ...]  # [n]


@dataclass(frozen=True)
class Info:
    """What the file says, checked."""

    folder: Path
    is_v3: bool
    fps: float
    state: Numbers
    action: Numbers
    views: tuple[View, ...]
    success: str | None  # the feature that tells it
    splits: dict[str, range]
    chunks_size: int
    data_path: str
    video_path: str

    def file(self, template: str, **values: Any) -> Path:
        """The path of a template of info.json, as `inside` says. Raises TrajectoryFormatError."""
        wrong = [match[0] for match in PLACE.finditer(template) if match[1] not in values]
        if wrong or set("{}") & set(PLACE.sub("", template)):
            raise TrajectoryFormatError(
                f"{self.folder / INFO}: the path {template!r:.100} has places that are not known: "
                f"{listed(wrong or ['a brace'])}"
            )
        return self.inside(PLACE.sub(lambda match: _filled(values[match[1]], match[2]), template))

    def inside(self, name: str) -> Path:
        """A path below the folder, as `within` says."""
        return within(self.folder, name)

    def split(self, episode: int) -> str:
        """The split that an episode belongs to, "train" if none is named."""
        return next((name for name, episodes in self.splits.items() if episode in episodes), "train")


def within(folder: Path, name: str) -> Path:
    """The path `name` below the folder.

    Raises TrajectoryFormatError if it leads out, by `..`, as absolute path or by a link. The links of the cache of
    Hugging Face's hub, from snapshots/<revision> to blobs, are followed.
    """
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or "\\" in name or "\0" in name:
        raise TrajectoryFormatError(f"{folder / INFO}: the path {name!r:.200} leads out of the data set: not read")
    try:
        found, home = (folder / path).resolve(), folder.resolve()
    except (OSError, RuntimeError, ValueError) as error:  # a loop of links, a name that is not UTF-8
        raise TrajectoryFormatError(f"{folder / path}: {error}") from error
    homes = (home, home.parents[1] / "blobs") if home.parent.name == "snapshots" else (home,)
    if not any(found.is_relative_to(home) for home in homes):
        raise TrajectoryFormatError(f"{folder / path} is a link out of the data set: put the file itself there")
    return folder / path


def read_info(folder: Path, state: str | None, action: str | None, views: tuple[str, ...] | None) -> Info:
    """Read and check the file; None: the usual features. Raises UserError if it is missing or not as it should be."""
    path = within(folder, INFO)
    document = read_json(path)
    try:
        return _checked(folder, document, state, action, views)
    except TrajectoryFormatError:
        raise
    except (KeyError, ValueError, TypeError) as error:
        said = f"{error.args[0]} is missing" if isinstance(error, KeyError) else error
        raise TrajectoryFormatError(f"{path}: {said}") from error


def _checked(folder: Path, document: dict, state: str | None, action: str | None, views: Any) -> Info:
    version, features = document["codebase_version"], document["features"]
    if version not in VERSIONS:
        raise ValueError(f"codebase_version is {version!r:.30}; {', '.join(VERSIONS)} are read")
    if not isinstance(features, dict) or not all(isinstance(f, dict) for f in features.values()):
        raise ValueError(f"features is {shown(features)}; it should be an object of objects")
    if not is_number(fps := document["fps"]) or not 0 < fps <= MOST_FPS:
        raise ValueError(f"fps is {shown(fps)}; it should be a positive number")
    chunks = document.get("chunks_size", 1000)
    if not isinstance(chunks, int) or chunks < 1:
        raise ValueError(f"chunks_size is {shown(chunks)}; it should be a whole number, at least 1")
    chosen = _views(features, views)
    template = document.get("video_path") or ""
    for name in ("data_path", "video_path"):
        if not isinstance(document.get(name, ""), str | None):
            raise ValueError(f"{name} is {shown(document[name])}; it should be a text")
    return Info(
        folder,
        version.startswith("v3"),
        float(fps),
        _numbers(features, STATES if state is None else (state,)),
        _numbers(features, ACTIONS if action is None else (action,)),
        chosen,
        next((key for key in SUCCESS if key in features), None),
        _splits(document.get("splits")),
        chunks,
        document["data_path"],
        template,
    )


def _numbers(features: dict, keys: tuple[str, ...]) -> Numbers:
    key = next((key for key in keys if key in features), None)
    if key is None:
        raise ValueError(f"the feature {' or '.join(keys)} is missing (found {listed(features)})")
    shape, dtype = features[key].get("shape"), features[key].get("dtype")
    if not isinstance(shape, list) or len(shape) != 1 or not _is_size(shape[0], MOST_NUMBERS):
        raise ValueError(f"the feature {key} has the shape {shown(shape)}; it should be [n]")
    if dtype not in ("float32", "float64"):
        raise ValueError(f"the feature {key} is {shown(dtype)}; it should be float32 or float64")
    return Numbers(key, _names(features[key].get("names"), shape[0]))


def _names(said: Any, size: int) -> tuple[str, ...]:
    """Names are a list, a list in a list, or lists by part of the robot; where they do not fit, numbers."""
    parts = list(said.values()) if isinstance(said, dict) else said if isinstance(said, list) else []
    flat = [name for part in parts for name in (part if isinstance(part, list) else [part])]
    if len(flat) == size and all(isinstance(name, str) for name in flat):
        return tuple(flat)
    return tuple(str(i) for i in range(size))


def _views(features: dict, wanted: tuple[str, ...] | None) -> tuple[View, ...]:
    found = {}
    for key, feature in features.items():
        info = feature.get("info") or feature.get("video_info") or {}
        is_depth = isinstance(info, dict) and (info.get("video.is_depth_map") or info.get("is_depth_map"))
        if feature.get("dtype") in ("video", "image") and not is_depth:
            name = key.removeprefix("observation.").removeprefix("images.")
            found[name] = View(name, key, _size(key, feature.get("shape")), feature["dtype"] == "video")
    if not found:
        raise ValueError("no feature is a video or an image: there is no camera")
    if wanted is None:
        return tuple(found.values())
    by_key = found | {view.key: view for view in found.values()}
    if unknown := [name for name in wanted if name not in by_key]:
        raise ValueError(f"there is no view {unknown[0]!r:.100} (found {listed(found)})")
    return tuple(by_key[name] for name in wanted)


def _size(key: str, shape: Any) -> tuple[int, int]:  # of [H, W, 3] or [3, H, W]
    if isinstance(shape, list) and len(shape) == 3 and all(_is_size(n, MOST_PIXELS) for n in shape) and 3 in shape:
        h, w = shape[:2] if shape[2] == 3 else shape[1:]
        if 3 in (shape[0], shape[2]) and h * w <= MOST_PIXELS:
            return h, w
    raise ValueError(f"the feature {key} has the shape {shown(shape)}; pictures should be [H, W, 3] or [3, H, W]")


def _splits(said: Any) -> dict[str, range]:  # {"train": "0:50"}
    found = {}
    for name, text in (said or {}).items() if isinstance(said, dict | None) else ():
        if isinstance(text, str) and (match := re.fullmatch(r"(\d{1,9}):(\d{1,9})", text)):
            found[name] = range(int(match[1]), int(match[2]))
    return found


def _is_size(value: Any, most: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= most


def _filled(value: Any, width: str | None) -> str:
    return f"{value:0{int(width)}d}" if width and isinstance(value, int) else str(value)
