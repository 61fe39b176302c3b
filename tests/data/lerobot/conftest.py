"""A data set of LeRobot made by hand, as the real ones are: with pyarrow, av and json, and nothing of the package."""

import json
from pathlib import Path

import numpy as np
import pytest

TEXT = "pick up the yellow bottle"
LENGTHS = (7, 5, 6)
FPS, HEIGHT, WIDTH, STATE, ACTION = 30, 16, 24, 4, 3
V2 = {
    "data_path": "data/chunk-{episode_chunk:03d}/episode_{episode_index:06d}.parquet",
    "video_path": "videos/chunk-{episode_chunk:03d}/{video_key}/episode_{episode_index:06d}.mp4",
    "chunks_size": 1000,
}
V3 = {
    "data_path": "data/chunk-{chunk_index:03d}/file-{file_index:03d}.parquet",
    "video_path": "videos/{video_key}/chunk-{chunk_index:03d}/file-{file_index:03d}.mp4",
    "chunks_size": 1000,
}
KEY = "observation.images.cam_high"


class ByHand:
    """The data set and what is in it."""

    def __init__(self, folder: Path, version: str):
        rng = np.random.default_rng(0)
        self.folder, self.version = folder, version
        self.frames = [rng.integers(0, 256, (n, HEIGHT, WIDTH, 3), dtype=np.uint8) for n in LENGTHS]
        self.state = [rng.normal(size=(n, STATE)).astype(np.float32) for n in LENGTHS]
        self.action = [rng.uniform(-1, 1, (n, ACTION)).astype(np.float32) for n in LENGTHS]
        (self._write_v2 if version == "v2.1" else self._write_v3)()

    def table(self, episode: int) -> Path:
        name = f"episode_{episode:06d}" if self.version == "v2.1" else "file-000"
        return self.folder / f"data/chunk-000/{name}.parquet"

    def video(self, episode: int) -> Path:
        if self.version == "v2.1":
            return self.folder / f"videos/chunk-000/{KEY}/episode_{episode:06d}.mp4"
        return self.folder / f"videos/{KEY}/chunk-000/file-000.mp4"

    def change_info(self, **changes) -> None:
        """Replace parts of info.json; a change of None deletes."""
        path = self.folder / "meta/info.json"
        document = json.loads(path.read_text())
        for name, value in changes.items():
            document.pop(name) if value is None else document.update({name: value})
        path.write_text(json.dumps(document))

    def change_feature(self, key: str, **changes) -> None:
        features = json.loads((self.folder / "meta/info.json").read_text())["features"]
        self.change_info(features=features | {key: features[key] | changes})

    def change_table(self, change, path: Path | None = None) -> None:
        """Let `change` make another table of the first episode's, or of that at `path`."""
        import pyarrow.parquet as parquet

        path = path or self.table(0)
        parquet.write_table(change(parquet.ParquetFile(path).read()), path)

    def _columns(self, episode: int) -> dict:
        n, first = LENGTHS[episode], sum(LENGTHS[:episode])
        return {
            "observation.state": self.state[episode],
            "action": self.action[episode],
            "timestamp": (np.arange(n) / FPS).astype(np.float32),
            "frame_index": np.arange(n),
            "episode_index": np.full(n, episode),
            "index": first + np.arange(n),
            "task_index": np.zeros(n, np.int64),
        }

    def _info(self, shape: list, names: list, state_names) -> dict:
        scalar = {"shape": [1], "names": None}
        features = {
            "observation.state": {"dtype": "float32", "shape": [STATE], "names": state_names},
            "action": {"dtype": "float32", "shape": [ACTION], "names": None},
            KEY: {"dtype": "video", "shape": shape, "names": names, "info": {"video.is_depth_map": False}},
            "timestamp": {"dtype": "float32"} | scalar,
        }
        features |= {f"{name}index": {"dtype": "int64"} | scalar for name in ("frame_", "episode_", "", "task_")}
        return {"codebase_version": self.version, "fps": FPS, "features": features, "splits": {"train": "0:2"}}

    def _write_v2(self) -> None:
        import pyarrow as pa

        meta = self.folder / "meta"
        meta.mkdir(parents=True)
        info = self._info([HEIGHT, WIDTH, 3], ["height", "width", "channel"], [["a", "b", "c", "d"]])
        (meta / "info.json").write_text(json.dumps(info | V2 | {"total_episodes": 100}))
        (meta / "tasks.jsonl").write_text(json.dumps({"task_index": 0, "task": TEXT}))
        lines = [{"episode_index": i, "tasks": [TEXT], "length": n} for i, n in enumerate((*LENGTHS, 9))]
        (meta / "episodes.jsonl").write_text("\n".join(map(json.dumps, lines)) + "\n")
        for i in range(len(LENGTHS)):  # the fourth episode is listed, and not there
            columns = self._columns(i)
            vectors = {key: columns.pop(key) for key in ("observation.state", "action")}
            lists = {k: pa.FixedSizeListArray.from_arrays(v.ravel(), v.shape[1]) for k, v in vectors.items()}
            _write_table(self.table(i), pa.table(lists | columns))
            write_video(self.video(i), [self.frames[i]])

    def _write_v3(self) -> None:
        import pyarrow as pa

        info = self._info([3, HEIGHT, WIDTH], ["channel", "height", "width"], None)
        (self.folder / "meta").mkdir(parents=True)
        (self.folder / "meta/info.json").write_text(json.dumps(info | V3))
        texts = {"task_index": [0], "__index_level_0__": [TEXT]}
        _write_table(self.folder / "meta/tasks.parquet", pa.table(texts))
        parts = [self._columns(i) for i in range(len(LENGTHS))]
        columns = {key: np.concatenate([part[key] for part in parts]) for key in parts[0]}
        _write_table(self.table(0), pa.table({k: list(v) if v.ndim == 2 else v for k, v in columns.items()}))
        write_video(self.video(0), self.frames)
        ends = np.cumsum(LENGTHS)
        episodes = {
            "episode_index": list(range(len(LENGTHS))),
            "data/chunk_index": [0] * len(LENGTHS),
            "data/file_index": [0] * len(LENGTHS),
            "dataset_from_index": [0, *ends[:-1].tolist()],
            "dataset_to_index": ends.tolist(),
            f"videos/{KEY}/chunk_index": [0] * len(LENGTHS),
            f"videos/{KEY}/file_index": [0] * len(LENGTHS),
            f"videos/{KEY}/from_timestamp": [0.0, *(ends[:-1] / FPS).tolist()],
            f"videos/{KEY}/to_timestamp": (ends / FPS).tolist(),
            "tasks": [[TEXT]] * len(LENGTHS),
            "length": list(LENGTHS),
        }
        _write_table(self.folder / "meta/episodes/chunk-000/file-000.parquet", pa.table(episodes))


def _write_table(path: Path, table) -> None:
    import pyarrow.parquet as parquet

    path.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, path)


def write_video(path: Path, episodes: list[np.ndarray], fps: int = FPS) -> None:
    """Without loss, as no recording is, so that frames can be told apart bit for bit."""
    import av

    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        video = container.add_stream("libx264rgb", rate=fps, options={"qp": "0", "g": "2"})
        video.height, video.width, video.pix_fmt = *episodes[0].shape[1:3], "rgb24"
        for frame in np.concatenate(episodes):
            container.mux(video.encode(av.VideoFrame.from_ndarray(frame, format="rgb24")))
        container.mux(video.encode(None))


@pytest.fixture
def rewrite_video():
    return write_video


@pytest.fixture(params=["v2.1", "v3.0"])
def by_hand(request, tmp_path) -> ByHand:
    return ByHand(tmp_path / "recorded", request.param)


@pytest.fixture
def by_hand_of(tmp_path):
    return lambda version: ByHand(tmp_path / "recorded", version)
