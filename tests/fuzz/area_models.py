"""Folders of models that are damaged, mixed or lie about what they hold."""

import json
import math
import os
import random
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import torch
from cases import Case, Silent
from safetensors.torch import load, save
from sound_models import TINY, sound_files, write_files
from torch import Tensor

import worldenv
from worldenv.nn.int8 import is_allowed
from worldenv.records.checkpoint import load_weights, save_state, save_weights

WEIGHTS = ("policy.safetensors", "composer.safetensors", "reflector.safetensors", "causal.safetensors")
Change = Callable[[Path], None]  # what is done to a folder of sound models
NUMBER = [None, True, "4", -1, 10**9, 10**400, 1.5, math.nan, math.inf, [], {}, [4]]
SHARE = [None, True, "0.5", -1, 0, math.nan, math.inf, [], {}, [0.5], 10**400]
WRONG = {  # field of a configuration -> values that it cannot have
    **{name: NUMBER for name in ("chunk", "width", "channels", "blocks", "layers", "heads", "image_size")},
    **{name: NUMBER for name in ("patch", "window", "key_heads", "map_shrink")},
    "threshold": [*SHARE, 1, 2.0],
    "scale_high": [*SHARE],
    "scale_low": [None, 0.05, [], [0.05] * 6, ["a"] * 7, [math.nan] * 7, [-1.0] * 7, {}, "0000000", [True] * 7],
    "widths": [None, 8, [], [8], [8, 16], [8, 16, 32, 64], ["8", "16", "32"], [8, 16, 10**9], [8.5, 16, 32], "abc"],
    "exact": [None, 0, 1, "no", []],
    "cache": [None, "int4", 1, [], "INT8"],
    "a_new_field": [1],
}
LEVELS = [None, [], 1.0, "1.0", [0.5], [1.0, 1.0], [1.0, 2.0], [1.0, 0.0], [1.0, math.nan], ["a"], [None], {}]
LEVELS += [[True, []], [1.0 - i / 5000 for i in range(4000)], [10**400, 1]]


def cases(rng: random.Random) -> Iterator[Case]:
    """Damage of every kind in turn."""
    kinds = [flip, cut, mix, metadata, configuration, levels, tensors, header, special, ranges, other_weights]
    while True:
        for kind in kinds:
            name, change = kind(rng)
            world = "causal" if "causal" in name else "composer"
            precision = rng.choice(["auto", "float32", *(["int8"] if is_allowed() and world == "composer" else [])])
            yield Case(f"{kind.__name__}: {name}, {world} {precision}", _used(change, world, precision))


def _used(change: Change, world: str, precision: str) -> Callable[[Path], None]:
    def act(folder: Path) -> None:
        models = folder / "models"
        models.mkdir()
        write_files(models, sound_files())
        change(models)
        parts = worldenv.load(models, world=world)
        engine = worldenv.make_engine(parts, worldenv.EngineConfig(horizon=4), precision)
        if what := _difference(parts, world):
            raise Silent(what)
        engine.run(TINY.starts(2), 1, 0)

    return act


def _difference(parts: worldenv.Parts, world: str) -> str | None:
    sound = Path("sound")
    sound.mkdir()
    write_files(sound, sound_files())
    expected = worldenv.load(sound, world=world)
    for (role, mine), other in zip(parts.networks().items(), expected.networks().values(), strict=True):
        if mine.config != other.config:
            return f"another configuration of the {role}: {mine.config}"
        weights = other.state_dict()
        if wrong := [name for name, x in mine.state_dict().items() if not torch.equal(x, weights[name])]:
            return f"other weights of the {role}: {wrong[0]}"
    if parts.world.levels != expected.world.levels:
        return f"other levels: {parts.world.levels}"
    if parts.ranges not in (None, expected.ranges):
        return "other ranges"
    return None


def _any(rng: random.Random) -> str:
    return rng.choice([*WEIGHTS, "ranges.json"])


def flip(rng: random.Random) -> tuple[str, Change]:
    """One or a few bits."""
    file = _any(rng)
    size = len(sound_files()[file])
    inside = rng.choice([size, min(size, 600)])  # the header is a small part, and of more kinds
    places = [(rng.randrange(inside), rng.randrange(8)) for _ in range(rng.choice([1, 1, 1, 2, 5]))]

    def change(folder: Path) -> None:
        content = bytearray((folder / file).read_bytes())
        for place, bit in places:
            content[place] ^= 1 << bit
        (folder / file).write_bytes(content)

    return f"{file} bits {places}", change


def cut(rng: random.Random) -> tuple[str, Change]:
    """A part is missing or too much, or a block is zeros, as a broken disk or a copy leaves it."""
    file, how = _any(rng), rng.choice(["cut", "more", "zeros", "twice", "shifted"])
    place = rng.randrange(len(sound_files()[file]))

    def change(folder: Path) -> None:
        content = (folder / file).read_bytes()
        block = min(512, len(content) - place)
        changed = {
            "cut": content[:place],
            "more": content + bytes(1 + place % 64),
            "zeros": content[:place] + bytes(block) + content[place + block :],
            "twice": content + content,
            "shifted": content[place:] + content[:place],
        }
        (folder / file).write_bytes(changed[how])

    return f"{file} {how} at {place}", change


