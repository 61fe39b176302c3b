"""A process that acts like that of a scene, and goes wrong as its first argument says: never, once or always."""

import os
import sys
import time
from pathlib import Path

import numpy as np

from worldenv.errors import UserError
from worldenv.suites.libero.process import Acted
from worldenv.suites.libero.rearranged import Rearranged
from worldenv.suites.offscreen import Moment
from worldenv.suites.serving import run

COLORS = ("red", "green", "blue", "yellow")
WRONG_AT = 3  # the action of an episode at which it goes wrong


class Fake:
    def __init__(self, wrong, marker):
        self.wrong, self.marker = wrong, Path(marker)

    def describe(self, suite):
        if suite == "libero_10":
            raise UserError("the fake has no long tasks")
        tasks = [(f"task_{i}", f"put the {color} can down", 50, (f"{color}_can",)) for i, color in enumerate(COLORS)]
        return tasks, {"package": "fake"}

    def load(self, suite, number, size, views, pictures, shuffled):
        self.number, self.size, self.views = number, size, views
        print("loaded", number)  # LIBERO prints, too

    def begin(self, state, seed, look):
        self.acted, self.place = 0, np.zeros(7)
        self.place[:3] = self.number, -1 if state is None else state, seed % 1000
        return self.moment([], look)

    def act(self, actions, look):
        done = []
        for action in actions:
            self.acted += 1
            if self.acted == WRONG_AT and self.wrong and not self.marker.exists():
                self.go_wrong()
            self.place += action
            done.append(self.acted % 5 == 4)
        return self.moment(done, look)

    def demonstrate(self, state, seed, horizon, repeat, noise, look, detour):
        """The yellow can is never put down, the green one not from state 1."""
        with open(self.marker.with_name("acted"), "a") as file:
            file.write(f"{self.number} {state} {look} {detour}\n")
        if self.wrong and not self.marker.exists():
            self.go_wrong()
        random, steps, views = np.random.default_rng(seed), 4 + (state or 0) % 3, len(self.views)
        done = np.zeros(steps, dtype=bool)
        done[-1] = is_done = self.number != 3 and (self.number, state) != (1, 1)
        frames = random.integers(0, 256, (steps + 1, views, self.size, self.size, 3), dtype=np.uint8)
        actions = random.uniform(-1, 1, (steps, 7)).astype(np.float32)
        proprio = random.uniform(0, 1, (steps + 1, 7)).astype(np.float32)
        states, joints = random.normal(size=(steps + 1, 11)), random.normal(size=(steps + 1, 7))
        camera = random.normal(size=(views, 3, 4)).astype(np.float32)
        seen = frames if look and is_done else None
        return Acted(
            actions,
            done,
            proprio,
            states,
            joints,
            camera,
            seen,
            f"noise {noise}, {horizon} at most, {repeat} times each",
            random.normal(size=(steps + 1, 6)).astype(np.float32),
            actions,
        )

    def pause(self, state, seed, seconds):
        """Who has answered, after some seconds."""
        if self.wrong and not self.marker.exists():
            self.go_wrong()
        time.sleep(seconds)
        return self.number, state, os.getpid()

    def rearrange(self, state, seed, states, drawn, known, chunk, repeat):
        """Stills with two things: that of task 0, which is at the goal in every second one, and that of this task.

        The first and every third one after it have a plan for the second thing.
        """
        with open(self.marker.with_name("drawn"), "a") as file:
            file.write(f"{self.number} {seed} {len(states)} {os.getpid()}\n")
        if self.wrong and not self.marker.exists():
            self.go_wrong()
        assert known == ["task_2_1"], known
        m = len(states)
        place = np.arange(m * 6, dtype=np.float32).reshape(m, 2, 3) + 1000 * drawn[1]
        done = np.stack([np.arange(m) % 2 == 1, np.zeros(m, dtype=bool)], axis=1)
        frames = np.full((m, self.size, self.size, 3), self.number, dtype=np.uint8)
        names = np.array(["task_0_1", f"task_{self.number}_1"])
        goal, asked = np.full((m, 3), 7, np.float32), np.where(np.arange(m) % 3 == 0, 1, -1)
        plan = np.where(asked < 0, 0, 0.1 * repeat).astype(np.float32)[:, None, None] * np.ones(
            (1, chunk, 7), np.float32
        )
        return Rearranged(frames, states[:, :7].astype(np.float32), place, goal, done, names, asked, plan)

    def go_wrong(self):
        if not self.wrong.startswith("always"):
            self.marker.touch()
        kind = self.wrong.removeprefix("always-")
        if kind == "crash":
            print("the last words", file=sys.stderr, flush=True)
            os.abort()
        elif kind == "hang":
            time.sleep(1000)
        raise RuntimeError("the physics exploded")

    def moment(self, done, look):
        size = (len(self.views), self.size, self.size, 3)
        frames = np.full(size, int(abs(self.place).sum()) % 256, dtype=np.uint8) if look else None
        camera = np.zeros((len(self.views), 3, 4), dtype=np.float32)
        return Moment(np.array(done, dtype=bool), frames, self.place.astype(np.float32), camera)


if __name__ == "__main__":
    run(Fake(sys.argv.pop(1), sys.argv.pop(1)))
