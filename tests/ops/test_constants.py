import warnings

import torch

from worldenv.ops.constants import constant


def double(x):
    return x * constant((1.0, 2.0), x)


def test_is_made_once_for_each_dtype():
    x = torch.zeros(2)
    assert constant((1.0, 2.0), x) is constant((1.0, 2.0), x)
    assert constant((1.0, 2.0), x.double()).dtype == torch.float64


def test_torch_compiles_it_without_a_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        y = torch.compile(double, fullgraph=True, backend="eager")(torch.ones(2))
    assert y.tolist() == [1.0, 2.0]
