import json
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from worldenv.errors import UserError
from worldenv.fields import check_fields
from worldenv.records import released
from worldenv.records.released import check_shapes, component, inspect, library, read_pickle, settings_in

TENSORS = {"a.weight": torch.ones(3, 5), "a.bias": torch.arange(3.0), "b.weight": torch.full((2, 3), 0.5)}
INDEX = "model.safetensors.index.json"


def write(path: Path, shards: bool = True) -> Path:
    path.mkdir()
    (path / "config.json").write_text(json.dumps({"model_type": "tiny", "auto_map": {"AutoModel": "evil.Model"}}))
    if not shards:
        save_file(TENSORS, path / "model.safetensors", {"format": "pt"})
        return path
    listed = {"a.weight": "one.safetensors", "a.bias": "one.safetensors", "b.weight": "two.safetensors"}
    for name in set(listed.values()):
        save_file({key: TENSORS[key] for key in listed if listed[key] == name}, path / name, {"format": "pt"})
    (path / INDEX).write_text(json.dumps({"weight_map": listed}))
    return path


class Two(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Linear(5, 3), nn.Linear(3, 2, bias=False)


@pytest.mark.parametrize("shards", [True, False])
def test_names_and_shapes_are_told_without_reading_a_tensor(tmp_path, monkeypatch, shards):
    monkeypatch.setattr(released.Release, "fill", None)
    found = inspect(write(tmp_path / "model", shards), ("tiny", "other"))
    assert found.shapes == {key: tuple(t.shape) for key, t in TENSORS.items()}
    assert found.config["model_type"] == "tiny"


def test_a_module_on_the_device_meta_is_filled(tmp_path):
    found = inspect(write(tmp_path / "model"), ("tiny",))
    with torch.device("meta"):
        module = Two()
    known = found.fill(module, {key: key for key in TENSORS})
    assert all(torch.equal(module.state_dict()[key], t) for key, t in TENSORS.items())
    assert not any(parameter.requires_grad for parameter in module.parameters())
    half = Two()
    assert found.fill(half, {key: key for key in TENSORS}, torch.bfloat16) == known
    assert {t.dtype for t in half.state_dict().values()} == {torch.bfloat16}


def test_weights_are_known_by_a_number_that_any_change_changes(tmp_path):
    names = {key: key for key in TENSORS}
    numbers = set()
    changes = [lambda t: None, lambda t: t[0].add_(1e-6), lambda t: t.neg_(), lambda t: t.flatten()[1:3].flip(0)]
    for i, change in enumerate(changes):
        folder = write(tmp_path / str(i))
        tensors = {"b.weight": TENSORS["b.weight"].clone()}
        change(tensors["b.weight"])
        save_file(tensors, folder / "two.safetensors")
        numbers.add(inspect(folder, ("tiny",)).fill(Two(), names))
    assert len(numbers) == 3  # the last one changes nothing


def test_changed_tensors_are_written_among_the_others(tmp_path):
    found = inspect(write(tmp_path / "model"), ("tiny",))
    (tmp_path / "new").mkdir()
    found.write_weights(tmp_path / "new", {"b.weight": lambda: torch.full((2, 3), 2.0, dtype=torch.float64)})
    (tmp_path / "new" / "config.json").write_text('{"model_type": "tiny"}')
    module = Two()
    inspect(tmp_path / "new", ("tiny",)).fill(module, {key: key for key in TENSORS})
    expected = TENSORS | {"b.weight": torch.full((2, 3), 2.0)}
    assert all(torch.equal(module.state_dict()[key], t) for key, t in expected.items())
    with pytest.raises(UserError, match=r"b.weight \[1\] where \[2, 3\] fits"):
        found.write_weights(tmp_path / "new", {"b.weight": lambda: torch.ones(1)})
    with pytest.raises(UserError, match="has no c, so it cannot be written back there"):
        found.write_weights(tmp_path / "new", {"c": lambda: torch.ones(1)})


def _without(name):
    return lambda path: (path / name).unlink()


def _cut(path):
    content = (path / "two.safetensors").read_bytes()
    (path / "two.safetensors").write_bytes(content[:-4])


def _index(**listed):
    def change(path):
        document = json.loads((path / INDEX).read_text())
        (path / INDEX).write_text(json.dumps({"weight_map": document["weight_map"] | listed}))

    return change


def _pickles(path):
    for file in path.glob("*.safetensors*"):
        file.unlink()
    torch.save(TENSORS, path / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (_without("config.json"), "has no config.json, so it is no whole released model; download the folder again"),
        (lambda p: (p / "config.json").write_text("{"), "config.json is not valid JSON"),
        (lambda p: (p / "config.json").write_text('{"model_type": "llava"}'), "architecture 'llava', not tiny; give"),
        (_without("two.safetensors"), "lacks two.safetensors: 1 of the 2 files that .* lists; download them into it"),
        (_without(INDEX), "has neither model.safetensors nor"),
        (lambda p: (p / INDEX).write_text("{}"), "has no weight_map of names of files beside it"),
        (_index(evil="../../one.safetensors"), "has no weight_map of names of files beside it"),
        (_index(c="one.safetensors"), "differ in c: they are of different checkpoints; download the folder again"),
        (_index(**{"a.bias": "two.safetensors"}), "one.safetensors holds a.bias that belongs to another file"),
        (_cut, "two.safetensors is no complete safetensors file"),
        (lambda p: (p / "two.safetensors").write_text("version https://git-lfs.github.com"), "a pointer of Git LFS"),
        (_pickles, "pytorch_model.bin: pickles, which may run a program and are not read; take the release as"),
    ],
)
def test_what_is_wrong_with_a_folder_is_said_with_file_and_remedy(tmp_path, change, message):
    folder = write(tmp_path / "model")
    change(folder)
    with pytest.raises(UserError, match=message) as error:
        inspect(folder, ("tiny",))
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("moojink/openvla-7b-oft", "is not there; give the folder of a released model, which you have downloaded"),
        ("", "is no path"),
        (None, "is no path"),
        (__file__, "is no folder"),
    ],
)
def test_what_is_no_folder_is_not_looked_for_on_a_hub(path, message):
    with pytest.raises(UserError, match=message):
        inspect(path, ("tiny",))


