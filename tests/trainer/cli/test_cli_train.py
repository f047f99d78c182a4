"""`vlkd train` from a YAML file to a folder that loads, and its messages."""

import json
import shutil
from functools import partial
from pathlib import Path

import datasets
import pytest
import torch
import yaml
from caption_data import load

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from trainer.arguments import ModelArguments
from trainer.build import load_model
from trainer.cli import main

SUPPORT = Path(__file__).parents[2] / "support"


@pytest.fixture
def config(write_config, monkeypatch):
    """Writes a run's YAML file; the working directory holds the module that its dataset names."""
    monkeypatch.chdir(SUPPORT)
    return partial(write_config, dataset_name="caption_data:load", dataset_kwargs={"rows": 12})


def complaint(capsys, *argv: str) -> str:
    assert main(["train", *argv]) == 2
    error = capsys.readouterr().err
    return next(line for line in error.splitlines() if line.startswith("vlkd: error: "))


def test_run_leaves_a_complete_model(config, tmp_path, images):
    path = config(
        dataset_test_split="validation",
        cache_image_features="all",
    )
    assert main(["train", "--config", path]) == 0
    folder = tmp_path / "out"
    model, processor = VLKDForConditionalGeneration.from_pretrained(folder), VLKDProcessor.from_pretrained(folder)
    assert len(model.generate(**processor(images=images[:2]), max_new_tokens=5)) == 2
    metrics = json.loads((folder / "all_results.json").read_text())
    assert {"train_loss", "eval_loss", "eval_ttdm", "eval_itcl", "eval_icti"} <= metrics.keys()
    history = json.loads((folder / "trainer_state.json").read_text())["log_history"]
    assert [log["step"] for log in history if "icti" in log] == [1, 2]
    assert {name.split("-")[0] for name in map(str, Path(tmp_path, "cache").iterdir())} and history[-1][
        "eval_icti"
    ] > 0


@pytest.mark.parametrize(
    "options, steps",
    [
        ({"eval_strategy": "no"}, [2]),
        ({"eval_strategy": "steps", "eval_steps": 1}, [1, 2]),
        ({"eval_strategy": "steps", "eval_steps": 2000}, [2]),
        ({"eval_strategy": "steps", "eval_steps": 1, "save_steps": 1, "load_best_model_at_end": True}, [1, 2, 2]),
    ],
)
def test_the_final_model_is_evaluated_once(config, tmp_path, options, steps):
    assert main(["train", "--config", config(dataset_test_split="validation", **options)]) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    losses = [(log["step"], log["eval_loss"]) for log in history if "eval_loss" in log]
    assert [step for step, _ in losses] == steps
    metrics = json.loads((tmp_path / "out" / "all_results.json").read_text())
    assert metrics["eval_loss"] == losses[-1][1] and "train_loss" in metrics


def test_trained_model_can_be_trained_further(config, tmp_path, capsys):
    assert main(["train", "--config", config()]) == 0
    first = str(tmp_path / "out")
    path = config(model_name_or_path=first, bart=None, output_dir=str(tmp_path / "second"), freeze="all")
    assert main(["train", "--config", path]) == 0
    before, after = (VLKDForConditionalGeneration.from_pretrained(folder) for folder in (first, tmp_path / "second"))
    after = dict(after.named_parameters())
    moved = {name for name, parameter in before.named_parameters() if not torch.equal(parameter, after[name])}
    assert moved == before.projection_parameter_names()
    assert "image_tokens" not in yaml.safe_load((tmp_path / "second" / "train.yaml").read_text())
    changed = config(model_name_or_path=first, bart=None, image_tokens="pooled")
    assert "image_tokens is pooled, but model_name_or_path was built with all" in complaint(
        capsys, "--config", changed
    )


def test_resume_takes_the_newest_checkpoint(config, tmp_path, capsys):
    assert main(["train", "--config", config(save_steps=1)]) == 0
    assert main(["train", "--config", config(max_steps=3), "--resume_from_checkpoint", "True"]) == 0
    history = json.loads((tmp_path / "out" / "trainer_state.json").read_text())["log_history"]
    assert [log["step"] for log in history if "icti" in log] == [1, 2, 3]
    path = config(output_dir=str(tmp_path / "empty"), resume_from_checkpoint=True)
    assert "no complete checkpoint" in complaint(capsys, "--config", path)


def test_flags_win_over_the_file(config, tmp_path):
    path = config(learning_rate=1e-3)
    flags = ["--output_dir", str(tmp_path / "other"), "--max-steps", "1", "--dataset_kwargs", "{rows: 4}", "--bf16"]
    assert main(["train", "--config", path, *flags]) == 0
    state = json.loads((tmp_path / "other" / "trainer_state.json").read_text())
    assert state["global_step"] == 1 and not (tmp_path / "out").exists()
    args = torch.load(tmp_path / "other" / "training_args.bin", weights_only=False)
    assert args.learning_rate == 1e-3 and args.bf16


