"""Checkpoints: exact, atomic, and plain about what does not fit."""

import os
import random
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import nn

from worldenv.errors import UserError, nearest
from worldenv.records import checkpoint
from worldenv.records.checkpoint import (
    CheckpointError,
    load_state,
    load_weights,
    save_state,
    save_weights,
)


def make_network(width: int = 5) -> nn.Module:
    return nn.Sequential(nn.Linear(3, width), nn.BatchNorm1d(width), nn.Linear(width, 1))


def train(network: nn.Module, optimizer: torch.optim.Optimizer, steps: int) -> list[float]:
    losses = []
    for _ in range(steps):
        loss = network(torch.randn(8, 3)).square().mean() + 1e-3 * np.random.rand()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


def test_weights_and_metadata_come_back(tmp_path):
    network, other = make_network(), make_network()
    save_weights(tmp_path / "a.safetensors", network, {"seed": 3, "success": [0.5, None]})
    state_dict, metadata = load_weights(tmp_path / "a.safetensors", other)
    assert metadata == {"seed": 3, "success": [0.5, None]}
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, state_dict[name]) and torch.equal(tensor, other.state_dict()[name])


def test_tied_and_strided_weights_are_stored(tmp_path):
    tensor = torch.arange(6.0).view(2, 3)
    tied = {"a": tensor, "b": tensor, "row": tensor[1], "turned": tensor.T}
    save_weights(tmp_path / "a.safetensors", tied, {})
    found, _ = load_weights(tmp_path / "a.safetensors")
    assert all(torch.equal(found[name], tied[name]) for name in tied)


def test_weights_that_do_not_fit_are_named_and_the_module_is_unchanged(tmp_path):
    path = tmp_path / "a.safetensors"
    state_dict = make_network(4).state_dict()
    state_dict["extra"] = state_dict.pop("2.bias")
    save_weights(path, state_dict, {})
    network = make_network(5)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    with pytest.raises(CheckpointError) as caught:
        load_weights(path, network)
    message = str(caught.value)
    assert str(path) in message and "Sequential" in message
    assert "missing in the file: 2.bias" in message and "not in the module: extra" in message
    assert "0.weight is [4, 3] in the file and [5, 3] in the module" in message and "configuration" in message
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("load", [load_weights, load_state])
def test_truncated_checkpoint_is_named(tmp_path, load, fraction):
    path = tmp_path / "a.safetensors"
    save_weights(path, make_network(), {}) if load is load_weights else save_state(path, model=torch.zeros(100))
    content = path.read_bytes()
    path.write_bytes(content[: int(fraction * len(content))])
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a complete safetensors file"):
        load(path)


def test_missing_foreign_and_swapped_files_are_named(tmp_path):
    with pytest.raises(CheckpointError, match=r"none\.safetensors: there is no such file"):
        load_weights(tmp_path / "none.safetensors")
    save_file({"a": torch.zeros(2)}, tmp_path / "foreign.safetensors")
    with pytest.raises(CheckpointError, match="not written by save_weights.*holds nothing"):
        load_weights(tmp_path / "foreign.safetensors")
    save_state(tmp_path / "state.safetensors", step=1)
    with pytest.raises(CheckpointError, match="not written by save_weights.*worldenv_state"):
        load_weights(tmp_path / "state.safetensors")
    with pytest.raises(CheckpointError, match="folder .* does not exist"):
        save_state(tmp_path / "nowhere" / "a.safetensors", step=1)


def test_resumed_training_continues_identically(tmp_path):
    torch.manual_seed(0)
    np.random.seed(0)
    network = make_network()
    optimizer = torch.optim.AdamW(network.parameters(), lr=0.05, amsgrad=True)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    train(network, optimizer, 4)
    schedule.step()
    save_state(
        tmp_path / "a.safetensors",
        network=network.state_dict(),
        optimizer=optimizer.state_dict(),
        schedule=schedule.state_dict(),
        torch_rng=torch.get_rng_state(),
        numpy_rng=np.random.get_state(),
    )
    expected = train(network, optimizer, 5)

    state = load_state(tmp_path / "a.safetensors")
    resumed = make_network()
    resumed.load_state_dict(state["network"])
    resumed_optimizer = torch.optim.AdamW(resumed.parameters(), lr=1.0)
    resumed_optimizer.load_state_dict(state["optimizer"])
    torch.optim.lr_scheduler.StepLR(resumed_optimizer, 3).load_state_dict(state["schedule"])
    resumed_optimizer.param_groups[0]["lr"] = state["optimizer"]["param_groups"][0]["lr"]
    torch.set_rng_state(state["torch_rng"])
    np.random.set_state(state["numpy_rng"])
    assert train(resumed, resumed_optimizer, 5) == expected
    for name, tensor in network.state_dict().items():
        assert torch.equal(tensor, resumed.state_dict()[name])


