import shutil
from pathlib import Path

import pytest

from worldenv.records.model_card import ABOUT, LIMITS, write_card
from worldenv.records.model_files import save_model, shipped


@pytest.mark.parametrize(
    "weights", sorted(shipped().parent.glob("*/*.safetensors")), ids=lambda path: f"{path.parent.name}-{path.stem}"
)
def test_every_shipped_model_has_a_card(tmp_path, weights):
    assert weights.with_suffix(".md").exists()
    if weights.stem != "detector":  # its card is written by hand
        text = write_card(Path(shutil.copy(weights, tmp_path))).read_text()
        assert ABOUT[weights.stem] in text and LIMITS in text and "- parameters: " in text


def test_card_says_how_the_model_was_made(tiny, tmp_path):
    made = {"seed": 3, "fit_s": 75.0, "metrics": {"loss": 0.123456}}
    save_model(tmp_path / "policy.safetensors", tiny.policy(), "policy", made)
    text = write_card(tmp_path / "policy.safetensors").read_text()
    assert text.startswith("# policy\n") and "- seed: 3\n" in text and "loss 0.1235" in text and "- fit: 1" in text
