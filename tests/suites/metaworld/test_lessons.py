"""The whole loop on Meta-World with the composer, tiny: every stage through the real command."""

import json
import subprocess
import sys

from worldenv.commands.job import load_run
from worldenv.worlds.composer.world import ComposerWorld

TRAIN = "import sys; sys.argv[0] = 'worldenv-train'; from worldenv.commands.cli import train; train()"
FEW = ["--rl.iterations", "1", "--eval.videos", "0"]


def test_the_composer_is_made_in_place_of_the_causal_world_model(metaworld, tmp_path):
    words = sys.executable, "-P", "-c", TRAIN, "metaworld-tiny", "--world", "composer", "--run", str(tmp_path / "run")
    done = subprocess.run([*words, *FEW], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-2000:]
    result = json.loads(done.stdout.splitlines()[-1])
    assert {"models/teacher", "models/contact", "models/composer"} <= {*result["stages_s"]}
    assert not {"models/teacher_base", "models/causal"} & {*result["stages_s"]}
    parts = load_run(tmp_path / "run")
    parts.suite.close()
    assert isinstance(parts.world, ComposerWorld) and parts.world.robot == parts.suite.robot
