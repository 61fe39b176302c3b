import pytest
import torch
from cache_quality import by_chunk, measure

from worldenv.worlds.causal.network import CausalConfig, CausalNetwork


def test_decibels_are_of_a_chunks_mean_squared_error():
    expected = torch.full((2, 5, 4, 4, 3), 100, dtype=torch.uint8)
    found = expected.clone()
    found[:, 0] = 0  # the start frame is given, not imagined
    found[0, 1:3] += 2  # of two episodes one: mean squared error 2
    found[:, 3:] -= 1
    assert by_chunk(found, expected, 2) == pytest.approx([45.1205, 48.1308], abs=1e-3)


def test_eight_bits_stay_nearer_to_the_floats_than_another_noise_does():
    torch.manual_seed(0)
    found = measure(CausalNetwork(CausalConfig(width=32, layers=1, heads=2, key_heads=1)).eval(), tests=2)
    apart = found["against_floats"]
    assert all(len(line) == 8 for line in [*apart.values(), *found["against_truth"].values()])
    assert all(eight > other + 10 for eight, other in zip(*apart.values(), strict=True))
