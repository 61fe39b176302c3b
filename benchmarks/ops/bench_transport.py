import torch

from worldenv.camera import tabletop_camera
from worldenv.ops.transport import transport, transport_reference


def bench_transport(versus):
    draw = torch.Generator().manual_seed(0)
    frames = torch.randint(256, (24, 3, 1, 64, 64, 3), generator=draw, dtype=torch.uint8)
    poses = torch.tensor([0, 0, 0.1, 0, 0, 0, 0.5]) + 0.05 * torch.randn(24, 5, 7, generator=draw)
    camera = torch.from_numpy(tabletop_camera(64).projection).expand(24, 1, 3, 4)
    arguments = (frames, poses, camera)
    compiled = torch.compile(transport_reference)
    for face in (transport_reference, compiled):
        assert (transport(*arguments).int() - face(*arguments).int()).abs().max() <= 1

    result = versus(
        lambda: transport(*arguments),
        {"eager": lambda: transport_reference(*arguments), "compile": lambda: compiled(*arguments)},
        batch=len(arguments[0]),
    )
    assert result["speedup_over"]["eager"] > 1.6
