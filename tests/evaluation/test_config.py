import pytest

from worldenv.errors import UserError
from worldenv.evaluation.config import EvalConfig


@pytest.mark.parametrize("bad", [{"episodes": 9}, {"imagined": 0}, {"quality": 0}, {"videos": -1}])
def test_evaluation_of_nothing_is_refused(bad):
    with pytest.raises(UserError, match="--eval.episodes must be at least 10"):
        EvalConfig(**bad)


def test_perceptual_weights_are_looked_for_before_any_work(tmp_path):
    with pytest.raises(UserError, match="has no weights to measure with"):
        EvalConfig(weights=tmp_path)
