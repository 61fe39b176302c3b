"""A model card beside every file of weights: what the model is, how it was made, what it can and cannot do."""

from pathlib import Path
from typing import Any

from worldenv.files import write_text
from worldenv.records.checkpoint import load_weights
from worldenv.records.progress import human_seconds

ABOUT = {
    "base": "The vision-language-action base: a policy whose encoder also points at objects and says whether a task is "
    "done. Pretrained on the disjoint pretraining episodes of the suite; it may be that only a few carry actions.",
    "finetuned": "The base, fine-tuned by imitation (L1, and Laplace likelihood of the scale) on a few expert "
    "demonstrations of each task: the policy that explores.",
    "policy": "The fine-tuned policy, taught by itself to act on imagined frames as it acted on the true frames of the "
    "same moments (demonstrations and extra data, no expert): the baseline that post-training starts from.",
    "kinematics": "How an action moves the gripper, fitted to the extra data. The world model has a copy.",
    "teacher_base": "The composer after pretraining on disturbed expert episodes of the pretraining suite.",
    "teacher": "The multi-step composer, trained by flow matching on recorded episodes of the suite.",
    "contact": "The composer's contact network: it predicts what the gripper moves, and which of its pixels "
    "nearer things hide. Trained on recorded chunks and on the same chunks tried again after an offset of the gripper, "
    "with labels from the true environment.",
    "composer": "The one-step composer (student), a world model: the teacher, trained on along its own rollouts.",
    "causal_teacher": "The multi-step causal world model, trained by diffusion forcing on the "
    "demonstrations and extra data.",
    "causal": "The causal world model of one or two steps (student), distilled from its teacher.",
    "reflector": "The reflector: the base's encoder and a reward head, trained by per-frame cross-entropy on "
    "demonstrations and extra data, true and as the world model imagines them. Other tasks' instructions are negative "
    "examples. The encoder stays as the base has it, unless the configuration says that it was trained, too.",
}
LIMITS = (
    "Made for the suite that the command names, at 64 x 64 pixels, and for nothing else: small, fast to train on a "
    "CPU, there to show and test the method. Weights are stored in half precision and computed with in float32."
)


def write_card(weights: Path) -> Path:
    """Write <name>.md beside <name>.safetensors, from the metadata in the file."""
    tensors, metadata = load_weights(weights)
    made: dict[str, Any] = metadata["made"]
    parameters = sum(tensor.numel() for tensor in tensors.values())
    lines = [f"# {weights.stem}", "", ABOUT[weights.stem], "", f"- parameters: {parameters:,}"]
    for key, value in made.items():
        if key == "metrics":
            shown = ", ".join(f"{name} {figure:.4g}" for name, figure in value.items())
            lines.append(f"- last training figures (running means): {shown}")
        else:
            lines.append(f"- {key.removesuffix('_s')}: {human_seconds(value) if key.endswith('_s') else value}")
    card = weights.with_suffix(".md")
    write_text(card, "\n".join([*lines, "", LIMITS, ""]))
    return card