def test_every_kind_of_value_comes_back_with_its_type(tmp_path):
    random.seed(1)
    generator = np.random.Generator(np.random.Philox(7))
    value = {
        1: [True, None, 3, 2**80, -0.1, float("inf"), "text"],
        "1": (1, (2.5,), [], {}),
        "python": random.getstate(),
        "generator": generator.bit_generator.state,
        "array": np.arange(6, dtype=np.uint16).reshape(2, 3).T,
        "empty": np.zeros((0, 2)),
        "bits": torch.tensor([True, False]),
        "half": torch.ones(2, 3, dtype=torch.bfloat16),
        "scalar": torch.tensor(4),
        "none": torch.zeros(0, 3),
    }
    save_state(tmp_path / "a.safetensors", value=value)
    found = load_state(tmp_path / "a.safetensors")["value"]
    assert list(found) == list(value)
    assert found[1] == value[1] and [type(x) for x in found[1]] == [type(x) for x in value[1]]
    assert found["1"] == value["1"] and found["python"] == value["python"]
    for name in ("array", "empty"):
        np.testing.assert_array_equal(found[name], value[name], strict=True)
    for name in ("bits", "half", "scalar", "none"):
        assert torch.equal(found[name], value[name]) and found[name].dtype == value[name].dtype
    expected = generator.random(3)
    again = np.random.Generator(np.random.Philox(0))
    again.bit_generator.state = found["generator"]
    np.testing.assert_array_equal(again.random(3), expected)


def test_what_cannot_be_stored_is_named_by_entry(tmp_path):
    with pytest.raises(TypeError, match=r"model\.'layers'\.1 is a set"):
        save_state(tmp_path / "a.safetensors", model={"layers": [1, {2}]})
    with pytest.raises(TypeError, match=r"model has the key \(1, 2\)"):
        save_state(tmp_path / "a.safetensors", model={(1, 2): 3})
    assert not list(tmp_path.iterdir())


def test_failed_save_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "a.safetensors"
    save_state(path, step=1)

    def fail(*arguments):
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(checkpoint, "save_file", fail)
    with pytest.raises(UserError, match=r"a\.safetensors cannot be written \(.*No space left.*free some space"):
        save_state(path, step=2)
    assert load_state(path) == {"step": 1} and [p.name for p in tmp_path.iterdir()] == ["a.safetensors"]


def test_flipped_byte_in_a_state_is_found(tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(path, model=torch.arange(100.0), step=3)
    content = bytearray(path.read_bytes())
    for place in (len(content) - 1, len(content) - 201, content.index(b"step") + 8):
        damaged = content.copy()
        damaged[place] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=r"a\.safetensors"):
            load_state(path)
    path.write_bytes(content)
    assert load_state(path)["step"] == 3


def write_claim(path, structure):
    """A state file with a right checksum, whatever it claims."""
    checkpoint._write_tensors(path, {"a": torch.zeros(3)}, checkpoint.STATE_KEY, structure)


@pytest.mark.parametrize(
    "node",
    [
        {},
        {"tensor": "b"},
        {"tensor": ["a"]},
        {"array": "a", "dtype": "O", "shape": [1]},
        {"array": "a", "dtype": "<f4", "shape": [7]},
        {"array": "a", "dtype": "<f4"},
        {"set": [1]},
        {"dict": 3},
        {"dict": [[1]]},
        {"dict": [[[], 1]]},
        {"list": 5},
    ],
)
def test_state_that_claims_what_it_does_not_hold_is_refused(tmp_path, node):
    write_claim(tmp_path / "a.safetensors", {"model": node})
    with pytest.raises(CheckpointError, match=r"a\.safetensors: not a state that save_state wrote"):
        load_state(tmp_path / "a.safetensors")


def test_small_state_that_unpacks_without_end_is_refused(tmp_path):
    many = [{"array": "a", "dtype": "|u1", "shape": [1000]}] * 1000
    tensors = {"a": torch.zeros(1000, dtype=torch.uint8)}
    checkpoint._write_tensors(tmp_path / "s", tensors, checkpoint.STATE_KEY, {"x": {"list": many}})
    with pytest.raises(CheckpointError, match="not a state that save_state wrote"):
        load_state(tmp_path / "s")


def test_state_that_is_replaced_while_it_is_read_is_the_old_one_or_the_new_one(tmp_path, monkeypatch):
    path, opened = tmp_path / "a.safetensors", checkpoint.safe_open
    save_state(path, model=torch.zeros(9), step=0)

    @contextmanager
    def replaced(*given, **named):
        with opened(*given, **named) as file:  # what is read of it from now on may be of the second
            monkeypatch.setattr(checkpoint, "safe_open", opened)
            save_state(path, model=torch.ones(9), step=1)
            yield file

    monkeypatch.setattr(checkpoint, "safe_open", replaced)
    state = load_state(path)
    assert state["step"] == 1 and state["model"].eq(1).all()


def test_state_without_a_checksum_is_refused(tmp_path):
    save_file({}, tmp_path / "old.safetensors", {checkpoint.STATE_KEY: '{"step": 1}'})
    with pytest.raises(CheckpointError, match="has no checksum, so an older version wrote it"):
        load_state(tmp_path / "old.safetensors")


