"""Pictures of a scene whose things have been put somewhere else, and what the expert would do. It imports no torch."""

from collections.abc import Collection
from typing import Any, NamedTuple

import numpy as np

from worldenv.suites.libero.expert_hand import Hand

FLOOR_M = np.array([[-0.25, -0.29], [0.2, 0.11]])  # lowest and highest x, y, where things of LIBERO Object stand
APART_M = 0.08  # least distance from the middle of a thing to that of another one
LOW_M = 0.16  # a hand below this height is low
UNDER_HAND_M = 0.07  # while the hand is low, other things stand at least so far from it
CLEAR_M = 0.02  # an open hand that is so far above a thing may be beside its middle
LIFTED_M = 0.02  # the hand holds the thing of the task if the thing is so much higher than at the start
BELOW_M = 0.04  # the hand is about to take the thing of the task if it is low and so near to it, horizontally
# The arm's thing is the one that is put where the arm has the thing of the task. Where that is nowhere, the arm's thing
# stands, in a share of the pictures, near the hand: in x and in y at most as far as a number drawn up to this distance.
NEAR_SHARE, NEAR_M = 0.5, 0.12
KNOWN_SHARE = 0.75  # of the pictures, at least: the arm's thing is one for which there may be a plan
OPEN = 0.9  # share of the fingers' range from which on they are open
DONE_SHARE = 0.15  # of the pictures in which the hand is not at the thing of the task: there a thing lies at the goal
FLOOR_OF_GOAL_M = 0.01  # thickness of the basket's floor
TRIES = 200  # to find a free place
TURNED_SHARE = 0.3  # of the things of a labelled picture, which lie or stand in any rotation
ARM_NOISE = 0.2  # rad, standard deviation of the joints in such a picture


class Rearranged(NamedTuple):
    """M pictures of a scene with D things that can be carried."""

    frames: np.ndarray  # [M, H, W, 3] uint8, of the first camera
    proprio: np.ndarray  # [M, P] float32
    place: np.ndarray  # [M, D, 3] float32 m, of every thing, from the base of the robot
    goal: np.ndarray  # [M, 3] float32 m, where the goal is, from the base of the robot
    done: np.ndarray  # [M, D] bool, whether the thing is at the goal
    names: np.ndarray  # [D] str
    asked: np.ndarray  # [M] int64, the thing of the plan; -1: there is no plan
    plan: np.ndarray  # [M, K, 7] float32, the next actions of the expert to bring that thing to the goal


class Labelled(NamedTuple):
    """M pictures of a scene with D things that can be carried, and which pixels show each thing."""

    frames: np.ndarray  # [M, H, W, 3] uint8, of the first camera
    shown: np.ndarray  # [M, D, H, W] uint8, how much of a pixel shows the thing; 255: all of it
    names: np.ndarray  # [D] str


def rearranged(
    scene: Any,  # a Scene
    states: np.ndarray,  # [M, S]
    seed: list[int],
    known: Collection[str],  # the things for which there may be a plan
    chunk: int,
    repeat: int,
) -> Rearranged:
    """Put things somewhere else in recorded states of the episode that the scene has just begun, and draw the result.

    The arm stays as it was recorded. If it is about to take the thing of the task, holds it or has put it at the goal,
    another thing, mostly a known one, takes the place of that thing. Otherwise, in a share `DONE_SHARE` of the
    pictures, that other thing lies at the goal, and in about half of the rest it stands near the hand. All other things
    stand at random places on the floor. Where the hand is open, the plan are the `chunk` actions with which the expert
    then begins to bring a known thing to the goal; they are simulated. The scene is left in some other state.
    """
    from worldenv.suites.libero.expert import plan  # imports LIBERO

    random, begun, rest, first = np.random.default_rng(seed), scene.kept(), scene.state(), scene.strewn()
    home, (relation, _, target) = Hand(scene, chunk, repeat, 0.0, 0).home, scene.goal()
    names, tops, made = list(first), _tops(scene), []
    is_known = np.isin(names, list(known))
    for state in states:
        scene.put_back(begun)
        scene.set(state)
        order = random.permutation(len(names))
        if random.random() < KNOWN_SHARE:
            order = order[np.argsort(~is_known[order], kind="stable")]  # known things first
        other = _other_state(scene, state, rest, tops, order, random)
        scene.set(other)
        places, proprio, picture = scene.places_of(*first, target), scene.proprio(), scene.frames()[0]
        done = np.array([scene.holds((relation, name, target)) for name in names])
        asked, actions = next((i for i in order if is_known[i] and not done[i]), -1), None
        if asked >= 0 and proprio[6] > OPEN:
            actions = plan(scene, (relation, names[asked], target), home, chunk, repeat)
        planned = (-1, np.zeros((chunk, 7), np.float32)) if actions is None else (asked, actions)
        made.append((picture, proprio, places[:-1], places[-1], done, *planned))
    *seen, asked, plans = (np.stack(part) for part in zip(*made, strict=True))
    return Rearranged(*seen, np.array(names), asked, plans)


