"""The benchmark of consistency: its figures are those of all starts, in one part or in several."""

import json

import consistency
import pytest

from worldenv.assemble import make_engine


@pytest.fixture(scope="module")
def found(tiny):
    parts = tiny.parts(size=64)
    return consistency.consistency(parts, make_engine(parts), 20, 0)


def test_starts_in_several_parts_give_the_same_figures(tiny, found, monkeypatch):
    monkeypatch.setattr(consistency, "AT_ONCE", 10)
    parts = tiny.parts(size=64)
    again = consistency.consistency(parts, make_engine(parts), 20, 0)
    assert again["agreement"] == found["agreement"] and found["agreement"]["n"] == 20
    assert again["moved_thing"] == found["moved_thing"]
    assert again["guard"]["wrong"] == pytest.approx(found["guard"]["wrong"], abs=1e-3)  # batches round differently
    assert found["guard"]["n"] == 20
    assert found["moved_thing"]["true"]["n"] == 3 * 18  # the white can cannot be told
    assert found["reflector"]["replayed"]["n"] == 20 * 40


def test_rows_are_printed_and_the_document_is_json(found, capsys):
    consistency.show("models", found)
    shown = capsys.readouterr().err
    for text in (
        "moved thing below 60 %",
        "reflector's missed stops",
        "white-can-in-tray",
        "outcomes agree in",
        "Guard: AUROC",
    ):
        assert text in shown
    assert json.loads(json.dumps(found)) == found
