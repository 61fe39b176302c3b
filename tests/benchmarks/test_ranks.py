"""The benchmark of ranks runs in small, and its cost model adds up."""

import json
import random
from collections import Counter
from dataclasses import replace
from statistics import mean

import pytest
import ranks

from worldenv.rl.iteration_cost import bottleneck, efficiency, iteration_s, largest_share

TINY = "--ranks 1 2 --rounds 1 --iterations 2 --starts 2 --siblings 2 --horizon 8 --no-real"


def last_line(capsys):
    out, told = capsys.readouterr()
    return json.loads(out.splitlines()[-1]), told


def test_ranks_that_sleep_are_timed_beside_the_prediction(capsys):
    ranks.main(TINY.split())
    found, told = last_line(capsys)
    one, two = found["ways"]
    asleep = 2 * 2 * 2 * (ranks.IMAGINE_S + 2 * ranks.LEARN_S)
    assert one["predicted_s"] == pytest.approx(asleep, rel=0.2) and one["iteration_s"][0] > asleep
    assert two["ranks"] == 2 and two["efficiency"] == pytest.approx(two["speedup"] / 2)
    assert "Seconds of an iteration" in told


def test_prediction_of_many_gpus_is_marked_as_one(capsys):
    ranks.main(["--predict"])
    found, told = last_line(capsys)
    assert not found["measured"] and "predicted, not measured" in told
    assert [way["ranks"] for way in found["ways"]] == [1, 8, 8, 64, 64, 1024, 1024]
    assert found["ways"][-1]["efficiency"] > 10 * found["ways"][-2]["efficiency"]


def test_wrong_numbers_are_refused():
    with pytest.raises(SystemExit, match="2"):
        ranks.main(["--ranks", "8", "--starts", "4"])


def test_one_rank_waits_for_nobody():
    parts = iteration_s(ranks.LARGE, ranks.CLUSTER, 1)
    chunks = 8 * 8 * 28
    assert parts.pop("imagine") == pytest.approx(chunks * ranks.LARGE.imagine_s)
    assert parts.pop("learn") == pytest.approx(chunks * ranks.LARGE.learn_s)
    assert {name for name, seconds in parts.items() if seconds} == {"state"}


def test_bottleneck_is_what_the_ranks_wait_for_most():
    uneven = iteration_s(replace(ranks.LARGE, starts=9), ranks.CLUSTER, 8)
    assert bottleneck(uneven) == "starts" and uneven["starts"] == pytest.approx(7 / 9 * uneven["imagine"])
    slow = iteration_s(ranks.LARGE, replace(ranks.CLUSTER, bytes_s=1e9), 8)
    assert bottleneck(slow) == "gradients" and efficiency(slow) < 0.3


@pytest.mark.parametrize(("count", "over"), [(256, 4), (64, 64), (5, 3)])
def test_largest_share_is_that_of_chunks_at_random_ranks(count, over):
    rng = random.Random(0)
    drawn = [max(Counter(rng.randrange(over) for _ in range(count)).values()) for _ in range(1000)]
    assert largest_share(count, over) == pytest.approx(mean(drawn), rel=0.1)  # few chunks depend on each other
