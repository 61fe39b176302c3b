"""The smallest models of every kind, made once in a process, as the files of a folder."""

import sys
import tempfile
from functools import cache
from pathlib import Path

import worldenv
from worldenv.records.model_files import save_model, save_ranges
from worldenv.training.ranges import measure_ranges
from worldenv.worlds.causal.network import CausalConfig, CausalNetwork

sys.path.append(str(Path(__file__).parents[1]))
from conftest import Tiny  # noqa: E402

TINY = Tiny()
LEVELS = (1.0, 0.5)


@cache
def sound_files(seed: int = 0) -> dict[str, bytes]:
    """What `worldenv.load` reads, by the name of the file; another seed gives other weights of the same sizes."""
    with tempfile.TemporaryDirectory(prefix="fuzz-") as name:
        folder = Path(name)
        save_model(folder / "policy.safetensors", TINY.policy(seed), "policy", {})
        save_model(folder / "composer.safetensors", TINY.simulator(seed), "composer", {}, levels=LEVELS)
        save_model(folder / "reflector.safetensors", TINY.reflector(seed), "reflector", {})
        sizes = {"image_size": 16, "width": 32, "layers": 1, "heads": 2, "key_heads": 1, "channels": 4, "map_shrink": 1}
        causal = CausalNetwork(CausalConfig(**sizes))
        save_model(folder / "causal.safetensors", causal, "causal", {}, levels=LEVELS)
        parts = worldenv.load(folder)
        engine = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=8), "float32")
        ranges = measure_ranges(parts.networks(), engine, TINY.starts(4), 0)
        save_ranges(folder / "ranges.json", ranges, parts.networks())
        return {path.name: path.read_bytes() for path in folder.iterdir()}


def write_files(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).write_bytes(content)
