import pytest
import torch

from worldenv.ops.action_map import Gripper, action_map
from worldenv.ops.map_features import map_features, map_features_reference
from worldenv.robot.camera import tabletop_camera


@pytest.mark.parametrize(("batch", "size"), [(32, 64), (256, 64), (8, 256)])
def bench_map_features(versus, write_gb_s, batch, size):
    draw = torch.Generator().manual_seed(0)
    poses = (torch.rand(batch, 5, 7, generator=draw) - 0.5) * torch.tensor([0.4, 0.4, 0.2, 2.0, 2.0, 2.0, 1.0])
    weight = (torch.rand(40, 20, 2, 2, generator=draw) - 0.5) * 0.2
    projection = torch.from_numpy(tabletop_camera(size).projection)
    camera, of_every_pose = (projection.expand(count, 1, 3, 4) for count in (batch, 5 * batch))
    arguments = (poses, camera, weight, Gripper(), size, size)
    convolution = torch.nn.Conv2d(20, 40, 2, stride=2, bias=False)
    convolution.weight.data = weight
    compiled = torch.compile(map_features_reference)

    def drawn_first():  # by `action_map`, then torch's convolution
        maps = action_map(poses.flatten(0, 1), of_every_pose, *arguments[3:]).view(batch, 20, size, size)
        return convolution(maps).permute(0, 2, 3, 1)[:, None]

    with torch.no_grad():
        features = map_features(*arguments)
        # A pixel at the cut of a stroke may differ by exp(-8).
        torch.testing.assert_close(features, map_features_reference(*arguments), rtol=0.0, atol=4e-4)
        torch.testing.assert_close(features, compiled(*arguments), rtol=0.0, atol=4e-4)
        torch.testing.assert_close(features, drawn_first(), rtol=0.0, atol=1e-5)

        result = versus(
            lambda: map_features(*arguments),
            {
                "eager": lambda: map_features_reference(*arguments),
                "compile": lambda: compiled(*arguments),
                "drawn_first": drawn_first,
            },
            batch=batch,
        )
    result["share_of_peak"] = features.nbytes / result["median_s"]["new"] / 1e9 / write_gb_s
    assert result["speedup_over"]["eager"] > 3.0 and result["speedup_over"]["drawn_first"] > 3.0
