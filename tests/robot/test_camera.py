import numpy as np
import pytest

from worldenv.robot.camera import Camera, tabletop_camera

EYE, TARGET = (0.0, -0.42, 0.44), (0.0, 0.03, 0.0)


def camera_at(size):
    return Camera.look_at(EYE, TARGET, fov_deg=40.0, size=size)


def test_target_is_seen_in_the_middle_at_its_distance():
    pixel, depth = camera_at(64).project(np.array(TARGET))
    assert pixel == pytest.approx([32.0, 32.0], abs=1e-9)
    assert depth == pytest.approx(np.hypot(0.45, 0.44))


def test_world_x_is_right_and_world_z_and_y_are_up_in_the_image():
    pixels, _ = camera_at(64).project(
        np.array([[0.0, 0.03, 0.0], [0.1, 0.03, 0.0], [0.0, 0.13, 0.0], [0.0, 0.03, 0.1]])
    )
    middle, right, away, up = pixels
    assert right[0] > middle[0] + 5
    assert right[1] == pytest.approx(middle[1], abs=1e-9)
    assert away[1] < middle[1] - 2
    assert up[1] < middle[1] - 5


def test_vertical_field_of_view_spans_the_image():
    camera = Camera.look_at(eye=(0.0, -1.0, 0.0), target=(0.0, 0.0, 0.0), fov_deg=90.0, size=100)
    pixels, depth = camera.project(np.array([[0.0, 0.0, 1.0], [0.0, 0.0, -1.0], [1.0, 0.0, 0.0]]))
    assert pixels == pytest.approx(np.array([[50.0, 0.0], [50.0, 100.0], [100.0, 50.0]]))
    assert depth == pytest.approx([1.0, 1.0, 1.0])


def test_extrinsics_are_a_rigid_motion_that_takes_the_eye_to_the_origin():
    camera = camera_at(128)
    rotation = camera.extrinsics[:3, :3]
    assert rotation @ rotation.T == pytest.approx(np.eye(3))
    assert np.linalg.det(rotation) == pytest.approx(1.0)
    assert camera.extrinsics @ [*EYE, 1.0] == pytest.approx([0.0, 0.0, 0.0, 1.0])


def test_image_twice_as_large_doubles_the_pixels_and_nothing_else():
    points = np.random.default_rng(0).uniform(-0.2, 0.2, (3, 5, 3))
    small, small_depth = camera_at(64).project(points)
    large, large_depth = camera_at(128).project(points)
    assert large == pytest.approx(2 * small)
    assert large_depth == pytest.approx(small_depth)


def test_projection_matrix_agrees_with_project():
    camera = camera_at(64)
    points = np.random.default_rng(0).uniform(-0.2, 0.2, (100, 3))
    homogeneous = np.c_[points, np.ones(100)] @ camera.projection.T
    pixels, depth = camera.project(points)
    assert camera.projection.dtype == np.float32
    assert homogeneous[:, :2] / homogeneous[:, 2:] == pytest.approx(pixels, abs=1e-3)
    assert homogeneous[:, 2] == pytest.approx(depth, abs=1e-6)


def test_point_behind_the_camera_has_no_pixel():
    pixel, depth = camera_at(64).project(np.array([0.0, -2.0, 0.44]))
    assert depth < 0
    assert np.isnan(pixel).all()


def test_tabletop_camera_sees_the_whole_table_from_the_front():
    camera = tabletop_camera(64)
    table = np.array([[x, y, 0.0] for x in (-0.15, 0.15) for y in (-0.09, 0.16)])
    pixels, depth = camera.project(table)
    assert ((pixels > 0) & (pixels < 64)).all()
    assert (depth[1] > depth[0]) and (depth[3] > depth[2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"intrinsics": np.eye(4)}, r"intrinsics should be a finite \[3, 3\]"),
        ({"extrinsics": np.full((4, 4), np.nan)}, r"extrinsics should be a finite \[4, 4\]"),
        ({"width": 0}, "width is 0; it should be a number of pixels"),
    ],
)
def test_wrong_camera_is_refused_by_name(change, message):
    arguments = {"intrinsics": np.eye(3), "extrinsics": np.eye(4), "height": 64, "width": 64} | change
    with pytest.raises(ValueError, match=message):
        Camera(**arguments)


def test_view_without_an_up_and_wrong_points_are_refused():
    with pytest.raises(ValueError, match="one above the other"):
        Camera.look_at(eye=(0.0, 0.0, 1.0), target=(0.0, 0.0, 0.0), fov_deg=40.0, size=64)
    with pytest.raises(ValueError, match="fov_deg is 180"):
        Camera.look_at(eye=(0.0, -1.0, 1.0), target=(0.0, 0.0, 0.0), fov_deg=180.0, size=64)
    with pytest.raises(ValueError, match=r"points has shape \[2\]"):
        camera_at(64).project(np.zeros(2))
