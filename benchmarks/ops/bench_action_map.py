import pytest
import torch

from worldenv.ops.action_map import Gripper, action_map, action_map_reference
from worldenv.robot.camera import tabletop_camera


@pytest.mark.parametrize(("batch", "size"), [(24, 64), (768, 64), (16, 256)])
def bench_action_map(versus, write_gb_s, batch, size):
    draw = torch.Generator().manual_seed(0)
    poses = (torch.rand(batch, 7, generator=draw) - 0.5) * torch.tensor([0.4, 0.4, 0.2, 2.0, 2.0, 2.0, 1.0])
    camera = torch.from_numpy(tabletop_camera(size).projection).expand(batch, 1, 3, 4)
    arguments = (poses, camera, Gripper(), size, size)
    compiled = torch.compile(action_map_reference)
    maps = action_map(*arguments)
    # A pixel at the cut of a blob may differ by exp(-8).
    torch.testing.assert_close(maps, action_map_reference(*arguments), rtol=0.0, atol=4e-4)
    torch.testing.assert_close(maps, compiled(*arguments), rtol=0.0, atol=4e-4)

    result = versus(
        lambda: action_map(*arguments),
        {"eager": lambda: action_map_reference(*arguments), "compile": lambda: compiled(*arguments)},
    )
    result["share_of_peak"] = maps.nbytes / result["median_s"]["new"] / 1e9 / write_gb_s
    assert result["speedup_over"]["eager"] > 1.6
