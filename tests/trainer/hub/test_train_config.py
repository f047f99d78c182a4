"""train.yaml beside the weights: it holds every option that differs from its default, and `vlkd train` reads it."""

from dataclasses import MISSING, asdict, fields
from pathlib import Path
from typing import get_args

import pytest
import yaml

from trainer.arguments import SUPPORTED_VALUES, DataArguments, ModelArguments, VLKDTrainingArguments
from trainer.cli.parser import CommandParser, flags_of_config
from trainer.cli.train import ARGUMENTS
from trainer.hub.train_config import CORE, published_train_config, save_train_config
from trainer.precision import is_bf16_fast

BASE = {"clip": "a/clip", "bart": "a/bart", "dataset_name": "a/captions"}
ON_THIS_MACHINE = {  # paths, devices, repositories, and what only shows progress
    *("output_dir", "cache_dir", "resume_from_checkpoint", "use_cpu", "dataloader_pin_memory", "local_rank"),
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    *("hub_revision", "trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "project", "run_name"),
    *("report_to", "disable_tqdm", "debug", "skip_memory_metrics", "do_train", "do_eval", "do_predict"),
    *("logging_strategy", "logging_steps", "logging_first_step", "log_level", "log_level_replica"),
    *("log_on_each_node", "ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers"),
    *("ddp_static_graph", "ddp_backend", "ddp_timeout", "include_num_input_tokens_seen", "eval_samples"),
}
OLDER_NAMES = {"gradient_checkpointing", "gradient_checkpointing_kwargs"}
CANNOT_BE_SET_HERE = {"tf32", "fp16", "fsdp", "fsdp_config"}  # they need a GPU, or several processes
VALUES = {  # where no value can be derived from the default
    "clip": "other/clip",
    "bart": "other/bart",
    "model_name_or_path": "other/vlkd",
    "attn_implementation": "eager",
    "dataset_name": "other/captions",
    "dataset_probabilities": [2.0],
    "dataset_kwargs": {"size": 3},
    "image_dir": "photos",
    "dataset_test_split": "validation",
    "image_column": ["jpg"],
    "caption_column": ["txt"],
    "max_skipped_fraction": 0.5,
    "contrastive_chunk_size": 16,
    "bf16": not is_bf16_fast("cpu"),
    "lr_scheduler_type": "linear",
    "lr_scheduler_kwargs": {"num_cycles": 2},
    "optim": "adafactor",
    "optim_args": "momentum=0.5",
    "activation_checkpointing": True,
    "activation_checkpointing_kwargs": {"every_n_layers": 2},
    "torch_compile_backend": "eager",
    "torch_compile_mode": "default",
    "torch_empty_cache_steps": 5,
    "eval_strategy": "epoch",
    "eval_steps": 7,
    "eval_accumulation_steps": 2,
    "include_for_metrics": ["inputs"],
    "save_strategy": "epoch",
    "metric_for_best_model": "accuracy",
    "greater_is_better": True,
    "data_seed": 5,
    "accelerator_config": {"split_batches": True},
    "dataloader_prefetch_factor": 4,
    "dataloader_multiprocessing_context": "spawn",
    "train_sampling_strategy": "sequential",
    "optim_target_modules": ["q_proj"],
}
BESIDE = {  # what an option needs beside it
    **dict.fromkeys(("lora_r", "lora_alpha", "lora_dropout"), {"use_peft": True}),
    "optim_target_modules": {"optim": "galore_adamw"},
    "dataloader_prefetch_factor": {"dataloader_num_workers": 1},
    "dataloader_multiprocessing_context": {"dataloader_num_workers": 1},
    "load_best_model_at_end": {"eval_strategy": "steps", "eval_steps": 500},
    "torch_compile_mode": {"torch_compile_backend": "eager"},
    "model_name_or_path": {"bart": None},
}


def names_of(*kinds: type) -> list[str]:
    return [field.name for kind in kinds for field in fields(kind) if field.init]


def other_value(name: str):
    """A value that is not the default."""
    if name in VALUES:
        return VALUES[name]
    (field,) = (field for kind in ARGUMENTS for field in fields(kind) if field.name == name)
    default = field.default_factory() if field.default is MISSING else field.default
    if isinstance(default, bool):
        return not default
    if isinstance(default, int | float):
        return default + 1 if isinstance(default, int) else default / 2 + 0.125
    choices = [choice for choice in get_args(field.type) if choice != default]
    return choices[0] if isinstance(default, str) and choices else f"other {name}"


def parse(options: dict, folder: Path) -> tuple[ModelArguments, DataArguments, VLKDTrainingArguments]:
    path = folder / "given.yaml"
    path.write_text(yaml.safe_dump(options))
    flags = [*flags_of_config(str(path)), "--output_dir", str(folder), "--use_cpu"]
    return CommandParser(ARGUMENTS).parse_args_into_dataclasses(flags)[:3]


def save(options: dict, folder: Path) -> dict:
    model, data, args = parse(options, folder)
    save_train_config(folder, args, {**asdict(model), **data.sources()})
    return yaml.safe_load((folder / "train.yaml").read_text())


RECORDED = sorted(
    set(names_of(*ARGUMENTS)) - ON_THIS_MACHINE - OLDER_NAMES - CANNOT_BE_SET_HERE - set(SUPPORTED_VALUES)
)
RECORDED += ["train_sampling_strategy"]


@pytest.mark.parametrize("name", RECORDED)
def test_option_is_written_and_read(tmp_path, name):
    """By the parser of `vlkd train`, to the same value."""
    options = {**BASE, **BESIDE.get(name, {}), name: other_value(name)}
    written = save(options, tmp_path)
    assert name in written
    given, again = parse(options, tmp_path), parse(written, tmp_path)
    values = [next(getattr(kind, name) for kind in kinds if hasattr(kind, name)) for kinds in (given, again)]
    default = next(getattr(kind, name) for kind in parse(BASE, tmp_path) if hasattr(kind, name))
    assert values[0] == values[1] and values[0] != default


def test_everything_at_once_makes_the_same_run(tmp_path):
    options = {
        **BASE,
        "itdd_weight": 3.0,
        "mask_ratio": 0.5,
        "adam_epsilon": 1e-6,
        "data_seed": 3,
        "weight_decay": 0.1,
    }
    written = save(options, tmp_path)
    given, again = parse(options, tmp_path), parse(written, tmp_path)
    assert [asdict(kind) for kind in given[:2]] == [asdict(kind) for kind in again[:2]]
    assert given[2].to_dict() == again[2].to_dict()
    assert save(written, tmp_path) == written


def test_nothing_of_this_machine_is_written(tmp_path):
    options = {"push_to_hub": True, "hub_token": "hf_secret", "hub_model_id": "me/model", "logging_steps": 3}
    options |= {
        "cache_dir": "/home/me/cache",
        "run_name": "mine",
        "resume_from_checkpoint": "/home/me/run/checkpoint-3",
    }
    options |= {"clip": "/home/me/clip", "bart": "../my/bart", "seed": 1}
    written = save({**BASE, **options}, tmp_path)
    assert not ON_THIS_MACHINE & written.keys()
    assert (written["clip"], written["bart"], written["seed"]) == ("/home/me/clip", "../my/bart", 1)  # to run again
    uploaded = published_train_config(tmp_path / "train.yaml")
    assert uploaded.startswith(b"# These weights") and b"/home/me" not in uploaded
    assert yaml.safe_load(uploaded) == {**written, "clip": "clip", "bart": "bart"}


@pytest.mark.parametrize(
    ("dataset", "uploaded"),
    [("pixparse/cc3m-wds", "data/en/train-*.tar"), ("webdataset", "train-*.tar"), ("my/photos", "train-*.tar")],
)
def test_only_paths_in_a_dataset_on_the_hub_are_published(tmp_path, monkeypatch, dataset, uploaded):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my" / "photos").mkdir(parents=True)
    save({**BASE, "dataset_name": dataset, "dataset_kwargs": {"data_files": "data/en/train-*.tar"}}, tmp_path)
    found = yaml.safe_load(published_train_config(tmp_path / "train.yaml"))
    assert found["dataset_kwargs"] == {"data_files": uploaded}


def test_defaults_are_written_for_the_core_options_alone(tmp_path):
    written = save(BASE, tmp_path)
    own = set(names_of(VLKDTrainingArguments)) & written.keys()
    assert own == set(CORE)
