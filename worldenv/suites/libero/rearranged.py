"""Pictures of a scene whose things have been put somewhere else, without a step of simulation. It imports no torch."""

from typing import Any, NamedTuple

import numpy as np

FLOOR_M = np.array([[-0.25, -0.29], [0.2, 0.11]])  # lowest and highest x, y, where things of LIBERO Object stand
APART_M = 0.08  # least distance from the middle of a thing to that of another one
LOW_M = 0.16  # a hand below this height is low
UNDER_HAND_M = 0.07  # while the hand is low, other things stand at least so far from it
LIFTED_M = 0.02  # the hand holds the thing of the task if the thing is so much higher than at the start
BELOW_M = 0.04  # the hand is about to take the thing of the task if it is low and so near to it, horizontally
DONE_SHARE = 0.15  # of the pictures in which the hand is not at the thing of the task: there a thing lies at the goal
FLOOR_OF_GOAL_M = 0.01  # thickness of the basket's floor
TRIES = 200  # to find a free place


class Rearranged(NamedTuple):
    """M pictures of a scene with D things that can be carried."""

    frames: np.ndarray  # [M, H, W, 3] uint8, of the first camera
    proprio: np.ndarray  # [M, P] float32
    place: np.ndarray  # [M, D, 3] float32 m, of every thing, from the base of the robot
    goal: np.ndarray  # [M, 3] float32 m, where the goal is, from the base of the robot
    done: np.ndarray  # [M, D] bool, whether the thing is at the goal
    names: np.ndarray  # [D] str


def rearranged(scene: Any, states: np.ndarray, seed: list[int]) -> Rearranged:  # a Scene; [M, S]
    """Put things somewhere else in recorded states of the episode that the scene has just begun, and draw the result.

    The arm stays as it was recorded. If it is about to take the thing of the task, holds it or has put it at the goal,
    a random thing takes the place of that thing. Otherwise, in a share `DONE_SHARE` of the pictures, a random thing
    lies at the goal. All other things stand at random places on the floor. The scene is left in the last state.
    """
    random, rest, first = np.random.default_rng(seed), scene.state(), scene.strewn()
    relation, _, target = scene.goal()
    made = []
    for state in states:
        scene.set(state)
        scene.set(_other_state(scene, state, rest, random))
        places = scene.places_of(*first, target)
        done = np.array([scene.holds((relation, name, target)) for name in first])
        made.append((scene.frames()[0], scene.proprio(), places[:-1], places[-1], done))
    return Rearranged(*(np.stack(part) for part in zip(*made, strict=True)), np.array(list(first)))


def _other_state(scene: Any, state: np.ndarray, rest: np.ndarray, random: np.random.Generator) -> np.ndarray:
    """`state`, in which the scene is now, with every thing at a new place.

    Heights and rotations are those of `rest`, the state at the start of the episode.
    """
    first, hand, out = scene.strewn(), scene.proprio()[:3], state.copy()
    for begin in first.values():
        out[begin : begin + 7] = rest[begin : begin + 7]  # position and rotation
    begin, *others = random.permutation(list(first.values()))
    place, taken = _place_with_the_arm(scene, state, rest, out[begin : begin + 3], random), []
    if place is None:
        others.append(begin)
    else:
        out[begin : begin + 3] = place
        taken.append(place[:2])
    for begin in others:
        out[begin : begin + 2] = _free_place(taken, hand[:2] if hand[2] < LOW_M else None, random)
        taken.append(out[begin : begin + 2])
    return out


def _place_with_the_arm(
    scene: Any, state: np.ndarray, rest: np.ndarray, stands: np.ndarray, random: np.random.Generator
) -> np.ndarray | None:  # [3] m
    """The new place of a random thing that stood on the floor at `stands`: where the arm has the thing of the task.

    That is at the goal, in the hand or below it. None: anywhere on the floor.
    """
    goal, hand = scene.goal(), scene.proprio()[:3]
    begin = scene.strewn()[goal[1]]
    recorded, at_start = state[begin : begin + 3], rest[begin : begin + 3]
    if scene.holds(goal):
        return np.r_[recorded[:2], stands[2] + FLOOR_OF_GOAL_M]
    if recorded[2] > at_start[2] + LIFTED_M:
        return recorded
    if hand[2] < LOW_M and np.linalg.norm(recorded[:2] - hand[:2]) < BELOW_M:
        return np.r_[recorded[:2], stands[2]]
    if random.random() < DONE_SHARE:
        return np.r_[scene.place(goal[2])[:2], stands[2] + FLOOR_OF_GOAL_M]
    return None


def _free_place(taken: list[np.ndarray], hand: np.ndarray | None, random: np.random.Generator) -> np.ndarray:  # [2] m
    """A place on the floor away from others and from a low hand; after many tries, any place."""
    for _ in range(TRIES):
        place = random.uniform(*FLOOR_M)
        is_free = all(np.linalg.norm(place - other) > APART_M for other in taken)
        if is_free and (hand is None or np.linalg.norm(place - hand) > UNDER_HAND_M):
            break
    return place
