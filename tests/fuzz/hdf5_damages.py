"""Ways to damage an HDF5 file of trajectories, each with what should come of it: a name, (what does it, outcome)."""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy as np

REFUSED, SAME, ANY = "refused", "same", "any"  # ANY: what is read is at least of one piece
PAGE = 512
Damage = Callable[[Path, str, random.Random], None]


def _demo(file: h5py.File, rng: random.Random) -> h5py.Group:
    return file["data"][rng.choice(sorted(file["data"]))]


def _in_bytes(change: Callable[[bytearray, random.Random], bytes | None]) -> tuple[Damage, str]:
    def damage(path: Path, at: str, rng: random.Random) -> None:
        content = bytearray(path.read_bytes())
        path.write_bytes(change(content, rng) or content)

    return damage, ANY


def _in_dataset(change: Callable[[h5py.Group, str, np.ndarray], Any], outcome: str = REFUSED) -> tuple[Damage, str]:
    """`change` is given the group, the key and the values; what it returns takes their place."""

    def damage(path: Path, at: str, rng: random.Random) -> None:
        with h5py.File(path, "r+") as file:
            demo = _demo(file, rng)
            value = demo[at][()]
            del demo[at]
            if (new := change(demo, at, value)) is not None:
                demo[at] = new

    return damage, outcome


def _in_attribute(change: Callable[[h5py.Group, str, Any], Any], outcome: str = REFUSED) -> tuple[Damage, str]:
    def damage(path: Path, at: str, rng: random.Random) -> None:
        place, name = at.split()
        with h5py.File(path, "r+") as file:
            owner = file["data"] if place == "/data" else _demo(file, rng)
            value = owner.attrs.get(name, '{"language_instruction": "put it down"}')
            if name in owner.attrs:
                del owner.attrs[name]
            if (new := change(owner, name, value)) is not None:
                owner.attrs[name] = new

    return damage, outcome


def _flip(content: bytearray, rng: random.Random, count: int) -> None:
    for _ in range(count):
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)


def _overwrite(content: bytearray, rng: random.Random, count: int) -> None:
    for _ in range(count):
        content[rng.randrange(len(content))] = rng.choice((0, 1, 255, rng.randrange(256)))


def _fill(content: bytearray, rng: random.Random, value: int | None) -> None:
    begin = rng.randrange(len(content)) // PAGE * PAGE
    for at in range(begin, min(begin + PAGE, len(content))):
        content[at] = rng.randrange(256) if value is None else value


