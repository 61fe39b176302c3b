"""The true things of a small scene of blocks in MuJoCo, in a process that does not import torch."""

import json
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import pytest

from worldenv.errors import UserError
from worldenv.suites.offscreen import drawing_library

SCRIPT = '''
import json, os
from importlib import import_module
os.environ["MUJOCO_GL"] = os.environ["PYOPENGL_PLATFORM"] = {gl!r}
import mujoco
from worldenv.suites.bodies import Bodies, Outlines

XML = """<mujoco><visual><global offwidth="64" offheight="64"/></visual><worldbody>
  <camera name="front" pos="0 -1 0.2" xyaxes="1 0 0 0 0 1" fovy="52"/>
  <geom type="plane" size="2 2 0.1"/>
  <geom name="wall" type="box" pos="0 -0.3 0.04" size="0.3 0.01 0.04"/>
  <body name="robot">
    <body name="left"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom type="box" size="0.01 0.02 0.02"/></body>
    <body name="right"><joint type="slide" axis="1 0 0"/><joint type="slide" axis="0 0 1"/>
      <geom type="box" size="0.01 0.02 0.02"/></body>
    <geom type="box" pos="0 -0.6 0.2" size="0.3 0.01 0.3" contype="0" conaffinity="0"/>
  </body>
  <body name="can" pos="0.1 0 0.1"><freejoint/><geom type="box" size="0.05 0.05 0.1"/>
    <body name="lid" pos="0 0 0.15"><geom type="box" size="0.05 0.05 0.05"/>
      <geom type="box" size="0.3 0.3 0.01" rgba="1 1 1 0" contype="0" conaffinity="0"/></body></body>
  <body name="cabinet" pos="-0.25 0.2 0.1"><geom type="box" size="0.1 0.1 0.1"/>
    <body name="drawer"><joint type="slide" axis="0 -1 0"/><geom type="box" size="0.08 0.08 0.05"/></body></body>
</worldbody></mujoco>"""
model = mujoco.MjModel.from_xml_string(XML)
data = mujoco.MjData(model)
mujoco.mj_forward(model, data)
bodies = Bodies(model, data, "robot", ("left", "right"))
out = {{"things": [model.body(i).name for i in bodies.body], "centres": [bodies.centres().tolist()], "held": []}}
fingers = [((0.041, 0.2), (0.159, 0.2)), ((0.041, 0.2), (0.5, 0.2)), ((0.09, 0.319), (0.13, 0.319)), ((-1, 2), (1, 2))]
for (one, one_high), (other, other_high) in fingers:
    data.qpos[:4] = one, one_high, other, other_high
    mujoco.mj_forward(model, data)
    out["held"].append(bodies.held())
gl = import_module("mujoco.{gl}").GLContext(64, 64)
gl.make_current()
given = mujoco.MjrContext(model, mujoco.mjtFontScale.mjFONTSCALE_100), gl.make_current, mujoco.MjvOption()
for name, turned in (("upright", False), ("turned", True)):
    outlines = Outlines(bodies, 0, *given, 16, 4, turned)
    out[name] = [[outlines.of(thing, alone).tolist() for alone in (True, False)] for thing in (0, 1)]
    out[name + " with the robot"] = outlines.of_all().tolist()
data.qpos[4] -= 0.2
data.qpos[-1] = 0.3
mujoco.mj_forward(model, data)
out["centres"].append(bodies.centres().tolist())
out["moved"] = outlines.of(0, True).tolist()
data.qpos[4:6] = 0, -0.8  # before the robot
mujoco.mj_forward(model, data)
out["can before the robot"] = outlines.of_all().tolist()

out["shifted"] = []
for limits in ("limited='true' range='-180 180'", "limited='false'"):
    arm = ""
    for axis in ("0 0 1", "0 1 0", "0 1 0", "1 0 0", "0 1 0", "1 0 0"):
        arm += f"<body pos='0.2 0 0'><joint axis='{{axis}}' {{limits}}/><geom size='0.01'/>"
    arm += "<body name='hand' pos='0.1 0 0'><geom size='0.01'/>"
    for name in ("left", "right"):
        arm += f"<body name='{{name}}'><joint type='slide'/><geom size='0.01'/></body>"
    arm = f"<body name='robot'>{{arm}}{{'</body>' * 8}}<body name='ball'><freejoint/><geom size='0.1'/></body>"
    model = mujoco.MjModel.from_xml_string(f"<mujoco><worldbody>{{arm}}</worldbody></mujoco>")
    data = mujoco.MjData(model)
    data.qpos[:6] = 0.3, -0.6, 0.9, 0.4, 0.5, -0.2
    mujoco.mj_forward(model, data)
    hand = data.body("hand")
    before = hand.xpos.copy(), hand.xmat.copy()
    Bodies(model, data, "robot", ("left", "right")).shift_hand([0.01, -0.02, 0.015])
    out["shifted"].append([(hand.xpos - before[0]).tolist(), (hand.xmat - before[1]).tolist()])
print(json.dumps(out), flush=True)
os._exit(0)
'''


