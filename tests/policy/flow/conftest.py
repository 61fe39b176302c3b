"""Tiny checkpoints of pi0 and SmolVLA with random weights, in the layout in which LeRobot publishes them."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

transformers = pytest.importorskip("transformers")
pytest.importorskip("peft")

from worldenv.interfaces.observation import Key, Starts  # noqa: E402
from worldenv.policy.flow.config import Pi0Config, SmolVLAConfig  # noqa: E402
from worldenv.policy.flow.pi0 import Pi0Network  # noqa: E402
from worldenv.policy.flow.policy import load_pi0, load_smolvla  # noqa: E402
from worldenv.policy.flow.smolvla import Sizes, SmolVLANetwork  # noqa: E402
from worldenv.robot.kinematics import Kinematics  # noqa: E402
from worldenv.robot.robot import moved_gripper  # noqa: E402

K, D, STATE, ACTION = 6, 12, 8, 7  # predicted actions, their numbers, numbers of state and of an action
WORDS = [
    "<pad>",
    "<eos>",
    "<bos>",
    "<unk>",
    "\n",
    *["put", "place", "slide", "red", "green", "orange", "block", "pad", "puck", "on", "the", "to", "drop", "it", "in"],
]
STATISTICS = {
    "observation.state.mean": [0.1 * i for i in range(STATE)],
    "observation.state.std": [0.5 + 0.1 * i for i in range(STATE)],
    "action.mean": [0.05 * i - 0.1 for i in range(ACTION)],
    "action.std": [0.3 + 0.05 * i for i in range(ACTION)],
}
GEMMA = {
    "model_type": "gemma",
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 1,
    "head_dim": 8,
}
PALIGEMMA = {
    "model_type": "paligemma",
    "image_token_id": 64,
    "projection_dim": 32,
    "text_config": GEMMA | {"hidden_size": 32, "intermediate_size": 48, "vocab_size": 64},
    "vision_config": {
        "model_type": "siglip_vision_model",
        "hidden_size": 32,
        "intermediate_size": 40,
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "image_size": 28,
        "patch_size": 14,
        "vision_use_head": False,
    },
}
PI0 = {
    "vlm_config": PALIGEMMA,
    "dit_config": GEMMA | {"hidden_size": 16, "intermediate_size": 24},
    "chunk_size": K,
    "max_state_dim": D,
    "max_action_dim": D,
    "num_inference_steps": 3,
}
SMOLVLM = {
    "model_type": "smolvlm",
    "scale_factor": 2,
    "image_token_id": 4,
    "text_config": {
        "model_type": "llama",
        "vocab_size": 64,
        "hidden_size": 32,
        "intermediate_size": 48,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "rms_norm_eps": 1e-5,
        "rope_theta": 100000,
        "torch_dtype": "bfloat16",
    },
    "vision_config": {
        "model_type": "smolvlm_vision",
        "hidden_size": 24,
        "intermediate_size": 32,
        "num_hidden_layers": 2,
        "num_attention_heads": 3,
        "image_size": 32,
        "patch_size": 8,
    },
}
SIZES = Sizes(K, D, D, 3, 2, True, 24, (4e-3, 4.0))  # three of the four layers


def drawn(network: torch.nn.Module, seed: int) -> torch.nn.Module:
    """With every parameter drawn, so that none can be left out unseen."""
    torch.manual_seed(seed)
    for name, parameter in network.named_parameters():
        torch.nn.init.normal_(parameter, std=0.3)
        if "norm" in name and "weight" in name and isinstance(network, SmolVLANetwork):
            torch.nn.init.normal_(parameter, mean=1.0, std=0.1)
    return network.eval()


def pi0_network(seed: int = 0) -> Pi0Network:
    return drawn(Pi0Network(transformers.PI0Config(**PI0)), seed)


def smolvla_network(seed: int = 0) -> SmolVLANetwork:
    config = transformers.SmolVLMConfig.from_dict(SMOLVLM)
    config.text_config.num_hidden_layers = SIZES.layers
    return drawn(SmolVLANetwork(config, SIZES), seed)


def lerobot_name(name: str) -> str:
    """What LeRobot calls a tensor of pi0."""
    if name == "net.model.vlm.language_model.embed_tokens.weight":
        return "model.paligemma_with_expert.paligemma.lm_head.weight"  # tied, of which one is saved
    name = name.removeprefix("net.").replace("embed_action_time.", "")
    name = re.sub(r"^model\.vlm\.vision_tower\.", "model.vlm.vision_tower.vision_model.", name)
    name = re.sub(r"^model\.vlm\.", "paligemma_with_expert.paligemma.model.", name)
    name = re.sub(r"^model\.dit\.", "paligemma_with_expert.gemma_expert.model.", name)
    return f"model.{name}"


class Release:
    """A folder, and what a test may change of it."""

    def __init__(self, path: Path):
        self.path = path

    def json(self, name: str = "config.json") -> dict:
        return json.loads((self.path / name).read_text())

    def write_json(self, name: str, document: dict) -> None:
        (self.path / name).write_text(json.dumps(document))

    def change(self, name: str = "config.json", **values) -> None:
        self.write_json(name, self.json(name) | values)

    def tensors(self) -> dict[str, torch.Tensor]:
        return load_file(self.path / "model.safetensors")

    def statistics(self, **values) -> None:
        """Change numbers in both files of statistics; None takes them away."""
        for file in self.path.glob("policy_*normalizer_processor.safetensors"):
            found = load_file(file)
            for name, value in values.items():
                found.pop(name.replace("__", "."), None)
                if value is not None:
                    found[name.replace("__", ".")] = torch.tensor(value)
            save_file(found, file)


def write_processors(path: Path, **modes: str) -> None:
    """The files of LeRobot's processors, as `DataProcessorPipeline.save_pretrained` writes them."""
    modes = {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"} | modes
    for name, step, number in (("pre", "normalizer_processor", 5), ("post", "unnormalizer_processor", 0)):
        file = f"policy_{name}processor_step_{number}_{step}.safetensors"
        save_file({key: torch.tensor(value) for key, value in STATISTICS.items()}, path / file)
        entry = {"registry_name": step, "config": {"eps": 1e-8, "norm_map": modes}, "state_file": file}
        others = [{"registry_name": "rename_observations_processor", "config": {"rename_map": {}}}]
        document = {"name": f"policy_{name}processor", "steps": [*others, entry]}
        (path / f"policy_{name}processor.json").write_text(json.dumps(document))


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    tokenizer = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    parts = [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(parts)
    if path.name != "vlm":  # that of PaliGemma begins with a token, that of SmolVLM does not
        tokenizer.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 2)])
    tokenizer.save(str(path / "tokenizer.json"))


