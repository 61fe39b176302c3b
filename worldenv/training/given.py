"""Models that a run is given: a base and a fine-tuned policy, which it then does not make."""

import shutil
import sys
from dataclasses import asdict
from pathlib import Path

from worldenv.errors import UserError
from worldenv.fields import shown
from worldenv.files import replace_whole
from worldenv.policy.small import SmallPolicy, SmallPolicyConfig
from worldenv.records.checkpoint import CheckpointError, load_weights
from worldenv.training.pretrain import Base

BASE, FINETUNED, POLICY = "base.safetensors", "finetuned.safetensors", "policy.safetensors"
TAKEN = BASE, FINETUNED


def take(given: Path, models: Path, config: SmallPolicyConfig) -> None:
    """Copy base and fine-tuned policy from the folder `given`, unless `models` has them already.

    Raises UserError if there is nothing to take, or if `given` is a whole set of models, CheckpointError if a model
    does not fit the policy of the run.
    """
    begins = not any((models / name).exists() for name in TAKEN)
    if begins and (given / POLICY).exists():
        raise UserError(
            f"--models {given} is a whole set of models: to practise with it, give --no-from-scratch. --from-scratch "
            f"takes {BASE} and {FINETUNED} only: to begin with these two, put them in a folder of their own"
        )
    new = [name for name in TAKEN if (given / name).exists() and not (models / name).exists()]
    if begins and not new:
        raise UserError(
            f"--models {given} has neither {BASE} nor {FINETUNED}, and --from-scratch takes no other model: leave out "
            "--models to make all"
        )
    models.mkdir(parents=True, exist_ok=True)
    for name in new:
        _check(given / name, config)
        replace_whole(models / name, lambda made, name=name: shutil.copyfile(given / name, made))
    if new:
        print(f"taken from {given}: {', '.join(new)}; all other models are made", file=sys.stderr)


def _check(path: Path, config: SmallPolicyConfig) -> None:
    base, is_base = Base(config), path.name == BASE
    _, metadata = load_weights(path, base if is_base else base.policy)
    if metadata.get("kind") != ("base" if is_base else "policy") or "made" not in metadata:
        kind = shown(metadata.get("kind"))
        raise CheckpointError(f"{path} is of the kind {kind}; a {path.stem} model of worldenv-train was expected")
    if not is_base and asdict(SmallPolicy.load(path).config) != asdict(config):
        raise CheckpointError(f"{path} has other settings than the policy of this run, which has {config}")