def test_teacher_of_a_trained_model_is_the_clip_it_was_made_from(
    config, tmp_path, capsys, clip_dir, bart_dir, vlkd_dir
):
    """`clip` may be left out where the model's config names it, and must be set where it does not."""
    path = config(model_name_or_path=vlkd_dir, bart=None, clip=None)
    assert "clip is not set, and the model's config has no base_models" in complaint(capsys, "--config", path)
    known = tmp_path / "known"
    shutil.copytree(vlkd_dir, known)
    values = json.loads((known / "config.json").read_text())
    (known / "config.json").write_text(json.dumps({**values, "base_models": [clip_dir, bart_dir]}))
    assert main(["train", "--config", config(model_name_or_path=str(known), bart=None, clip=None)]) == 0


@pytest.mark.parametrize("saved", ["split", "splits", "files"])
def test_local_folders(config, tmp_path, saved):
    dataset = load(rows=8)
    folder = tmp_path / "data"
    if saved == "split":
        dataset.save_to_disk(folder)
    elif saved == "splits":
        datasets.DatasetDict(train=dataset, validation=dataset).save_to_disk(folder)
    else:
        folder.mkdir()
        dataset.to_parquet(folder / "train-0.parquet")
    assert main(["train", "--config", config(dataset_name=str(folder), dataset_kwargs=None, max_steps=1)]) == 0


def test_attention_is_set_in_both_towers(clip_dir, bart_dir):
    model, _ = load_model(ModelArguments(bart=bart_dir, attn_implementation="eager"), clip_dir)
    assert {module.config._attn_implementation for module in model.modules() if hasattr(module, "config")} == {"eager"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lerning_rate": 1}, "unknown key 'lerning_rate' in "),
        ({"learning_rate": "fast"}, "--learning_rate"),
        ({"freeze": "encoder"}, "invalid choice: 'encoder'"),
        ({"use_peft": True, "lora_r": 0}, "lora_r is 0; it must be 1 or more"),
        ({"use_peft": True, "lora_dropout": 1}, "lora_dropout is 1.0; it must be at least 0"),
        ({"lora_alpha": 4}, "lora_alpha is 4, which requires use_peft: true"),
        ({"use_peft": True, "freeze": "all"}, "set freeze='none'"),
        ({"use_peft": True, "push_to_hub": True}, "hub_strategy=every_save would push checkpoints"),
        ({"clip": None}, "clip is not set"),
        ({"bart": None}, "set either bart"),
        ({"clip": "./nowhere"}, "image processor of `clip`='./nowhere'"),
        (
            {"model_name_or_path": "./nowhere", "bart": None},
            "'./nowhere' is not a VLKD checkpoint",
        ),
        ({"model_name_or_path": ".", "bart": None}, "model_name_or_path: '.' is not a VLKD checkpoint"),
        ({"dataset_name": None}, "dataset_name is not set"),
        ({"dataset_name": "./nowhere"}, "dataset './nowhere' does not exist: give a folder, or a name on the Hub"),
        ({"dataset_name": "a/b/c"}, "dataset 'a/b/c' does not exist"),
        ({"dataset_name": "caption_data:nothing"}, "'module:function'"),
        ({"dataset_name": "no_module:load"}, "No module named 'no_module'"),
        ({"dataset_kwargs": "rows"}, "dataset_kwargs is 'rows'"),
        ({"caption_column": "text"}, "caption_column: dataset 'caption_data:load' has no column 'text'; it has image"),
        ({"image_column": "picture"}, "image_column: dataset"),
        ({"cache_image_features": "pooled"}, "image_tokens=all"),
        ({"eval_strategy": "epoch"}, "eval_strategy is epoch, but dataset_test_split is not set"),
        ({"mask_ratio": 2}, "mask_ratio is 2"),
        ({"output_dir": "/dev/null/out"}, "Not a directory: '/dev/null/out"),
        ({"contrastive_chunk_size": 0}, "contrastive_chunk_size is 0"),
    ],
)
def test_mistakes_are_one_line(config, capsys, changes, message):
    assert message in complaint(capsys, "--config", config(**changes))


def test_mistakes_on_the_command_line(config, capsys, tmp_path):
    path = config(lerning_rate=1)
    assert f"unknown key 'lerning_rate' in {path}. Did you mean learning_rate" in complaint(capsys, "--config", path)
    path = config(zzz=1)
    assert f"unknown key 'zzz' in {path}. `vlkd train --help_all` lists the keys." in complaint(
        capsys, "--config", path
    )
    path = config()
    assert "unknown key 'freze'. Did you mean freeze" in complaint(capsys, "--config", path, "--freze", "all")
    assert "unexpected word" in complaint(capsys, "--config", path, "word")
    assert "missing.yaml" in complaint(capsys, "--config", str(tmp_path / "missing.yaml"))
    (tmp_path / "list.yaml").write_text("- a\n- b\n")
    assert "no `key: value` lines" in complaint(capsys, "--config", str(tmp_path / "list.yaml"))
    for damage in (b"clip: caf\xe9", b"[" * 5_000):
        (tmp_path / "list.yaml").write_bytes(damage)
        assert "list.yaml cannot be read" in complaint(capsys, "--config", str(tmp_path / "list.yaml"))


@pytest.mark.parametrize("saved", [load(rows=4), datasets.DatasetDict(train=load(rows=4))])
def test_missing_split_of_a_saved_dataset(config, capsys, tmp_path, saved):
    saved.save_to_disk(tmp_path / "data")
    path = config(dataset_name=str(tmp_path / "data"), dataset_kwargs=None, dataset_test_split="validation")
    assert "has no split 'validation'; it has train" in complaint(capsys, "--config", path)