def _copy_page(content: bytearray, rng: random.Random) -> None:
    one, other = (rng.randrange(len(content) // PAGE) * PAGE for _ in range(2))
    content[one : one + PAGE] = content[other : other + PAGE]


def _in_metadata(content: bytearray, rng: random.Random) -> None:
    """A byte after one of HDF5's signatures, where its addresses, sizes and types lie."""
    marks = (b"TREE", b"HEAP", b"SNOD", b"GCOL", b"\x89HDF")
    begin = content.find(rng.choice(marks), rng.randrange(len(content)))
    content[min(max(begin, 0) + rng.randrange(120), len(content) - 1)] = rng.choice((0, 1, 127, 255))


BYTES = {
    "a bit flipped": _in_bytes(lambda content, rng: _flip(content, rng, 1)),
    "8 bits flipped": _in_bytes(lambda content, rng: _flip(content, rng, 8)),
    "a byte overwritten": _in_bytes(lambda content, rng: _overwrite(content, rng, 1)),
    "8 bytes overwritten": _in_bytes(lambda content, rng: _overwrite(content, rng, 8)),
    "100 bytes overwritten": _in_bytes(lambda content, rng: _overwrite(content, rng, 100)),
    "metadata overwritten": _in_bytes(_in_metadata),
    "a page of zeros": _in_bytes(lambda content, rng: _fill(content, rng, 0)),
    "a page of ones": _in_bytes(lambda content, rng: _fill(content, rng, 255)),
    "a page of noise": _in_bytes(lambda content, rng: _fill(content, rng, None)),
    "a page of another place": _in_bytes(_copy_page),
    "truncated": _in_bytes(lambda content, rng: content[: rng.randrange(1, len(content))]),
    "a piece cut out": _in_bytes(lambda content, rng: content[: rng.randrange(len(content))] + content[-PAGE:]),
    "bytes behind the end": _in_bytes(lambda content, rng: content + bytes(rng.randrange(256) for _ in range(99))),
}


def _create(**options: Any) -> Callable[[h5py.Group, str, np.ndarray], None]:
    def create(demo: h5py.Group, key: str, value: np.ndarray) -> None:
        demo.create_dataset(key, **{"shape": value.shape, "dtype": value.dtype, **options})

    return create


def _virtual(demo: h5py.Group, key: str, value: np.ndarray) -> None:
    layout = h5py.VirtualLayout(value.shape, value.dtype)
    layout[...] = h5py.VirtualSource(__file__, "x", value.shape)
    demo.create_virtual_dataset(key, layout)


def _unknown_filter(demo: h5py.Group, key: str, value: np.ndarray) -> None:
    properties = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    properties.set_chunk(value.shape)
    properties.set_filter(305, h5py.h5z.FLAG_OPTIONAL)  # one that is not there when it is written, and so is skipped
    space, dtype = h5py.h5s.create_simple(value.shape), h5py.h5t.py_create(value.dtype)
    dataset = h5py.Dataset(h5py.h5d.create(demo.id, key.encode(), dtype, space, properties, _intermediate()))
    dataset.id.write_direct_chunk((0,) * value.ndim, value.tobytes(), filter_mask=0)


def _intermediate() -> h5py.h5p.PropLCID:
    properties = h5py.h5p.create(h5py.h5p.LINK_CREATE)
    properties.set_create_intermediate_group(True)
    return properties


def _huge(demo: h5py.Group, key: str, value: np.ndarray) -> None:
    shape = (10**9, *value.shape[1:])
    demo.create_dataset(key, shape, value.dtype, chunks=value.shape)


def _external(demo: h5py.Group, key: str, value: np.ndarray) -> None:
    demo.create_dataset(key, value.shape, value.dtype, external=[("/dev/zero", 0, value.nbytes)])


def _cycle(demo: h5py.Group, key: str, value: np.ndarray) -> None:
    demo[key] = demo.parent  # a hard link to the group that it lies in


def _with_nan(demo: h5py.Group, key: str, value: np.ndarray) -> np.ndarray:
    return np.full(value.shape, np.nan)


COMPOUND = np.dtype([("a", "f4"), ("b", "i4")])
DATASETS = {
    "nothing in": _in_dataset(lambda demo, key, value: None),
    "a rank less in": _in_dataset(lambda demo, key, value: value.reshape(-1) if value.ndim > 1 else value[0]),
    "a rank more in": _in_dataset(lambda demo, key, value: value[..., None]),
    "a row less in": _in_dataset(lambda demo, key, value: value[:-1]),
    "a row more in": _in_dataset(lambda demo, key, value: np.concatenate([value, value[:1]])),
    "no rows in": _in_dataset(lambda demo, key, value: value[:0]),
    "a single value in": _in_dataset(lambda demo, key, value: value.reshape(-1)[0]),
    "no space in": _in_dataset(lambda demo, key, value: h5py.Empty("f4")),
    "NaN in": _in_dataset(_with_nan),
    "infinity in": _in_dataset(lambda demo, key, value: np.full(value.shape, -np.inf)),
    "complex numbers in": _in_dataset(lambda demo, key, value: value.astype("c8")),
    "texts in": _in_dataset(lambda demo, key, value: np.full(value.shape, "a", dtype="S3")),
    "texts of variable length in": _in_dataset(_create(dtype=h5py.string_dtype())),
    "lists in": _in_dataset(_create(dtype=h5py.vlen_dtype(np.float32))),
    "references in": _in_dataset(_create(dtype=h5py.ref_dtype)),
    "a compound in": _in_dataset(lambda demo, key, value: np.zeros(value.shape, COMPOUND)),
    "an enum in": _in_dataset(_create(dtype=h5py.enum_dtype({"A": 7, "B": 300}, "i4"))),
    "opaque values in": _in_dataset(_create(dtype=h5py.opaque_dtype(np.dtype("V5")))),
    "arrays in": _in_dataset(_create(dtype=np.dtype("(3,)f4"))),
    "huge claims in": _in_dataset(_create(shape=(10**12, 7), chunks=(1000, 7), dtype="f4")),
    "huge claims of the right type in": _in_dataset(_huge),
    "an unknown filter in": _in_dataset(_unknown_filter),
    "another file's values in": _in_dataset(_external),
    "a virtual dataset in": _in_dataset(_virtual),
    "a soft link in": _in_dataset(lambda demo, key, value: h5py.SoftLink(f"{demo.name}/{key}")),
    "an external link in": _in_dataset(lambda demo, key, value: h5py.ExternalLink("/dev/zero", "/x")),
    "a circle in": _in_dataset(_cycle),
    "a group in": _in_dataset(lambda demo, key, value: demo.create_group(key) and None),
    "a datatype in": _in_dataset(lambda demo, key, value: np.dtype("f4")),
    "the same, big-endian, in": _in_dataset(lambda demo, key, value: value.astype(value.dtype.newbyteorder(">")), SAME),
    "the same, in chunks, in": _in_dataset(
        lambda demo, key, value: demo.create_dataset(key, data=value, chunks=True, shuffle=True) and None, SAME
    ),
    "the same, checked by HDF5, in": _in_dataset(
        lambda demo, key, value: demo.create_dataset(key, data=value, fletcher32=True) and None, SAME
    ),
}


def _committed(owner: h5py.Group, name: str, value: Any) -> None:
    owner.file["type"] = np.dtype("i8") if isinstance(value, np.integer) else h5py.string_dtype()
    owner.attrs.create(name, value, dtype=owner.file["type"])


def _lists(owner: h5py.Group, name: str, value: Any) -> None:
    lists = np.empty(1, object)
    lists[0] = np.arange(3)
    owner.attrs.create(name, lists, dtype=h5py.vlen_dtype(np.int64))


ATTRIBUTES = {
    "an empty": _in_attribute(lambda owner, name, value: h5py.Empty("S3")),
    "a float as": _in_attribute(lambda owner, name, value: 1.5),
    "NaN as": _in_attribute(lambda owner, name, value: np.nan),
    "complex numbers as": _in_attribute(lambda owner, name, value: 1j),
    "a truth as": _in_attribute(lambda owner, name, value: True),
    "two integers as": _in_attribute(lambda owner, name, value: np.arange(2)),
    "no values as": _in_attribute(lambda owner, name, value: np.zeros(0, np.int64)),
    "lists as": _in_attribute(_lists),
    "a reference as": _in_attribute(lambda owner, name, value: owner.ref),
    "a compound as": _in_attribute(lambda owner, name, value: np.zeros(2, COMPOUND)),
    "an enum as": _in_attribute(
        lambda owner, name, value: owner.attrs.create(name, 7, dtype=h5py.enum_dtype({"A": 7}, "i4"))
    ),
    "opaque values as": _in_attribute(lambda owner, name, value: np.void(b"abc")),
    "bytes that are no UTF-8 as": _in_attribute(lambda owner, name, value: np.bytes_(b"\xff\xfe")),
    "a text of many bytes as": _in_attribute(lambda owner, name, value: "a" * 1_000_000),
    "an empty text as": _in_attribute(lambda owner, name, value: ""),
    "a huge number as": _in_attribute(lambda owner, name, value: np.uint64(2**64 - 1)),
    "a negative number as": _in_attribute(lambda owner, name, value: np.int64(-1)),
    "the same, of a named type, as": _in_attribute(_committed, SAME),
}


def _rewrite(**options: Any) -> Damage:
    def damage(path: Path, at: str, rng: random.Random) -> None:
        other = path.with_suffix(".other")
        with h5py.File(path) as file, h5py.File(other, "w", **options) as written:
            for name in file:
                file.copy(name, written)
        other.replace(path)

    return damage


def _many_groups(path: Path, at: str, rng: random.Random) -> None:
    with h5py.File(path, "r+") as file:
        for i in range(10_000):
            file["data"].create_group(f"group_{i}")


def _odd_names(path: Path, at: str, rng: random.Random) -> None:
    with h5py.File(path, "r+") as file:
        for name in ("demo_", "demo_x", "demo_²", "demo_-1", "démo_7", "demo_1 ", "demo_\n", "a" * 60_000):
            file["data"].create_group(name)
        file["data"].create_group(b"demo_\xff")


def _open_for_writing(path: Path, at: str, rng: random.Random) -> None:
    """As a writer that was killed leaves it: the newest layout marks a file as open."""
    other = path.with_suffix(".other")
    with h5py.File(path) as file, h5py.File(other, "w", libver="latest") as written:
        file.copy("data", written)
        if rng.random() < 0.5:
            written.swmr_mode = True
        written.flush()
        path.write_bytes(other.read_bytes())


def _group_in_itself(path: Path, at: str, rng: random.Random) -> None:
    with h5py.File(path, "r+") as file:
        file["data/demo_999999"] = file["data"]


def _huge_number(path: Path, at: str, rng: random.Random) -> None:
    with h5py.File(path, "r+") as file:
        demo = _demo(file, rng)
        file["data"].move(demo.name, f"/data/demo_1{'0' * rng.choice((5, 30, 5000))}")


WHOLE = {
    "a user block": (_rewrite(userblock_size=1024), SAME),
    "the newest layout": (_rewrite(libver="latest"), SAME),
    "the order of creation": (_rewrite(track_order=True), SAME),
    "10,000 groups": (_many_groups, SAME),
    "odd names": (_odd_names, SAME),
    "a mark of a writer": (_open_for_writing, REFUSED),
    "a group in itself": (_group_in_itself, ANY),
    "a demonstration of a huge number": (_huge_number, ANY),
}
