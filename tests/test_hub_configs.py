"""hub_configs/: each folder builds a model of the right size, and `vlkd train` reads each recipe."""

import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoConfig, AutoImageProcessor, GenerationConfig

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration
from modeling_vlkd.processing_vlkd import VLKDProcessor
from trainer.arguments import DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.cli.parser import CommandParser, flags_of_config
from trainer.cli.train import ARGUMENTS

ROOT = Path(__file__).parents[1]
HUB_CONFIGS = ROOT / "hub_configs"
BASE_BASE, BASE_LARGE, LARGE_LARGE = (
    f"vlkd-vit-{name}" for name in ("base-patch16-bart-base", "base-patch16-bart-large", "large-patch14-bart-large")
)
REAL = (BASE_BASE, BASE_LARGE, LARGE_LARGE)
ALL = (*REAL, "microworld")

BART_BASE, BART_LARGE = 139_420_416, 406_291_456
CLIP_BASE, CLIP_LARGE = 85_799_424 + 768 * 512, 303_179_776 + 1024 * 768  # tower and visual_projection


def maps(d_j: int, d: int) -> int:
    """W_e, and W_d: an MLP with 2 d hidden units."""
    return d_j * d + (d_j + 1) * 2 * d + (2 * d + 1) * d


COUNTS = {  # language side: BART and two maps; all: CLIP and its temperature too
    BASE_BASE: (BART_BASE + maps(512, 768), CLIP_BASE),
    BASE_LARGE: (BART_LARGE + maps(512, 1024), CLIP_BASE),
    LARGE_LARGE: (BART_LARGE + maps(768, 1024), CLIP_LARGE),
}


def build(name: str) -> VLKDForConditionalGeneration:
    config = AutoConfig.from_pretrained(HUB_CONFIGS / name)
    assert type(config) is VLKDConfig
    with torch.device("meta"):
        return VLKDForConditionalGeneration(config)


def recipe_of(name: str) -> dict[str, Any]:
    return yaml.safe_load((HUB_CONFIGS / name / "train.yaml").read_text())


def test_every_folder_is_examined():
    assert {path.parent.name for path in HUB_CONFIGS.glob("*/*.yaml")} == set(ALL)


@pytest.mark.parametrize("name", REAL)
def test_parameters(name):
    model = build(name)
    parts = (model.language_model, model.text_projection, model.image_projection)
    language = sum(p.numel() for part in parts for p in part.parameters())
    assert (language, model.num_parameters() - language - 1) == COUNTS[name]
    assert all(p.is_meta for p in model.parameters())


@pytest.mark.parametrize(("name", "millions", "total"), [(BASE_LARGE, 407, 494), (LARGE_LARGE, 408, 712)])
def test_with_a_linear_projector_the_language_side_has_the_papers_size(name, millions, total):
    config = AutoConfig.from_pretrained(HUB_CONFIGS / name)
    d_j, d = config.projection_dim, config.text_config.d_model
    language, vision = COUNTS[name]
    language += 2 * d_j * d - maps(d_j, d)
    assert round(language / 1e6) == millions and round((language + vision + 1) / 1e6) == total


@pytest.mark.parametrize(
    ("name", "vision", "text"),
    [
        (BASE_BASE, (768, 3072, 12, 12, 16, 224, 512), (768, 3072, 6, 6, 12)),
        (BASE_LARGE, (768, 3072, 12, 12, 16, 224, 512), (1024, 4096, 12, 12, 16)),
        (LARGE_LARGE, (1024, 4096, 24, 16, 14, 224, 768), (1024, 4096, 12, 12, 16)),
    ],
)
def test_shapes_of_the_public_checkpoints(name, vision, text):
    config = AutoConfig.from_pretrained(HUB_CONFIGS / name)
    v, t = config.vision_config, config.text_config
    assert vision == (
        v.hidden_size,
        v.intermediate_size,
        v.num_hidden_layers,
        v.num_attention_heads,
        v.patch_size,
        v.image_size,
        v.projection_dim,
    )
    assert text == (t.d_model, t.encoder_ffn_dim, t.encoder_layers, t.decoder_layers, t.encoder_attention_heads)
    assert (t.decoder_ffn_dim, t.decoder_attention_heads) == (t.encoder_ffn_dim, t.encoder_attention_heads)
    assert (v.hidden_act, t.activation_function, t.dropout) == ("quick_gelu", "gelu", 0.1)
    assert (t.vocab_size, t.max_position_embeddings, config.mask_token_id) == (50265, 1024, 50264)
    assert (t.bos_token_id, t.pad_token_id, t.eos_token_id, t.decoder_start_token_id) == (0, 1, 2, 2)
    assert config.default_prompt_ids == [0, 50264, 2] and config.projection_dim == v.projection_dim
    assert config.logit_scale_init_value == pytest.approx(4.6052, abs=1e-4)
    recipe = recipe_of(name)
    assert config.base_models == [recipe["clip"], recipe["bart"]]


