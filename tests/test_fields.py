"""Fields of a configuration hold what they say, however the configuration is made."""

import json
import math
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pytest

from worldenv.config import EvaluateConfig, TrainConfig, presets
from worldenv.envs.world_model_env import EnvConfig
from worldenv.errors import UserError
from worldenv.fields import FieldError, Within, check_fields, differences, from_document


@dataclass(frozen=True)
class Kinds:
    count: int = 3
    share: float = 0.5
    wanted: int | None = None
    levels: tuple[float, ...] = (1.0, 0.5)
    sizes: tuple[int, int] = (1, 2)
    mode: Literal["a", "b"] = "a"
    on: bool = True
    name: str = "x"
    folder: Path | None = None

    def __post_init__(self) -> None:
        some = Within(1, 9)
        check_fields(self, count=some, share=Within(0, 1, open_low=True), wanted=some, levels=Within(0, 1), sizes=some)


@pytest.mark.parametrize(
    "wrong",
    [
        {"count": 0},
        {"count": 10},
        {"count": 10**5000},
        {"count": True},
        {"count": 3.0},
        {"count": "3"},
        {"count": None},
        {"share": math.nan},
        {"share": math.inf},
        {"share": 0.0},
        {"share": 10**400},
        {"share": False},
        {"wanted": -1},
        {"levels": (1.0, math.nan)},
        {"levels": 1.0},
        {"sizes": (1, 2, 3)},
        {"mode": "c"},
        {"on": 1},
        {"name": 3},
        {"folder": "a\0b"},
        {"folder": "x" * 300},
        {"folder": "~no-such-user-7/x"},
        {"folder": "\udc80"},
        {"folder": 3},
    ],
)
def test_wrong_value_is_refused_in_one_line_that_names_the_field(wrong):
    with pytest.raises(FieldError, match=f"^{next(iter(wrong))} is ") as error:
        Kinds(**wrong)
    assert "\n" not in str(error.value) and len(str(error.value)) < 200


def test_numbers_of_numpy_become_those_of_python_and_home_is_found(monkeypatch):
    monkeypatch.setenv("HOME", "/at/home")
    config = Kinds(count=np.int64(4), share=np.float64(0.25), levels=[1, 0.5], folder="~/x")
    assert config == Kinds(4, 0.25, None, (1.0, 0.5), folder=Path("/at/home/x"))
    assert type(config.count) is int and type(config.share) is float and type(config.levels[0]) is float
    assert json.loads(json.dumps(asdict(config), default=str))["count"] == 4


@pytest.mark.parametrize("kind", [TrainConfig, EvaluateConfig, EnvConfig])
def test_every_number_of_every_configuration_has_a_range(kind):
    for field in fields(kind()):  # that it can be made at all says that no number lacks one
        if field.type in (int, float, "int", "float"):
            for bad in (math.nan, -(10**12), 10**12, "1", True):
                with pytest.raises(FieldError):
                    replace(kind(), **{field.name: bad})


def saved(config) -> dict:
    return json.loads(json.dumps(asdict(config), default=str))


@pytest.mark.parametrize("name", presets())
def test_saved_configuration_is_read_again(name):
    config = presets()[name][1]
    assert from_document(TrainConfig, saved(config), "config.json") == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda d: d.pop("seed"), "config.json was made by another version .* lacks 'seed'"),
        (lambda d: d.update(zero_shot_judge=True), "does not know 'zero_shot_judge'"),
        (lambda d: d["rl"].pop("clip"), "config.json, rl was made by another version .* lacks 'clip'"),
        (lambda d: d["rl"].update(clip=math.nan), "config.json, rl: clip is nan; it should be"),
        (lambda d: d.update(rl=3), "config.json, rl is 3, not the fields of PostTrainConfig"),
        (lambda d: d["engine"].update(horizon="8"), "config.json, engine: horizon is '8'; it should be"),
        (lambda d: d.update(device=["cpu"]), "config.json: device is ..cpu..; it should be cpu or cuda"),
    ],
)
def test_saved_configuration_that_is_damaged_or_old_is_refused(change, message):
    document = saved(TrainConfig())
    change(document)
    with pytest.raises(UserError, match=message):
        from_document(TrainConfig, document, "config.json")


def test_what_an_older_version_did_not_save_is_as_it_was_then():
    document = saved(TrainConfig(seed=4))
    del document["rl"]["head_learning_rate"], document["scratch"]["stills"]
    assert from_document(TrainConfig, document, "config.json") == TrainConfig(seed=4)


def test_differences_name_the_options():
    other = replace(TrainConfig(), seed=3, rl=replace(TrainConfig().rl, learning_rate=1e-3))
    assert differences(TrainConfig(), other) == [("--seed", 0, 3), ("--rl.learning-rate", 4e-4, 1e-3)]
    assert differences(other, other) == []
