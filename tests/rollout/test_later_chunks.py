"""What models return is checked in every chunk: a `squeeze` drops the dimension of a single episode, for instance."""

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor

from worldenv.errors import UserError
from worldenv.interfaces.slots import Slots

SEED = 5


@dataclass
class Rows(Slots):
    rows: Tensor


class Altered:
    """A model like another one, but for what is given."""

    def __init__(self, part, **members):
        self.__dict__.update(members, part=part)

    def __getattr__(self, name):
        return getattr(self.__dict__["part"], name)


def returning(part, method, change, after=0):
    """A model whose method returns change(what it should), from a call on."""
    calls = []

    def altered(*given):
        calls.append(1)
        out = getattr(part, method)(*given)
        return change(out) if len(calls) > after else out

    return Altered(part, **{method: altered})


@pytest.mark.parametrize(
    ("role", "method", "change"),
    [
        ("reflector", "judge", lambda out: (out[0].squeeze(0)[0], out[1])),
        ("reflector", "judge", lambda out: (out[0][:, :1], out[1])),
        ("reflector", "judge", lambda out: (out[0], out[1][:, :1])),
        ("reflector", "judge", lambda out: (out[0].double(), out[1])),
        ("reflector", "judge", lambda out: None),
        ("world", "imagine", lambda out: replace(out, frames=out.frames[:, :1])),
        ("world", "imagine", lambda out: replace(out, frames=out.frames.float())),
        ("world", "imagine", lambda out: replace(out, proprio=out.proprio[:, :1])),
        ("world", "imagine", lambda out: replace(out, finite=out.finite.all())),
        ("world", "imagine", lambda out: None),
        ("policy", "act", lambda out: replace(out, record=None)),
        ("policy", "act", lambda out: replace(out, record=out.record.each(torch.Tensor.double))),
        ("policy", "act", lambda out: replace(out, record=out.record.each(lambda tensor: tensor[:, :1]))),
        ("policy", "act", lambda out: replace(out, record=Rows(torch.zeros(len(out), 3)))),
    ],
)
def test_what_models_return_in_later_chunks_is_checked_too(tiny, role, method, change):
    models = {"policy": tiny.policy(), "world": tiny.world(), "reflector": tiny.reflector()}
    late = returning(models[role], method, change, after=2)
    with pytest.raises(UserError, match="it should be|should return"):
        tiny.engine(horizon=16, **{role: late}).run(tiny.starts(3), 1, SEED, stop=False, video=True)


def test_a_record_whose_width_is_the_number_of_episodes_is_refused(tiny):
    policy = returning(tiny.policy(), "act", lambda out: replace(out, record=Rows(torch.zeros(len(out), len(out)))))
    with pytest.raises(UserError, match="it should be alike in every call, whatever the number of episodes"):
        tiny.engine(horizon=8, policy=policy).run(tiny.starts(3), 1, SEED)


class Plain(Slots):
    def __init__(self, rows):
        self.rows = rows


@dataclass
class Nothing(Slots):
    pass


@dataclass(kw_only=True)
class Named(Slots):
    rows: torch.Tensor


@pytest.mark.parametrize("record", [Plain, lambda rows: Nothing(), lambda rows: Named(rows=rows)])
def test_a_record_that_is_no_dataclass_of_tensors_in_order_is_refused(tiny, record):
    policy = returning(tiny.policy(), "act", lambda out: replace(out, record=record(torch.zeros(len(out.action), 2))))
    with pytest.raises(UserError, match="the policy returned as record a (Plain|Nothing|Named)"):
        tiny.engine(horizon=8, policy=policy).run(tiny.starts(3), 1, SEED)