@pytest.mark.parametrize("name", ALL)
def test_generation_and_images(name):
    config = AutoConfig.from_pretrained(HUB_CONFIGS / name)
    generation = GenerationConfig.from_pretrained(HUB_CONFIGS / name)
    assert (generation.decoder_start_token_id, generation.eos_token_id) == (2, 2)
    assert generation.get_generation_mode() == "greedy_search"
    assert generation.no_repeat_ngram_size is generation.forced_bos_token_id is generation.min_length is None
    images = AutoImageProcessor.from_pretrained(HUB_CONFIGS / name)
    size = config.vision_config.image_size
    assert images.crop_size == {"height": size, "width": size} and images.size == {"shortest_edge": size}
    assert json.loads((HUB_CONFIGS / name / "processor_config.json").read_text())["processor_class"] == "VLKDProcessor"
    if name in REAL:
        published = {"num_beams": 4, "no_repeat_ngram_size": 3, "forced_bos_token_id": 0}
        assert published.items() <= config.text_generation_config.items()
        assert list(images.image_mean) == [0.48145466, 0.4578275, 0.40821073]
        assert list(images.image_std) == [0.26862954, 0.26130258, 0.27577711]


def test_microworld_is_what_its_teachers_make(monkeypatch):
    """If this fails, the teachers or train.yaml have changed: run `python hub_configs/make.py`."""
    monkeypatch.chdir(ROOT)
    recipe = recipe_of("microworld")
    options = {key: recipe[key] for key in (*VLKDConfig.__annotations__, "projector_init") if key in recipe}
    joined = VLKDForConditionalGeneration.from_vision_text_pretrained(recipe["clip"], recipe["bart"], **options)
    config = AutoConfig.from_pretrained(HUB_CONFIGS / "microworld")
    written, made = config.to_dict(), joined.config.to_dict()
    for values in (written, made):
        for key in ("architectures", "transformers_version", "dtype", "_name_or_path"):
            values.pop(key, None)
        for part in ("text_config", "vision_config"):
            values[part].pop("dtype", None)
    assert written == made
    assert build("microworld").num_parameters() == joined.num_parameters()
    assert GenerationConfig.from_pretrained(HUB_CONFIGS / "microworld").to_dict() == joined.generation_config.to_dict()
    processor = VLKDProcessor.from_vision_text_pretrained(recipe["clip"], recipe["bart"])
    images = AutoImageProcessor.from_pretrained(HUB_CONFIGS / "microworld")
    assert images.to_dict() == processor.image_processor.to_dict()


def as_train_reads_it(name: str, folder: Path) -> tuple[ModelArguments, DataArguments, VLKDTrainingArguments]:
    """The options of a recipe, as `vlkd train` parses them."""
    flags = flags_of_config(str(HUB_CONFIGS / name / "train.yaml"))
    flags += ["--use_cpu", "--output_dir", str(folder)]
    return CommandParser(ARGUMENTS).parse_args_into_dataclasses(flags)[:3]


@pytest.mark.parametrize("name", ALL)
def test_recipe_is_read(name, tmp_path):
    model, data, training = as_train_reads_it(name, tmp_path)
    given = recipe_of(name)
    assert (training.clip, model.bart, data.dataset_name) == (given["clip"], given["bart"], [given["dataset_name"]])
    assert (training.learning_rate, training.mask_ratio) == (given["learning_rate"], given["mask_ratio"])
    assert (training.ttdm_weight, training.itcl_weight, training.icti_weight) == (1, 1, 1)
    assert (model.image_projector, training.itdd_weight, training.freeze) == ("mlp", 3, "none")
    if name in REAL:
        assert (data.dataset_name, data.image_column, data.caption_column) == (["pixparse/cc3m-wds"], ["jpg"], ["txt"])


@pytest.mark.parametrize("name", REAL)
def test_recipe_has_the_recommended_defaults(name):
    """Of every training and model option that does not depend on the data, the model's size or the machine."""
    depending = {
        "clip",
        "bart",
        "output_dir",
        "dataloader_num_workers",
        "learning_rate",
        "num_train_epochs",
    }
    depending |= {"per_device_train_batch_size", "eval_strategy", "eval_steps", "save_steps"}
    defaults = {
        field.name: field.default for kind in (ModelArguments, VLKDTrainingArguments) for field in fields(kind)
    }
    stated = {key: value for key, value in recipe_of(name).items() if key in defaults and key not in depending}
    assert len(stated) >= 16 and stated == {key: defaults[key] for key in stated}


# What may differ between the recipes: names, sizes, steps, batch and learning rates, and what the machine decides.
FREE = """
    clip bart output_dir attn_implementation dataset_name dataset_kwargs image_column caption_column dataset_test_split
    cache_image_features per_device_train_batch_size max_steps num_train_epochs learning_rate projector_learning_rate
    dataloader_num_workers use_cpu eval_strategy eval_steps save_strategy save_steps logging_steps logging_first_step
    report_to
""".split()


@pytest.mark.parametrize("name", REAL)
def test_the_microworld_has_the_model_and_loss_settings_of_the_real_sizes(name, tmp_path):
    """Also where one of the two recipes leaves an option at its default."""
    compared = (recipe_of(name).keys() | recipe_of("microworld").keys()) - set(FREE)
    assert compared >= {"image_tokens", "projector_init", "ttdm_weight", "freeze", "mask_ratio", "warmup_steps"}
    real, small = (
        {key: value for part in as_train_reads_it(folder, tmp_path) for key, value in vars(part).items()}
        for folder in (name, "microworld")
    )
    assert {key: small[key] for key in compared} == {key: real[key] for key in compared}


@pytest.mark.parametrize("name", ALL)
def test_every_value_says_where_it_comes_from(name):
    lines = (HUB_CONFIGS / name / "train.yaml").read_text().splitlines()
    values = [line for line in lines if line and not line.startswith("#")]
    assert len(values) > 25
    assert [line for line in values if not re.search(r" # (paper|ours|measured)\b", line)] == []
