"""Pictures in another place and light: what changes, by how much, and that ranks share the batch."""

import torch

from worldenv.training.augment import LIGHT, PROPRIO, augmented
from worldenv.training.share import WHOLE, Share


def seen(n=64, size=24):
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(60, 190, (n, size, size, 3), generator=draw, dtype=torch.uint8)
    return frames, torch.rand(n, 7, generator=draw)


def changed(shift_px, share=None, rows=slice(None)):
    frames, proprio = seen()
    share = share or Share(len(frames))
    return augmented(frames[rows], proprio[rows], shift_px, torch.Generator().manual_seed(1), share)


def test_without_a_shift_nothing_changes():
    assert all(torch.equal(a, b) for a, b in zip(changed(0), seen(), strict=True))


def test_pictures_are_shifted_each_its_own_way_and_lit_otherwise():
    (frames, proprio), (before, was) = changed(3), seen()
    assert frames.dtype == torch.uint8 and not torch.equal(frames[0], frames[1])
    ways = set()
    for now, old in zip(frames.double(), before.double(), strict=True):
        inner = now[3:-3, 3:-3].flatten()
        fits = {}
        for down in range(-3, 4):
            for across in range(-3, 4):
                there = old[3 + down : 21 + down, 3 + across : 21 + across].flatten()
                fits[down, across] = torch.corrcoef(torch.stack([inner, there]))[0, 1].item()
        way = max(fits, key=fits.get)
        assert fits[way] > 0.999
        ways.add(way)
    assert len(ways) > 20
    gain = frames.double().flatten(1).std(1) / before.double().flatten(1).std(1)
    assert (gain - 1).abs().max() < LIGHT + 0.08 and gain.std() > 0.03
    noise = (proprio - was).std(0)
    torch.testing.assert_close(noise, torch.tensor(PROPRIO), rtol=0.4, atol=0)


def test_two_ranks_see_what_one_process_sees():
    class Half:
        def __init__(self, rows):
            self.rows = rows

        def part(self, size):
            return self.rows

    whole = changed(4)
    halves = [changed(4, Share(64, Half(rows)), rows) for rows in (slice(0, 30), slice(30, 64))]
    for one, two in zip(whole, zip(*halves, strict=True), strict=True):
        assert torch.equal(one, torch.cat(two))
    assert WHOLE.size == 1