def mix(rng: random.Random) -> tuple[str, Change]:
    """A file of another kind, of a run, or none."""
    file, other = (
        rng.choice(WEIGHTS),
        rng.choice([*WEIGHTS, "ranges.json", "state", "foreign", "nothing", "base", "old"]),
    )

    def change(folder: Path) -> None:
        if other == "state":
            save_state(folder / file, policy={"a": torch.zeros(2)}, step=1)
        elif other == "foreign":
            (folder / file).write_bytes(save(load((folder / file).read_bytes()), {"format": "pt"}))
        elif other == "old":  # sound, without a checksum
            weights, about = load_weights(folder / file)
            (folder / file).write_bytes(save(weights, {"worldenv": json.dumps(about)}))
        elif other == "nothing":
            (folder / file).unlink()
        elif other == "base":
            save_weights(folder / file, load((folder / file).read_bytes()), {"kind": "base", "made": {}})
        else:
            (folder / file).write_bytes((folder / other).read_bytes())

    return f"{file} is {other}", change


def _again(file: str, edit: Callable[[dict, dict[str, Tensor]], object]) -> Change:
    """Write a file again, complete with its checksum, after an edit of metadata or tensors."""

    def change(folder: Path) -> None:
        weights, about = load_weights(folder / file)
        edit(about, weights)
        save_weights(folder / file, weights, about)

    return change


def metadata(rng: random.Random) -> tuple[str, Change]:
    """The text in the metadata is no document, or lacks something."""
    file, texts = rng.choice(WEIGHTS), ["", "{", "[]", "null", "3", '"a"', "[" * 100_000, "{}", '{"kind": "policy"}']
    text = rng.choice([*texts, '{"kind": [1], "config": {}}', '{"kind": null}', '{"config": 3, "sha256": 5}'])
    key = rng.choice(["worldenv", "worldenv", "worldenv", "worldenv_state", "\n"])

    def change(folder: Path) -> None:
        (folder / file).write_bytes(save(load((folder / file).read_bytes()), {key: text}))

    return f"{file} {key!r}: {text[:40]!r}", change


def configuration(rng: random.Random) -> tuple[str, Change]:
    """A value of the configuration is missing or of a wrong kind or size."""
    file = rng.choice(WEIGHTS)
    _, about = _read(file)
    name = rng.choice([*about["config"], "a_new_field", "", "no"])
    if name in ("", "no"):
        value = rng.choice([None, [], 3, "a", {}])
        return f"{file} config {value!r}", _again(file, lambda about, _: about.update(config=value))
    value = rng.choice(WRONG[name])
    return f"{file} {name} = {str(value)[:30]}", _again(file, lambda about, _: about["config"].update({name: value}))


@cache
def _read(file: str) -> tuple[dict[str, Tensor], dict]:
    path = Path(os.environ.get("TMPDIR", "/tmp")) / f"fuzz-{os.getpid()}-{file}"
    path.write_bytes(sound_files()[file])
    try:
        return load_weights(path)
    finally:
        path.unlink()


def levels(rng: random.Random) -> tuple[str, Change]:
    """Noise levels that are none."""
    file, value = rng.choice(["composer.safetensors", "causal.safetensors"]), rng.choice([*LEVELS, "missing"])

    def edit(about: dict, _: dict) -> None:
        about.pop("levels") if value == "missing" else about.update(levels=value)

    return f"{file} levels {str(value)[:40]}", _again(file, edit)


def tensors(rng: random.Random) -> tuple[str, Change]:
    """A tensor that is missing, too much, of another shape or kind of number, or not finite."""
    file = rng.choice(WEIGHTS)
    name = rng.choice(sorted(_read(file)[0]))
    place = rng.random()

    def spoilt(value: float) -> Callable[[Tensor], Tensor]:
        def put(x: Tensor) -> Tensor:
            x = x.float()
            x.view(-1)[int(place * x.numel())] = value
            return x

        return put

    changes: dict[str, Callable[[Tensor], Tensor | None]] = {
        **{str(value): spoilt(value) for value in (math.nan, math.inf, -math.inf)},
        **{str(t): lambda x, t=t: x.to(t) for t in (torch.int8, torch.int64, torch.bool, torch.complex64)},
        "1e300": lambda x: x.double() + 1e300,
        "float64": lambda x: x.double(),
        "empty": lambda x: x[:0] if x.ndim else x.view(1)[:0],
        "flat": lambda x: x.reshape(1, -1),
        "longer": lambda x: torch.cat([x, x]) if x.ndim else x.expand(2),
        "missing": lambda x: None,
    }
    how = rng.choice(sorted(changes))

    def edit(_: dict, weights: dict[str, Tensor]) -> None:
        new = changes[how](weights.pop(name).clone())
        if new is not None:
            weights[name] = new
        elif place < 0.5:
            weights["head.9.weight"] = torch.zeros(2)

    return f"{file} {name} {how} at {place:.3f}", _again(file, edit)


