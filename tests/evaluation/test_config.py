import pytest

from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig


@pytest.mark.parametrize(
    ("field", "value"),
    [("episodes", 9), ("episodes", 10**12), ("imagined", 0), ("imagined", 10.0), ("quality", 0), ("videos", -1)],
)
def test_evaluation_that_cannot_be_made_is_refused(field, value):
    with pytest.raises(UserError, match=f"^{field} is {value}; it should be a whole number from .* to 100,000"):
        EvalConfig(**{field: value})


@pytest.mark.parametrize("value", [-1, 0.5, True, None])
def test_looks_at_practice_that_cannot_be_made_are_refused(value):
    with pytest.raises(UserError, match=f"^every is {value}; it should be a whole number from 0"):
        EvalConfig(every=value)


def test_perceptual_weights_are_looked_for_before_any_work(tmp_path):
    with pytest.raises(UserError, match="has no weights to measure with"):
        EvalConfig(weights=tmp_path)
    (tmp_path / "vgg16.pt").write_bytes(b"<html>404</html>")
    with pytest.raises(UserError, match="vgg16.pt is not a TorchScript file, is damaged, or cannot be read"):
        EvalConfig(weights=tmp_path)
