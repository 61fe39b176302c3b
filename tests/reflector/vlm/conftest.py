"""Tiny random models from transformers' own configuration classes, written as their authors publish them."""

import json
import shutil

import pytest
import torch

FAMILIES = ("qwen2_5_vl", "qwen3_vl", "llava_onevision", "smolvlm")
TOKENS = {"image": 500, "video": 501, "open": 502, "close": 503}
SPECIAL = {
    "qwen": ("<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>", "<|im_start|>", "<|im_end|>"),
    "llava": ("<image>", "<video>", "<|im_start|>", "<|im_end|>"),
    "smolvlm": ("<image>", "<fake_token_around_image>", "<global-img>", "<end_of_utterance>", "<|im_start|>"),
}
CLIP = {"image_mean": [0.48145466, 0.4578275, 0.40821073], "image_std": [0.26862954, 0.26130258, 0.27577711]}
HALF = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
QWEN = {"patch_size": 14, "temporal_patch_size": 2, "merge_size": 2, "image_processor_type": "Qwen2VLImageProcessor"}
PICTURES = {
    "qwen2_5_vl": CLIP | QWEN | {"min_pixels": 3136, "max_pixels": 12845056},
    "qwen3_vl": HALF | QWEN | {"patch_size": 16, "size": {"shortest_edge": 4096, "longest_edge": 16777216}},
    "llava_onevision": HALF | {"size": {"height": 56, "width": 56}, "resample": 3},
    "smolvlm": HALF | {"size": {"longest_edge": 128}, "max_image_size": {"longest_edge": 32}, "resample": 1},
}
TEXT = {
    "vocab_size": 512,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 4096,
    "initializer_range": 0.2,  # large, so that answers differ between frames
}
MROPE = {"rope_type": "default", "rope_theta": 1e6, "mrope_section": [1, 1, 2]}
VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
QWEN_VISION = {
    "depth": 2,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_heads": 4,
    "out_hidden_size": 32,
    "spatial_merge_size": 2,
    "temporal_patch_size": 2,
    "initializer_range": 0.2,
}
IDS = {
    "image_token_id": TOKENS["image"],
    "video_token_id": TOKENS["video"],
    "vision_start_token_id": TOKENS["open"],
    "vision_end_token_id": TOKENS["close"],
}


def config_of(family):
    import transformers

    if family == "qwen2_5_vl":
        vision = QWEN_VISION | {"patch_size": 14, "window_size": 56, "fullatt_block_indexes": [1]}
        text = TEXT | {"rope_parameters": MROPE}
        return transformers.Qwen2_5_VLConfig(text_config=text, vision_config=vision, tie_word_embeddings=True, **IDS)
    if family == "qwen3_vl":
        vision = QWEN_VISION | {"patch_size": 16, "num_position_embeddings": 64, "deepstack_visual_indexes": [0]}
        text = TEXT | {"rope_parameters": MROPE, "head_dim": 8}
        return transformers.Qwen3VLConfig(text_config=text, vision_config=vision, **IDS)
    if family == "llava_onevision":
        vision = VISION | {"model_type": "siglip_vision_model", "image_size": 56, "patch_size": 14}
        return transformers.LlavaOnevisionConfig(
            text_config=TEXT | {"model_type": "qwen2"},
            vision_config=vision | {"vision_use_head": False},
            image_token_index=TOKENS["image"],
            video_token_index=TOKENS["video"],
            image_grid_pinpoints=[[56, 56]],
        )
    return transformers.SmolVLMConfig(
        text_config=TEXT | {"model_type": "llama"},
        vision_config=VISION | {"image_size": 32, "patch_size": 8, "initializer_range": 0.2},
        scale_factor=2,
        image_token_id=TOKENS["image"],
    )


def write_tokenizer(path, family):
    """Bytes as tokens, as GPT-2 writes them, and the family's special tokens from 500 on; built without a download."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    special = SPECIAL[family.partition("_")[0].removesuffix("2").removesuffix("3")]
    vocabulary |= {token: 500 + i for i, token in enumerate(special)}
    tokenizer = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(token, special=True) for token in special])
    tokenizer.save(str(path))


def write_model(folder, family):
    """Weights in two shards under the names of the authors' files, configuration, tokenizer, preprocessing."""
    import transformers
    from safetensors.torch import load_file, save_file

    torch.manual_seed(sum(map(ord, family)))
    config = config_of(family)
    transformers.AutoModelForImageTextToText.from_config(config).save_pretrained(folder)
    weights = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    if family == "llava_onevision":
        weights = {k.replace("vision_tower.", "vision_tower.vision_model."): v for k, v in weights.items()}
    if family == "qwen2_5_vl":  # its text configuration is not nested in the authors' file
        document = json.loads((folder / "config.json").read_text())
        text = document.pop("text_config")
        rope = {"rope_theta": 1e6, "rope_scaling": {"type": "mrope", "mrope_section": [1, 1, 2]}}
        kept = {k: v for k, v in text.items() if k not in ("model_type", "rope_parameters")}
        (folder / "config.json").write_text(json.dumps(kept | document | rope))
    names = sorted(weights)
    halves = names[: len(names) // 2], names[len(names) // 2 :]
    files = [f"model-{i + 1:05}-of-00002.safetensors" for i in range(2)]
    for file, half in zip(files, halves, strict=True):
        save_file({name: weights[name] for name in half}, folder / file, {"format": "pt"})
    places = {name: file for file, half in zip(files, halves, strict=True) for name in half}
    index = {"metadata": {"total_size": sum(t.nbytes for t in weights.values())}, "weight_map": places}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    write_tokenizer(folder / "tokenizer.json", family)
    (folder / "preprocessor_config.json").write_text(json.dumps(PICTURES[family]))


@pytest.fixture(scope="session")
def released(tmp_path_factory):
    """The folder of a family's tiny model; it is made once, and must not be changed."""
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    made = {}

    def folder(family):
        if family not in made:
            made[family] = tmp_path_factory.mktemp(family)
            write_model(made[family], family)
        return made[family]

    return folder


@pytest.fixture
def copied(released, tmp_path):
    """A copy of such a folder, to be damaged."""
    return lambda family: shutil.copytree(released(family), tmp_path / family)


@pytest.fixture(scope="session")
def reflector(released):
    """A judge of a family's tiny model in some mode, untrained; 28 pixels are enough for the tests."""
    from worldenv.reflector.transformers_vlm import VlmConfig, new_vlm_reflector

    def made(family, mode="zero-shot", **settings):
        torch.manual_seed(3)
        config = VlmConfig(vlm=released(family), **{"mode": mode, "side": 28, "samples": 6, "every": 2} | settings)
        return new_vlm_reflector(config, ("agentview",)).eval()

    return made


@pytest.fixture(scope="session")
def frames():
    """Moving pictures [N, T, 1, H, W, 3]."""

    def drawn(n=3, steps=9, height=40, width=40):
        generator = torch.Generator().manual_seed(5)
        return torch.randint(256, (n, steps, 1, height, width, 3), generator=generator, dtype=torch.uint8)

    return drawn
