"""Start frames in RLinf's files: pickles, of which only arrays and texts are read."""

import pickle

import numpy as np
import pytest
import torch

from worldenv.data.formats.npy_objects import read_objects
from worldenv.data.formats.rlinf import RlinfConfig, rlinf_starts
from worldenv.errors import UserError


def frame(value, text, size=64):
    image = np.full((size, size, 3), value, np.uint8)
    image[0, 0] = 255
    pose = np.arange(8, dtype=np.float64)
    return {"image": image, "delta_action": np.zeros(7), "init_ee_pose": pose, "instruction": text, "done": np.bool_(0)}


def save(path, *frames):
    path.parent.mkdir(exist_ok=True)
    row = np.empty(len(frames), object)
    row[:] = frames
    np.save(path, row, allow_pickle=True)


@pytest.fixture
def folder(release):
    for number, text in ((2, "open the drawer"), (0, b"put the bowl on the plate"), (1, np.bytes_(b"open the drawer"))):
        save(release / "dataset" / f"traj{number}.npy", frame(40 * number, text), frame(9, text))
    save(release / "dataset" / "traj0_kir.npy", frame(200, "five frames"))
    return release


def test_first_frames_are_read_upright_with_their_instructions(tiny, load, folder, tabletop):
    starts = rlinf_starts(folder, tabletop, RlinfConfig(size=64, orientation="turned"))
    assert starts.instructions == ["put the bowl on the plate", "open the drawer", "open the drawer"]
    assert starts.texts == ("open the drawer", "put the bowl on the plate")
    assert starts.seen.frames[:, 0, 5, 5, 0].tolist() == [0, 40, 80]
    assert (starts.seen.frames[:, 0, 0, 63] == 255).all() and starts.seen.camera is None
    low, high = (torch.tensor(b) for b in (tabletop.robot.low, tabletop.robot.high))
    assert ((starts.seen.proprio >= low) & (starts.seen.proprio <= high)).all()
    memory = load(steps=1).begin(starts.seen, 8)
    assert len(memory) == 3 and memory.latents.isfinite().all()


class Evil:
    def __reduce__(self):
        return print, ("code of a stranger was executed",)


@pytest.mark.parametrize(
    ("write", "message"),
    [
        (lambda p: save(p, {"image": Evil()}), r"holds more than arrays and texts \(builtins.print\), which would be"),
        (lambda p: np.save(p, np.ones(3)), "holds float64 .3.; a row of objects was expected"),
        (lambda p: p.write_bytes(b"\x93NUMPY"), "cannot be read"),
        (lambda p: p.write_bytes(p.read_bytes()[:-40]), "cannot be read"),
        (lambda p: p.write_text("no array"), "cannot be read"),
        (lambda p: save(p), "the first frame's image is no array; it should be uint8 .64, 64, 3., as size says"),
        (lambda p: save(p, frame(1, "a", 32)), "the first frame's image is uint8 .32, 32, 3."),
        (lambda p: save(p, frame(1, " ")), "the first frame has no instruction"),
        (lambda p: save(p, 3), "the first frame's image is no array"),
    ],
)
def test_what_cannot_be_read_is_said_and_nothing_is_executed(folder, tabletop, capsys, write, message):
    path = folder / "dataset" / "traj1.npy"
    write(path)
    with pytest.raises(UserError, match=message) as error:
        rlinf_starts(folder, tabletop)
    assert str(path) in str(error.value) and "executed" not in capsys.readouterr().out


def test_a_folder_without_start_frames_is_refused(release, tabletop):
    with pytest.raises(UserError, match=r"dataset has no traj\*.npy, the start frames"):
        rlinf_starts(release, tabletop)


def test_old_protocols_of_pickle_are_read(tmp_path):
    row = np.empty(1, object)
    row[0] = {"bytes": b"\xff", "array": np.arange(3)}
    with (tmp_path / "old.npy").open("wb") as file:
        header = {"descr": "|O", "fortran_order": False, "shape": (1,)}
        np.lib.format.write_array_header_2_0(file, header)
        pickle.dump(row, file, protocol=2)
    (found,) = read_objects(tmp_path / "old.npy")
    assert found["bytes"] == b"\xff" and found["array"].tolist() == [0, 1, 2]
