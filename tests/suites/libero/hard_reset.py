"""Run by test_scene.py in a process of its own: the fast reset beside the benchmark's, which builds the scene anew."""

import json
import sys

import numpy as np

from worldenv.suites.libero.installed import installed

installed()
from robosuite.utils import camera_utils  # noqa: E402

from worldenv.suites.libero.scene import ARM_NOISE, IDLE, SETTLING, Scene  # noqa: E402  the variables of `installed` come first

STATE, SEED, STEPS = 3, 7, 40


def acted(env, actions):
    """All states of an episode, and after each where the bodies stand in the model: the fixtures are in no state."""
    states = []
    for action in actions:
        env.step(action)
        model = env.sim.model
        states.append(np.concatenate([env.sim.get_state().flatten(), model.body_pos.ravel(), model.body_quat.ravel()]))
    return np.array(states)


def hard_reset(env, seed, state=None):
    """As `ControlEnv.reset` and `set_init_state` do it, and the evaluation of the benchmark after them.

    Without a state things stand where the reset has placed them, and the arm as in the official states.
    """
    env.hard_reset = True
    env._observables = env._setup_observables()  # the scene had switched them off
    env.object_property_initializers.clear()  # every reset of the benchmark adds them once more
    np.random.seed(seed)
    env.reset()
    if state is None:
        drawn, joints = env.sim.get_state(), env.robots[0]._ref_joint_pos_indexes
        drawn.qpos[joints] += ARM_NOISE * np.random.standard_normal(len(joints))
        state = drawn.flatten()
    env.sim.set_state_from_flattened(state)
    env.sim.forward()
    env._check_success()
    env._post_process()
    for _ in range(SETTLING):
        env.step(IDLE)


def camera_difference(scene):
    """Pixels between where the scene's cameras and robosuite's own see some points."""
    sim, size, worst = scene.env.sim, scene.size, 0.0
    hand = sim.data.site_xpos[scene.env.robots[0].eef_site_id]
    points = hand + np.array([[0, 0, -0.05], [0.03, 0.02, -0.1], [-0.03, 0.05, -0.15]])
    for name, mine in zip(scene.cameras, scene.camera(), strict=True):
        theirs = camera_utils.get_camera_transform_matrix(sim, name, size, size)
        pixels = []
        for matrix in (mine, theirs[:3]):
            pixel = np.c_[points, np.ones(3)] @ matrix.T
            pixels.append(pixel[:, :2] / pixel[:, 2:])
        worst = max(worst, float(np.abs(pixels[0] - pixels[1]).max()))
    return worst


def done_by_force(scene):
    """Whether "on A B" is done before and after A has been put on B."""
    env, before = scene.env, scene.step(IDLE)
    relation, upper, lower = env.parsed_problem["goal_state"][0]
    assert relation == "on", relation
    place = env.sim.data.body_xpos[env.obj_body_id[lower]] + [0, 0, 0.03]
    env.sim.data.set_joint_qpos(env.objects_dict[upper].joints[-1], np.r_[place, 1, 0, 0, 0])
    return [before, any([scene.step(IDLE) for _ in range(20)])]


def shuffled(scene):
    """What shuffling does to a state: whether the places are the same, things move, the target and the rest stay."""
    names, target = scene.env.objects_dict, scene.env.parsed_problem["goal_state"][0][2]
    begun = scene.states[STATE]
    several = [scene._shuffled(begun.copy(), seed) for seed in (*range(12), 0)]
    one, same = several[0], several[-1]
    first = {name: scene.env.sim.model.get_joint_qpos_addr(thing.joints[-1])[0] for name, thing in names.items()}
    rows = 1 + np.array([*first.values()])[:, None] + np.arange(2)
    at_rest = np.setdiff1d(np.arange(len(begun)), rows)
    stays = [target.startswith(name) for name in first]
    return {
        "places": bool(np.array_equal(np.sort(one[rows], axis=0), np.sort(begun[rows], axis=0))),
        "again": bool(np.array_equal(one, same)),
        "orders": len({state[rows].tobytes() for state in several}),
        "stays": sum(stays) == 1 and bool(np.array_equal(one[rows[stays]], begun[rows[stays]])),
        "rest": bool(np.array_equal(one[at_rest], begun[at_rest])),
    }


def drawn_in_layers(scene, actions):
    """Pictures in two layers beside pictures of the whole scene: the most pixels that differ, and meshes that moved."""
    scene.begin(STATE, SEED)
    resting, differ, moving = scene._resting, [], []

    def compare():
        layered, resting.draws_whole = scene.frames()[0], True
        whole, resting.draws_whole = scene.frames()[0], False
        differ.append(int((layered != whole).any(-1).sum()))
        moving.append(int((~resting.rests).sum()))

    for action in actions:
        compare()
        scene.step(action)
    done_by_force(scene)  # a thing moves
    compare()
    scene.begin(STATE, SEED)
    compare()
    return {"differ": max(differ), "moving": moving, "meshes": len(resting.meshes)}


def main(suite, number):
    random = np.random.default_rng(0)
    actions = random.uniform(-1, 1, (STEPS, 7)) * [0.6, 0.6, 0.6, 0.3, 0.3, 0.3, 1] - [0, 0, 0.3, 0, 0, 0, 0]
    scene = Scene(suite, number, 32, ("agentview", "wrist"), "fast")
    scene.begin(STATE, SEED)
    first, picture = acted(scene.env, actions), scene.frames()
    scene.begin(5, 11)
    other = acted(scene.env, actions[::-1])  # an episode that ends elsewhere, with the hand in another state
    scene.begin(STATE, SEED)
    again, pictured = acted(scene.env, actions), scene.frames()
    scene.begin(STATE, SEED + 1)
    elsewhere = acted(scene.env, actions)
    out = {"camera": camera_difference(scene), "done": done_by_force(scene), "shuffled": shuffled(scene)}
    out["layers"] = drawn_in_layers(scene, actions[:12])
    scene.begin(None, SEED)  # after another one, whose fixtures stand elsewhere
    drawn = acted(scene.env, actions)
    hard_reset(scene.env, SEED, scene.states[STATE])
    hard = acted(scene.env, actions)
    hard_reset(scene.env, SEED)
    out["drawn"] = float(np.abs(acted(scene.env, actions) - drawn).max())
    differences = {"again": again, "hard": hard, "other": other, "elsewhere": elsewhere}
    out |= {name: float(np.abs(states - first).max()) for name, states in differences.items()}
    print(json.dumps(out | {"pictures": int(np.abs(picture.astype(int) - pictured).max())}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