def header(rng: random.Random) -> tuple[str, Change]:
    """The header of the file lies: its length, offsets, shapes, dtypes."""
    file = rng.choice(WEIGHTS)
    content = sound_files()[file]
    size = struct.unpack("<Q", content[:8])[0]
    parsed, data = json.loads(content[8 : 8 + size]), content[8 + size :]
    names = [name for name in parsed if name != "__metadata__"]
    name, other = rng.sample(names, 2)
    if rng.random() < 0.15:
        value = rng.choice([0, 1, size + 1, 2**31, 2**63 - 1, 2**64 - 1])
        changed = struct.pack("<Q", value) + content[8:]
        return f"{file} length {value}", lambda folder: _put(folder / file, changed)
    mine = parsed[name]
    edits = {
        "overlap": lambda: mine.update(data_offsets=parsed[other]["data_offsets"]),
        "beyond": lambda: mine.update(data_offsets=[mine["data_offsets"][0], 2**62]),
        "negative": lambda: mine.update(data_offsets=[-8, 8]),
        "shape": lambda: mine.update(shape=[*mine["shape"], 1]),
        "huge shape": lambda: mine.update(shape=[2**40, 2**40]),
        "dtype": lambda: mine.update(dtype=rng.choice(["F64", "BF16", "I16", "U16", "F8_E4M3", "F4", "X", 3])),
        "deep": lambda: mine.update(shape=[[[[1]]]]),
        "same": lambda: parsed.update({name: parsed[other]}),
        "metadata": lambda: parsed.update(__metadata__=rng.choice([3, [], {"worldenv": 3}, None])),
    }
    how = rng.choice(sorted(edits))
    edits[how]()
    text = json.dumps(parsed).encode()
    changed = struct.pack("<Q", len(text)) + text + data
    return f"{file} {name} {how} {parsed[name]}", lambda folder: _put(folder / file, changed)


def _put(path: Path, content: bytes) -> None:
    path.write_bytes(content)


def special(rng: random.Random) -> tuple[str, Change]:
    """What stands there is no file."""
    file = _any(rng)
    kinds: dict[str, Change] = {
        "a folder": lambda path: path.mkdir(),
        "a pipe": lambda path: os.mkfifo(path),
        "a link to nothing": lambda path: path.symlink_to("nowhere"),
        "a link to itself": lambda path: path.symlink_to(path.name),
        "/dev/zero": lambda path: path.symlink_to("/dev/zero"),
        "/dev/null": lambda path: path.symlink_to("/dev/null"),
        "a link to a folder": lambda path: path.symlink_to("."),
        "empty": lambda path: path.touch(),
        "a socket": lambda path: os.mknod(path, 0o140644),
    }
    how = rng.choice(sorted(kinds))

    def change(folder: Path) -> None:
        (folder / file).unlink()
        kinds[how](folder / file)

    return f"{file} is {how}", change


def ranges(rng: random.Random) -> tuple[str, Change]:
    """Ranges that are none, upside down, or of layers that are not there."""
    role = rng.choice(["policy", "world", "reflector"])
    document = json.loads(sound_files()["ranges.json"])
    layer = rng.choice(sorted(document[role]))
    ends = [[1.0, -1.0], [0.0], [0.0, 1.0, 2.0], ["0", "1"], 3, "a", {}, [], [None, None], [math.nan, 1.0], None]
    ends += [[-math.inf, 0.0], [0.0, 1e308], [True, False], [-(10**400), 10**400], [0.0, 3.25]]
    end = rng.choice(ends)
    wrong = rng.choice([None, [], 3, "a", {"": None}, {layer: [1, 2], "nowhere": [0, 1]}])
    edits = {
        f"{layer} {str(end)[:30]}": lambda: document[role].update({layer: end}),
        f"{role} {wrong}": lambda: document.update({role: wrong}),
        f"no {role}": lambda: document.pop(role),
        "another role": lambda: document.update(teacher={}),
        "a layer that is not there": lambda: document[role].update(nowhere=[0.0, 1.0]),
        "a layer less": lambda: document[role].pop(layer),
        "checksum": lambda: document.update(sha256=rng.choice([None, 3, [], {}, {role: 3}])),
    }
    how = rng.choice(list(edits))
    edits[how]()
    text = json.dumps(document)
    texts = ["", "{", "[]", "null", "NaN", "[" * 100_000, '{"policy": {}}', "\x00", '{"policy": {}, "policy": {}}']
    if rng.random() < 0.3:
        how = text = rng.choice(texts)
    encoding = rng.choice(["utf-8"] * 6 + ["utf-16", "utf-8-sig"])
    content = text.encode(encoding)
    return f"{role} {how[:60]!r} {encoding}", lambda folder: _put(folder / "ranges.json", content)


def other_weights(rng: random.Random) -> tuple[str, Change]:
    """Sound weights, but not those with which the ranges were measured."""
    file = rng.choice(WEIGHTS[:3])

    def change(folder: Path) -> None:
        (folder / file).write_bytes(sound_files(1)[file])

    return f"{file} of another run beside ranges.json", change