@pytest.fixture(scope="module")
def seen():
    if find_spec("mujoco") is None:
        pytest.skip("MuJoCo is not installed")
    try:
        script = SCRIPT.format(gl=drawing_library("this test"))
    except UserError as error:
        pytest.skip(str(error))
    words = [sys.executable, "-W", "ignore", "-c", script]
    done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_things_are_the_rigid_bodies_that_can_move_without_the_robot(seen):
    assert seen["things"] == ["can", "drawer"]
    before, after = np.array(seen["centres"])
    np.testing.assert_allclose(before, [[0.1, 0, 0.15], [-0.25, 0.2, 0.1]], atol=1e-6)  # of the box around a thing
    np.testing.assert_allclose(after - before, [[-0.2, 0, 0], [0, -0.3, 0]], atol=1e-6)


def test_a_thing_is_held_when_both_fingers_push_it_in_opposite_directions(seen):
    # From both sides; from one side only; both from above; neither.
    assert seen["held"] == [0, -1, -1, -1]


def test_a_thing_alone_is_whole_and_among_others_the_nearer_ones_hide_it_but_not_the_robot(seen):
    (can, shows), (drawer, shows_drawer) = np.array(seen["upright"], dtype=int)
    rows, columns = np.nonzero(can)
    assert 8 <= columns.min() <= columns.max() <= 10 and (can.max(), shows.max()) == (255, 255)
    assert ((can > 0) & (can < 255)).any()  # pixels are averaged
    hidden = can - shows
    assert (hidden >= 0).all() and not shows[rows.max()].any()  # behind the wall
    assert not hidden[: rows.min() + 3].any()  # above it
    assert drawer.max() == 255 and not shows_drawer.any()  # it is inside of the cabinet


def test_with_the_robot_in_the_picture_it_hides_things_too(seen):
    can, drawer = np.array(seen["upright with the robot"], dtype=int)
    _, shows = np.array(seen["upright"], dtype=int)[0]
    assert shows.any() and not can.any() and not drawer.any()  # the robot hides all
    moved = np.array(seen["can before the robot"])
    assert moved[0].any() and not moved[1].any()


def test_pictures_that_are_turned_have_turned_outlines(seen):
    assert np.array_equal(np.array(seen["turned"]), np.array(seen["upright"])[:, :, ::-1, ::-1])
    moved, before = np.array(seen["moved"]), np.array(seen["turned"])[0, 0]
    assert np.nonzero(moved)[1].mean() > np.nonzero(before)[1].mean() + 2  # to the left, turned by 180 degrees


def test_a_hand_is_shifted_and_not_turned_whether_joints_have_limits_or_not(seen):
    for moved, turned in seen["shifted"]:
        np.testing.assert_allclose(moved, [0.01, -0.02, 0.015], atol=1e-5)
        np.testing.assert_allclose(turned, np.zeros(9), atol=1e-4)
