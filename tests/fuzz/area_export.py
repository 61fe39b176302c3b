"""`worldenv-export` with odd words and damaged models: refused in one line, or exactly what was asked for is there."""

import random
from collections.abc import Iterator
from pathlib import Path

from area_commands import WORDS, make_files, shown
from called import TARGETS, called
from cases import Case, Silent
from sound_models import sound_files, write_files

from worldenv.commands import cli, export
from worldenv.records.model_files import ROLES

PIECES = ["policy-encoder", "policy-heads", "reflector-encoder", "reflector-head", "policy-x", "reflector"]
PIECES += ["world-encoder", "world-decoder", "world-denoising-step"]
NAMES = {"policy": "small", "world": "causal", "reflector": "small"}


def cases(rng: random.Random) -> Iterator[Case]:
    """Endless; the models are made before the first."""
    files = sound_files()
    while True:
        words = [_rarely(rng, "new", TARGETS), "--models", _rarely(rng, "models", TARGETS)]
        roles = rng.sample(ROLES, rng.choice([0, 1, 1, 1, 2, 2, 3]))
        for role in roles:
            words += [f"--{role}", _rarely(rng, NAMES[role], WORDS)]
        if rng.random() < 0.4:
            fitting = [name for name in PIECES if name.partition("-")[0] in roles] or PIECES
            some = [_rarely(rng, rng.choice(fitting), WORDS) for _ in range(rng.randint(1, 2))]
            words += ["--pieces", ",".join(some)]
        if rng.random() < 0.2:
            words += [rng.choice(["--tensorrt", "--suite", "--suite=tabletop", "--piece", "--models=", "--", "extra"])]
        broken = rng.choice([*[None] * 9, *files])
        cut = rng.random()
        yield Case(
            f"worldenv-export {shown(words)}, {broken} cut at {cut:.3f}",
            lambda folder, given=(words, broken, cut): use(folder, *given),
        )


def _rarely(rng: random.Random, usual: str, others: list[str]) -> str:
    return usual if rng.random() < 0.95 else rng.choice(others)


def use(folder: Path, words: list[str], broken: str | None, cut: float) -> None:
    make_files(folder)
    files = dict(sound_files())
    if broken is not None:
        files[broken] = files[broken][: int(cut * len(files[broken]))]
    (folder / "models").mkdir()
    write_files(folder / "models", files)

    def write(name, piece, path):  # tracing takes seconds
        path.write_text(name)
        return {"inputs": {}, "outputs": {}, "difference": 0.0}

    export._write = write
    said = called(cli.export, "worldenv-export", words)
    written = {path.name for path in Path(said["folder"]).iterdir()}
    if written != said["files"].keys() or not written:
        raise Silent(f"{sorted(written)} are there, and said are {sorted(said['files'])}")
    roles = {word[2:] for word in words if word[2:] in ROLES and word.startswith("--")}
    if not all(name.partition("-")[0] in roles for name in written):
        raise Silent(f"{sorted(written)} of the roles {sorted(roles)}")
    if "--pieces" in words:
        asked = {f"{name}.onnx" for name in words[words.index("--pieces") + 1].split(",")}
        if asked != written:
            raise Silent(f"{sorted(written)} where {sorted(asked)} were asked for")
