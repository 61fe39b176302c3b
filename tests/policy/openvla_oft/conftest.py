"""Tiny checkpoints of OpenVLA-OFT with random weights, in the layout in which their authors publish them."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("transformers")
pytest.importorskip("peft")

from worldenv.interfaces.observation import Starts  # noqa: E402
from worldenv.policy.openvla_oft.config import OpenVLAConfig  # noqa: E402
from worldenv.policy.openvla_oft.network import ActionHead, Mlp, Network, TowerSizes, language_config  # noqa: E402
from worldenv.policy.openvla_oft.policy import load_openvla_oft  # noqa: E402
from worldenv.robot.kinematics import Kinematics  # noqa: E402
from worldenv.robot.robot import moved_gripper  # noqa: E402

WIDTH, SIZE, VOCABULARY = 32, 28, 32064
TEXT = {
    "model_type": "llama",
    "vocab_size": VOCABULARY,
    "hidden_size": WIDTH,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": 512,
    "pad_token_id": 32000,
    "torch_dtype": "bfloat16",
}
TOWERS = (TowerSizes(32, 14, 2, 64, 3, 4, 16), TowerSizes(48, 14, 2, 40, 2, None, 16))  # with the unused last block
SAID = "<s> In : What action should the robot take to ? Out put place move slide red green block pad puck on"
WORDS = SAID.split()
NUMBERS = {"q01": -0.9, "q99": 0.7, "min": -1.0, "max": 1.0, "mean": 0.0, "std": 1.0}


def statistics(n: int, **more) -> dict:
    return {name: [value] * n for name, value in NUMBERS.items()} | more


def network(seed: int) -> Network:
    """With every parameter drawn, so that none can be left out unseen."""
    torch.manual_seed(seed)
    made = Network(TOWERS, language_config(TEXT), 32000)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def drawn(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {f"module.{key}": 0.3 * torch.randn_like(tensor) for key, tensor in module.state_dict().items()}


class Release:
    """A folder, and what a test may change of it."""

    def __init__(self, path: Path):
        self.path = path

    def json(self, name: str) -> dict:
        return json.loads((self.path / name).read_text())

    def write_json(self, name: str, document: dict) -> None:
        (self.path / name).write_text(json.dumps(document))

    def change(self, name: str, **values) -> None:
        self.write_json(name, self.json(name) | values)

    def tensors(self) -> dict[str, torch.Tensor]:
        return {k: t for file in self.path.glob("*.safetensors") for k, t in load_file(file).items()}


def write_weights(path: Path, tensors: dict[str, torch.Tensor], shards: int = 2) -> None:
    keys, total = sorted(tensors), sum(t.numel() * t.element_size() for t in tensors.values())
    placed = {}
    for i in range(shards):
        name = f"model-{i + 1:05}-of-{shards:05}.safetensors"
        part = {key: tensors[key].clone().contiguous() for key in keys[i::shards]}
        save_file(part, path / name, {"format": "pt"})
        placed |= dict.fromkeys(part, name)
    index = {"metadata": {"total_size": total}, "weight_map": placed}
    (path / "model.safetensors.index.json").write_text(json.dumps(index))


def write_tokenizer(path: Path) -> None:
    from tokenizers import Tokenizer, models, pre_tokenizers, processors

    vocabulary = {word: 1 + 7 * i for i, word in enumerate(WORDS)} | {"<unk>": 0, "</s>": 2, "<pad>": 32000}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer.save(str(path / "tokenizer.json"))


def write_release(path: Path, kind: str = "l1", seed: int = 0, dtype: torch.dtype = torch.float32) -> Release:
    """kind: "l1" (proprioception, one L1 head) or "tokens" (neither)."""
    path.mkdir(parents=True)
    tensors = {key: tensor.to(dtype) for key, tensor in network(seed).state_dict().items()}
    fused = "vision_backbone.fused_featurizer"
    tensors |= {f"vision_backbone.featurizer.norm.{part}": torch.ones(32, dtype=dtype) for part in ("weight", "bias")}
    tensors |= {f"{fused}.norm.{part}": torch.ones(48, dtype=dtype) for part in ("weight", "bias")}
    tensors[f"{fused}.attn_pool.latent"] = torch.ones(1, 1, 48, dtype=dtype)
    tensors[f"{fused}.attn_pool.q.weight"] = torch.ones(48, 48, dtype=dtype)
    write_weights(path, tensors)
    config = {
        "model_type": "openvla",
        "architectures": ["OpenVLAForActionPrediction"],
        "auto_map": {"AutoModelForVision2Seq": "modeling_prismatic.OpenVLAForActionPrediction"},
        "vision_backbone_id": "dinosiglip-vit-so-224px",
        "llm_backbone_id": "llama2-7b-pure",
        "use_fused_vision_backbone": True,
        "image_sizes": [SIZE, SIZE],
        "timm_model_ids": ["vit_large_patch14_reg4_dinov2.lvd142m", "vit_so400m_patch14_siglip_224"],
        "timm_override_act_layers": [None, None],
        "pad_token_id": 32000,
        "pad_to_multiple_of": 64,
        "n_action_bins": 256,
        "text_config": TEXT,
    }
    release = Release(path)
    release.write_json("config.json", config)
    entry = {"action": statistics(7, mask=[True] * 6 + [False]), "proprio": statistics(8)}
    release.write_json("dataset_statistics.json", {"libero_spatial_no_noops": entry})
    colours = {"means": [[0.484, 0.455, 0.406], [0.5] * 3], "stds": [[0.228, 0.223, 0.224], [0.5] * 3]}
    release.write_json("preprocessor_config.json", colours)
    (path / "modeling_prismatic.py").write_text("raise SystemExit('code of a stranger was executed')\n")
    write_tokenizer(path)
    if kind == "l1":
        torch.save(drawn(ActionHead(WIDTH, 7)), path / "action_head--150000_checkpoint.pt")
        torch.save(drawn(Mlp(8, WIDTH, WIDTH)), path / "proprio_projector--150000_checkpoint.pt")
    return release


@pytest.fixture(scope="session")
def make_release():
    return write_release


@pytest.fixture(scope="session")
def written(tmp_path_factory):
    """The folders of each kind, written once; tests that change one take `release`."""
    folder = tmp_path_factory.mktemp("released")
    return {kind: write_release(folder / kind, kind) for kind in ("l1", "tokens")}


@pytest.fixture
def release(written, tmp_path):
    """A copy of the folder with an L1 head, to be changed."""
    shutil.copytree(written["l1"].path, tmp_path / "release")
    return Release(tmp_path / "release")


class Shows:
    """A suite as far as loading looks at it."""

    name, robot = "libero_spatial", moved_gripper(Kinematics())

    def __init__(self, *views: str):
        self.views = views


@pytest.fixture(scope="session")
def two_views():
    return Shows("agentview", "wrist")


@pytest.fixture(scope="session")
def one_view():
    return Shows("agentview")


@pytest.fixture
def load(written, two_views, one_view):
    """A policy: "l1" of two views and proprioception, "l1, one view" of one, "tokens" of one and no proprioception."""

    def made(kind: str = "l1", folder: Path | None = None, **config):
        suite = two_views if kind == "l1" else one_view
        views = {"views": ("agentview",)} if kind == "l1, one view" else {}
        path = folder or written["tokens" if kind == "tokens" else "l1"].path
        return load_openvla_oft(path, suite, OpenVLAConfig(**{"lora": 4, **views, **config}))

    return made


@pytest.fixture(scope="session")
def moments(tiny):
    """Starts with V views of H x W pixels."""

    def make(count: int, views: int = 1, height: int = 40, width: int = 36) -> Starts:
        starts = tiny.starts(count)
        generator = torch.Generator().manual_seed(5)
        shape = (count, views, height, width, 3)
        starts.seen.frames = torch.randint(256, shape, generator=generator, dtype=torch.uint8)
        starts.seen.camera = None
        return starts

    return make