def test_keys_and_shapes_that_differ_are_named():
    wanted = {"a": (2, 3), "b": (4,), "c": (5,)}
    check_shapes(Path("f"), dict(wanted), wanted, "do this")
    with pytest.raises(UserError, match=r"f lacks c; has d, which this model does not know; has a \[3, 2\] where"):
        check_shapes(Path("f"), {"a": (3, 2), "b": (4,), "d": (1,)}, wanted, "do this")
    with pytest.raises(UserError, match="x0, x1, x2, x3 and 5 more, .* Do this"):
        check_shapes(Path("f"), {f"x{i}": (1,) for i in range(9)}, {}, "do this")


def test_a_tensor_that_is_not_finite_is_refused(tmp_path):
    folder = write(tmp_path / "model", shards=False)
    save_file(TENSORS | {"a.bias": torch.tensor([0.0, float("nan"), 1.0])}, folder / "model.safetensors")
    with pytest.raises(UserError, match=r"a.bias holds numbers that are not finite"):
        inspect(folder, ("tiny",)).fill(Two(), {key: key for key in TENSORS})


class Evil:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_a_pickle_is_not_executed(tmp_path):
    torch.save({"weight": Evil(tmp_path / "executed")}, tmp_path / "head.pt")
    with pytest.raises(UserError, match="head.pt holds more than tensors, which would be executed, so it is not"):
        read_pickle(tmp_path / "head.pt")
    assert not (tmp_path / "executed").exists()


@pytest.mark.parametrize(
    ("write_to", "message"),
    [
        (lambda path: path.write_bytes(b"cut"), "is no complete file of torch.save"),
        (lambda path: torch.save([torch.ones(1)], path), "is no state dict"),
        (lambda path: torch.save({"step": 3}, path), "is no state dict"),
        (lambda path: None, "there is no such file"),
    ],
)
def test_a_pickle_of_another_kind_is_refused(tmp_path, write_to, message):
    write_to(tmp_path / "head.pt")
    with pytest.raises(UserError, match=message):
        read_pickle(tmp_path / "head.pt")


def test_a_component_is_found_by_its_name_alone(tmp_path):
    for name in ("action_head--150000_checkpoint.pt", "my_action_head--1_checkpoint.pt", "action_head.pt"):
        (tmp_path / name).touch()
    assert component(tmp_path, "action_head") == tmp_path / "action_head--150000_checkpoint.pt"
    assert component(tmp_path, "scale_head") is None
    (tmp_path / "action_head--latest_checkpoint.pt").touch()
    with pytest.raises(UserError, match=re.escape("action_head--150000_checkpoint.pt, action_head--latest")):
        component(tmp_path, "action_head")


def test_a_missing_package_is_named_with_its_extra():
    with pytest.raises(UserError, match=r'need no_such_package: pip install "worldenv\[models\]"'):
        library("no_such_package")


@pytest.mark.parametrize("shards", [True, False])
def test_folders_that_diffusers_wrote_have_other_names(tmp_path, shards):
    folder, name = write(tmp_path / "model", shards), "diffusion_pytorch_model.safetensors"
    (folder / "config.json").write_text(json.dumps({"_class_name": "Tiny"}))
    (folder / (INDEX if shards else "model.safetensors")).rename(folder / (f"{name}.index.json" if shards else name))
    assert inspect(folder, ("Tiny",), "diffusers").shapes == {key: tuple(t.shape) for key, t in TENSORS.items()}
    with pytest.raises(UserError, match="is of the architecture 'Tiny', not Other"):
        inspect(folder, ("Other",), "diffusers")
    (folder / (f"{name}.index.json" if shards else name)).unlink()
    with pytest.raises(UserError, match=f"has neither {name} nor {name}.index.json"):
        inspect(folder, ("Tiny",), "diffusers")


def test_a_state_dict_is_found_within_what_a_training_script_kept(tmp_path):
    torch.save({"model": TENSORS, "epoch": 3}, tmp_path / "both.pt")
    torch.save(TENSORS, tmp_path / "alone.pt")
    for name in ("both.pt", "alone.pt"):
        assert read_pickle(tmp_path / name, "model").keys() == TENSORS.keys()
    with pytest.raises(UserError, match="is no state dict"):
        read_pickle(tmp_path / "both.pt")


@dataclass(frozen=True)
class Settings:
    kind: Literal["a", "b"] = "a"

    def __post_init__(self):
        check_fields(self)


def test_settings_lie_in_the_folder_as_far_as_they_differ(tmp_path):
    assert settings_in(tmp_path, Settings) == Settings()
    (tmp_path / "worldenv.json").write_text('{"kind": "b"}')
    assert settings_in(tmp_path, Settings) == Settings("b")
    for text, message in (('{"kind": "c"}', "kind is 'c'"), ('{"kinds": "a"}', "does not know 'kinds'")):
        (tmp_path / "worldenv.json").write_text(text)
        with pytest.raises(UserError, match=message):
            settings_in(tmp_path, Settings)
