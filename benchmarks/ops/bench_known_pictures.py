import torch

from worldenv.ops.known_pictures import known_pictures, known_pictures_reference
from worldenv.robot.camera import tabletop_camera


def bench_known_pictures(versus):
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (3, 24, 64, 64, 3), generator=draw, dtype=torch.uint8)
    mask = torch.zeros(24, 64, 64, dtype=torch.uint8)
    mask[:, 27:37, 27:37] = 255  # as large as a block
    hidden = torch.zeros(24, 4, 64, 64, dtype=torch.uint8)
    hidden[::8, :, 32:] = 255  # of few episodes, the lower half
    tips = torch.tensor([0, 0, 0.1, 0, 0, 0, 0.5]) + 0.05 * torch.randn(24, 6, 7, generator=draw)
    places = torch.tensor([0, 0, 0.03]) + 0.03 * torch.randn(24, 6, 3, generator=draw)
    camera = torch.from_numpy(tabletop_camera(64).projection).repeat(24, 1, 1, 1)
    plate = 2 * torch.rand(32, 32, 12, generator=draw) - 1
    arguments = (*frames, mask, hidden, tips, places, camera, plate)
    compiled = torch.compile(known_pictures_reference)
    for face in (known_pictures_reference, compiled):
        assert (known_pictures(*arguments).int() - face(*arguments).int()).abs().max() <= 1

    result = versus(
        lambda: known_pictures(*arguments),
        {"eager": lambda: known_pictures_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=len(mask),
    )
    assert result["speedup_over"]["eager"] > 1.6
