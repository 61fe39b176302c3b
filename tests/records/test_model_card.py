import shutil

import pytest

from worldenv.records.model_card import ABOUT, LIMITS, write_card
from worldenv.records.model_files import save_model, shipped


@pytest.mark.parametrize("name", sorted(path.stem for path in shipped().glob("*.safetensors")))
def test_every_shipped_model_has_the_card_that_its_file_gives(tmp_path, name):
    weights = shutil.copy(shipped() / f"{name}.safetensors", tmp_path)
    text = write_card(tmp_path / f"{name}.safetensors").read_text()
    assert weights and ABOUT[name] in text and LIMITS in text and "- parameters: " in text
    assert (shipped() / f"{name}.md").exists()


def test_card_says_how_the_model_was_made(tiny, tmp_path):
    made = {"seed": 3, "fit_s": 75.0, "metrics": {"loss": 0.123456}}
    save_model(tmp_path / "policy.safetensors", tiny.policy(), "policy", made)
    text = write_card(tmp_path / "policy.safetensors").read_text()
    assert text.startswith("# policy\n") and "- seed: 3\n" in text and "loss 0.1235" in text and "- fit: 1" in text