def write_release(path: Path, kind: str, cameras: int = 1, seed: int = 0, dtype=torch.float32) -> Release:
    path.mkdir(parents=True)
    images = {f"observation.images.image{i or ''}": {"type": "VISUAL", "shape": [3, 64, 64]} for i in range(cameras)}
    empty = {"observation.images.empty_camera_0": {"type": "VISUAL", "shape": [3, 64, 64]}}
    config = {
        "type": kind,
        "n_obs_steps": 1,
        "input_features": images | empty | {"observation.state": {"type": "STATE", "shape": [STATE]}},
        "output_features": {"action": {"type": "ACTION", "shape": [ACTION]}},
        "normalization_mapping": {"VISUAL": "IDENTITY", "STATE": "MEAN_STD", "ACTION": "MEAN_STD"},
        "chunk_size": K,
        "n_action_steps": 4,
        "max_state_dim": D,
        "max_action_dim": D,
        "empty_cameras": 1,
        "tokenizer_max_length": 12,
        "min_period": 4e-3,
        "max_period": 4.0,
    }
    if kind == "pi0":
        names = {name: lerobot_name(name) for name in pi0_network(seed).state_dict()}
        tensors = {names[name]: tensor for name, tensor in pi0_network(seed).state_dict().items()}
        tensors["model.paligemma_with_expert.gemma_expert.lm_head.weight"] = torch.ones(64, 16)
        config |= {"paligemma_variant": "gemma_2b", "num_inference_steps": 3, "image_resolution": [28, 28]}
        write_tokenizer(path)
    else:
        tensors = {f"model.{name}": tensor for name, tensor in smolvla_network(seed).state_dict().items()}
        tensors["model.vlm_with_expert.vlm.lm_head.weight"] = torch.ones(64, 32)
        config |= {"num_vlm_layers": 3, "num_steps": 3, "resize_imgs_with_padding": [32, 32], "num_expert_layers": -1}
        config |= {"self_attn_every_n_layers": 2, "expert_width_multiplier": 0.75, "attention_mode": "cross_attn"}
        (path / "vlm").mkdir()
        write_tokenizer(path / "vlm")
        (path / "vlm" / "config.json").write_text(json.dumps(SMOLVLM))
    save_file(
        {key: t.to(dtype).contiguous() for key, t in tensors.items()}, path / "model.safetensors", {"format": "pt"}
    )
    release = Release(path)
    release.write_json("config.json", config)
    write_processors(path)
    (path / "README.md").write_text("a model card\n")
    return release


@pytest.fixture(scope="session")
def make_release():
    return write_release


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folders of each kind, written once; tests that change one take `release`."""
    folder = tmp_path_factory.mktemp("released")
    return {
        f"{kind}{cameras}": write_release(folder / f"{kind}{cameras}", kind, cameras)
        for kind in ("pi0", "smolvla")
        for cameras in (1, 2)
    }


@pytest.fixture
def copied(written, tmp_path):
    """A copy of the folder of a kind, to be changed."""

    def copy(kind: str) -> Release:
        shutil.copytree(written[f"{kind}1"].path, tmp_path / "release")
        return Release(tmp_path / "release")

    return copy


class Shows:
    """A suite as far as loading looks at it."""

    name, robot = "libero_spatial", moved_gripper(Kinematics())

    def __init__(self, *views: str):
        self.views = views


@pytest.fixture(scope="session")
def shows():
    """A suite by the views that it shows."""
    return Shows


ONE, TWO = Shows("agentview"), Shows("agentview", "wrist")
LOAD = {"pi0": (load_pi0, Pi0Config), "smolvla": (load_smolvla, SmolVLAConfig)}


@pytest.fixture(scope="session")
def load(written):
    """A policy of a kind: pi0 or smolvla, of one or two cameras."""

    def made(kind: str, folder: Path | None = None, cameras: int = 1, **config):
        build, settings = LOAD[kind]
        path = folder or written[f"{kind}{cameras}"].path
        return build(path, TWO if cameras == 2 else ONE, settings(**{"lora": 4, **config}))

    return made


def key_of(count: int, seed: int = 3) -> Key:
    return Key(seed, torch.arange(count), torch.zeros(count, dtype=torch.int64))


@pytest.fixture(scope="session")
def moments(tiny):
    """Starts with V views of H x W pixels, and a key for each."""

    def make(count: int, views: int = 1, height: int = 40, width: int = 36) -> tuple[Starts, Key]:
        starts = tiny.starts(count)
        generator = torch.Generator().manual_seed(5)
        shape = (count, views, height, width, 3)
        starts.seen.frames = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        starts.seen.camera = None
        return starts, key_of(count)

    return make