def labelled(scene: Any, states: np.ndarray, seed: list[int]) -> Labelled:
    """Draw recorded states [M, S] of the episode that the scene has just begun.

    In every second one, things are somewhere else, as in `rearranged`, some of them are turned in any way, and the
    joints of the arm are moved: what policies do that fail. The scene is left in the last of these states.
    """
    random, rest, begins, tops = np.random.default_rng(seed), scene.state(), scene.strewn(), _tops(scene)
    bodies, frames, shown = scene.bodies, [], []
    body = bodies.model.body_weldid[[scene.env.obj_body_id[name] for name in begins]]
    things = np.searchsorted(bodies.body, body)
    for i, state in enumerate(states):
        scene.set(state)
        if i % 2:
            other = _other_state(scene, state, rest, tops, random.permutation(len(begins)), random)
            for begin in begins.values():
                if random.random() < TURNED_SHARE:
                    turn = random.normal(size=4)
                    other[begin + 3 : begin + 7] = turn / np.linalg.norm(turn)
            joints = 1 + np.asarray(scene.env.robots[0]._ref_joint_pos_indexes)  # after the time
            other[joints] += random.normal(0, ARM_NOISE, len(joints))
            scene.set(other)
        frames.append(scene.frames()[0])
        shown.append(scene.outlines.of_all()[things])
    return Labelled(np.stack(frames), np.stack(shown), np.array(list(begins)))


def _tops(scene: Any) -> np.ndarray:  # [D] m
    """The heights up to which the things that can be carried reach now."""
    from worldenv.suites.libero.expert_shapes import Shapes  # imports LIBERO

    shapes = Shapes(scene.env)
    return np.array([shapes.points(shapes.body(name))[:, 2].max() for name in scene.strewn()])


def _other_state(
    scene: Any,
    state: np.ndarray,
    rest: np.ndarray,
    tops: np.ndarray,  # [D] m, the heights up to which the things reach
    order: np.ndarray,
    random: np.random.Generator,
) -> np.ndarray:  # [S]
    """`state`, in which the scene is now, with every thing at a new place.

    Heights and rotations are those of `rest`, the state at the start of the episode. The first thing of `order` is
    where the arm has the thing of the task, or often near the hand.
    """
    begins, hand, out = np.array(list(scene.strewn().values())), scene.proprio()[:3], state.copy()
    for begin in begins:
        out[begin : begin + 7] = rest[begin : begin + 7]  # position and rotation
    low, taken = hand[:2] if hand[2] < LOW_M else None, []
    begin, *others = begins[order]
    is_above = hand[2] > tops[order[0]] + CLEAR_M
    place = _place_with_the_arm(scene, state, rest, out[begin : begin + 3], is_above, random)
    if place is not None:
        out[begin : begin + 3] = place
    else:
        near = hand[:2] if random.random() < NEAR_SHARE else None
        out[begin : begin + 2] = _free_place([], None if is_above else low, random, near)
    taken.append(out[begin : begin + 2])
    for begin in others:
        out[begin : begin + 2] = _free_place(taken, low, random)
        taken.append(out[begin : begin + 2])
    return out


def _place_with_the_arm(
    scene: Any, state: np.ndarray, rest: np.ndarray, stands: np.ndarray, is_above: bool, random: np.random.Generator
) -> np.ndarray | None:  # [3] m
    """The new place of a random thing that stood on the floor at `stands`: where the arm has the thing of the task.

    That is at the goal, in the hand or below it. None: anywhere on the floor. If the hand is above that thing, half of
    those that would be below it are not there: then the expert shows how to come from beside the thing.
    """
    goal, hand = scene.goal(), scene.proprio()[:3]
    begin = scene.strewn()[goal[1]]
    recorded, at_start = state[begin : begin + 3], rest[begin : begin + 3]
    if scene.holds(goal):
        return np.r_[recorded[:2], stands[2] + FLOOR_OF_GOAL_M]
    if recorded[2] > at_start[2] + LIFTED_M:
        return recorded
    is_taken = hand[2] < LOW_M and np.linalg.norm(recorded[:2] - hand[:2]) < BELOW_M
    if is_taken and not (is_above and random.random() < 0.5):
        return np.r_[recorded[:2], stands[2]]
    if random.random() < DONE_SHARE:
        return np.r_[scene.place(goal[2])[:2], stands[2] + FLOOR_OF_GOAL_M]
    return None


def _free_place(
    taken: list[np.ndarray], low: np.ndarray | None, random: np.random.Generator, near: np.ndarray | None = None
) -> np.ndarray:  # [2] m
    """A place on the floor away from others and from a low hand; after many tries, any place.

    With `near`, it is at most a number up to `NEAR_M` from there in x and in y, if the floor goes so far.
    """
    for _ in range(TRIES):
        place = random.uniform(*FLOOR_M)
        if near is not None:
            place = (near + NEAR_M * random.uniform() * random.uniform(-1, 1, size=2)).clip(*FLOOR_M)
        is_free = all(np.linalg.norm(place - other) > APART_M for other in taken)
        if is_free and (low is None or np.linalg.norm(place - low) > UNDER_HAND_M):
            break
    return place