def test_nearest_name_is_offered_else_the_list():
    assert nearest("tabeltop", ["tabletop", "libero"]) == ' — did you mean "tabletop"?'
    assert nearest("Libero", ["tabletop", "libero"]) == ' — did you mean "libero"?'
    assert nearest("xyz", ["b", "a"]) == " — valid names: a, b"
    assert nearest("xyz", []) == " — there are no valid names"
    assert issubclass(CheckpointError, UserError) and issubclass(UserError, ValueError)


@pytest.mark.parametrize(("umask", "mode"), [(0o022, 0o644), (0o077, 0o600)])
def test_weights_may_be_read_by_whom_the_umask_lets(tmp_path, umask, mode):
    path, before = tmp_path / "weights.safetensors", os.umask(umask)
    try:
        save_weights(path, {"a": torch.zeros(2)}, {})
    finally:
        os.umask(before)
    assert path.stat().st_mode & 0o777 == mode


# Damage.


def test_every_flipped_byte_is_refused_or_changes_nothing(tmp_path):
    path, network, about = tmp_path / "a.safetensors", nn.Linear(3, 2), {"seed": 3, "levels": [1.0, 0.5], "text": "ä"}
    save_weights(path, network, about)
    content, refused = path.read_bytes(), 0
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
        try:
            weights, metadata = load_weights(path, network)
        except CheckpointError as error:
            refused += 1
            assert str(path) in str(error) and "\n" not in str(error)
        else:  # the flip was in the name of the checksum
            assert metadata.items() >= about.items() and torch.equal(weights["bias"], network.bias)
    assert refused >= len(content) - 6


def test_state_with_a_flipped_byte_is_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    save_state(path, step=3, random=torch.arange(20))
    content = path.read_bytes()
    path.write_bytes(content[:-3] + bytes([content[-3] ^ 4]) + content[-2:])
    with pytest.raises(CheckpointError, match="a.safetensors: damaged: its content does not have the checksum"):
        load_state(path)


def test_file_of_an_older_version_has_no_checksum_and_is_read(tmp_path):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"worldenv": '{"kind": "policy"}'})
    weights, metadata = load_weights(tmp_path / "a.safetensors")
    assert torch.equal(weights["a"], torch.ones(2)) and metadata == {"kind": "policy"}


@pytest.mark.parametrize(
    ("text", "why"),
    [("{", "its metadata is not JSON"), ("[" * 100_000, "its metadata is not JSON"), ("[1]", "no JSON object")],
)
def test_metadata_that_is_no_document_is_refused(tmp_path, text, why):
    save_file({"a": torch.ones(2)}, tmp_path / "a.safetensors", {"worldenv": text})
    with pytest.raises(CheckpointError, match=f"a.safetensors: .*{why}"):
        load_weights(tmp_path / "a.safetensors")


def test_what_is_no_file_is_refused_without_waiting_for_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "zero"):
        with pytest.raises(CheckpointError, match="not a file, but a folder, a pipe or a device"):
            load_weights(path)
    with pytest.raises(CheckpointError, match="cannot be read: File name too long"):
        load_weights(tmp_path / ("a" * 300))


def test_file_that_may_not_be_read_is_named(tmp_path, monkeypatch):
    save_weights(tmp_path / "a.safetensors", nn.Linear(1, 1), {})

    def refuse(*given, **more):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(CheckpointError, match="a.safetensors cannot be read: Permission denied"):
        load_weights(tmp_path / "a.safetensors")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused_and_a_mask_may_be_infinite(tmp_path, value):
    network, path = nn.Linear(2, 2), tmp_path / "a.safetensors"
    network.register_buffer("mask", torch.full((2,), -torch.inf))
    save_weights(path, network, {})
    load_weights(path, network)
    weights = network.state_dict()
    weights["weight"] = weights["weight"].clone().fill_(value)
    save_weights(path, weights, {})
    before = network.weight.clone()
    with pytest.raises(CheckpointError, match="holds numbers that are not finite, in weight"):
        load_weights(path, network)
    save_weights(path, network.double().state_dict() | {"bias": torch.full((2,), 1e300, dtype=torch.float64)}, {})
    with pytest.raises(CheckpointError, match="not finite, in bias"):  # as float32
        load_weights(path, network.float())
    assert torch.equal(network.weight, before)


@pytest.mark.parametrize("dtype", [torch.int8, torch.bool, torch.complex64])
def test_weights_of_another_kind_of_number_are_refused(tmp_path, dtype):
    network, path = nn.Linear(2, 2), tmp_path / "a.safetensors"
    save_weights(path, network.state_dict() | {"bias": torch.ones(2).to(dtype)}, {})
    with pytest.raises(CheckpointError, match=f"kinds of numbers: bias is {dtype} in the file and torch.float32"):
        load_weights(path, network)
