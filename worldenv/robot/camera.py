"""The pinhole camera of the embedded suite, the action map and the data."""

from dataclasses import dataclass
from numbers import Integral, Real
from typing import Any

import numpy as np

from worldenv.errors import UserError
from worldenv.fields import shown


def as_numbers(name: str, values: Any) -> np.ndarray:  # float64
    """The values as an array. Raises UserError if they are no numbers."""
    try:
        array = np.asarray(values)
    except ValueError:  # rows of several lengths
        array = np.asarray(None)
    if array.dtype.kind not in "iuf":
        raise UserError(f"{name} is {shown(values)}; it should be numbers")
    return array.astype(np.float64)


@dataclass(frozen=True, eq=False)
class Camera:
    """A pinhole camera. Pixel centres lie at integer + 0.5, so the image spans [0, width] x [0, height].

    pixel ~ intrinsics @ (extrinsics @ [point, 1])[:3]

    Raises UserError if a matrix has another shape or is not finite, or if the image is empty.
    """

    intrinsics: np.ndarray  # [3, 3] float64, pixels
    extrinsics: np.ndarray  # [4, 4] float64, world -> camera (x right, y down, z forward), metres
    height: int
    width: int

    def __post_init__(self) -> None:
        for name, shape in (("intrinsics", (3, 3)), ("extrinsics", (4, 4))):
            matrix = as_numbers(name, getattr(self, name))
            if matrix.shape != shape or not np.isfinite(matrix).all():
                raise UserError(f"{name} should be a finite {list(shape)} matrix, but is {shown(matrix.tolist())}")
            object.__setattr__(self, name, matrix)
        for name, pixels in (("height", self.height), ("width", self.width)):
            if isinstance(pixels, bool) or not isinstance(pixels, Integral) or pixels < 1:
                raise UserError(f"{name} is {shown(pixels)}; it should be a number of pixels, at least 1")

    @classmethod
    def look_at(
        cls,
        eye: tuple[float, float, float],  # m
        target: tuple[float, float, float],  # m
        fov_deg: float,  # vertical
        size: int,  # pixels, height = width
    ) -> "Camera":
        """A square camera at `eye` that sees `target` in its centre, with the world's z axis up in the image.

        Raises UserError if the view is straight up or down, where "up" has no meaning, or fov_deg is not in (0, 180).
        """
        if not isinstance(fov_deg, Real) or not 0.0 < fov_deg < 180.0:
            raise UserError(f"fov_deg is {shown(fov_deg)}; it should lie between 0 and 180 degrees")
        if not isinstance(size, Integral) or size < 1:
            raise UserError(f"size is {shown(size)}; it should be a number of pixels, at least 1")
        eye, target = as_numbers("eye", eye), as_numbers("target", target)
        if eye.shape != (3,) or target.shape != (3,):
            raise UserError(
                f"eye is {list(eye.shape)} and target {list(target.shape)}; both should be x, y, z in metres"
            )
        forward = target - eye
        right = np.cross(forward, (0.0, 0.0, 1.0))
        if not np.linalg.norm(right) > 1e-9 * np.linalg.norm(forward):
            raise UserError(
                f"eye {eye.tolist()} and target {target.tolist()} should not be one above the other or equal"
            )
        forward, right = forward / np.linalg.norm(forward), right / np.linalg.norm(right)
        rotation = np.stack([right, np.cross(forward, right), forward])  # rows: camera x, y, z in the world
        extrinsics = np.eye(4)
        extrinsics[:3, :3], extrinsics[:3, 3] = rotation, -rotation @ eye
        focal = 0.5 * size / np.tan(np.deg2rad(fov_deg) / 2)
        intrinsics = np.array([[focal, 0.0, size / 2], [0.0, focal, size / 2], [0.0, 0.0, 1.0]])
        return cls(intrinsics, extrinsics, size, size)

    @property
    def projection(self) -> np.ndarray:  # [3, 4] float32
        """World point to homogeneous pixel in one matrix: intrinsics @ extrinsics[:3]."""
        return (self.intrinsics @ self.extrinsics[:3]).astype(np.float32)

    def project(
        self,
        points: np.ndarray,  # [..., 3] m, world
    ) -> tuple[np.ndarray, np.ndarray]:  # pixels [..., 2] (x, y) float64, depth [...] m float64
        """Where points appear in the image, and how far in front of the camera plane they are.

        Pixels of a point that is not in front of the camera (depth <= 0) are NaN. Raises UserError on a wrong shape.
        """
        points = as_numbers("points", points)
        if points.ndim < 1 or points.shape[-1] != 3:
            raise UserError(f"points has shape {list(points.shape)}; its last dimension should be 3 (x, y, z)")
        seen = (points @ self.extrinsics[:3, :3].T + self.extrinsics[:3, 3]) @ self.intrinsics.T
        depth = seen[..., 2]
        in_front = np.where(depth > 0.0, depth, np.nan)
        return seen[..., :2] / in_front[..., None], depth


def tabletop_camera(size: int) -> Camera:  # pixels, height = width
    """The camera of the embedded suite: in front of the table, looking down at its middle."""
    return Camera.look_at(eye=(0.0, -0.34, 0.52), target=(0.0, 0.05, 0.03), fov_deg=38.0, size=size)
