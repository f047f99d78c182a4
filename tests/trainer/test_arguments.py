"""Each option of `TrainingArguments` works in `VLKDTrainer`, or is refused by name."""

from dataclasses import fields
from types import SimpleNamespace

import pytest
import torch
from caption_data import load
from training_runs import build, counted_stream, make_parts, one_step, train_logs
from transformers import TrainingArguments
from transformers.training_args import OptimizerNames

from trainer import VLKDTrainingArguments
from trainer.arguments import SUPPORTED_VALUES

REFUSED = {
    "label_smoothing_factor": 0.1,
    "train_sampling_strategy": "batch_rebalance",
    "length_column_name": "caption_length",
    "neftune_noise_alpha": 5.0,
    "use_liger_kernel": True,
    "liger_kernel_config": {"rope": True},
    "use_cache": True,
    "deepspeed": "ds.json",
    "parallelism_config": {"tp_size": 2},
    "remove_unused_columns": True,
    "label_names": ["labels", "input_ids"],
    "logging_nan_inf_filter": True,
    "optim": "adalomo",
    "optim_target_modules": ["q_proj"],
}
# Read by Trainer, launchers and other libraries, at places that VLKDTrainer does not touch.
OUTSIDE = {
    *("output_dir", "do_train", "do_eval", "do_predict", "local_rank", "run_name", "project", "report_to"),
    *("trackio_space_id", "trackio_bucket_id", "trackio_static_space_id", "log_level", "log_level_replica"),
    *("log_on_each_node", "disable_tqdm", "skip_memory_metrics", "debug", "use_cpu", "tf32", "full_determinism"),
    *("ddp_find_unused_parameters", "ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph"),
    *("ddp_backend", "ddp_timeout", "fsdp", "fsdp_config", "fp16", "fp16_full_eval", "torch_empty_cache_steps"),
    *("dataloader_pin_memory", "dataloader_prefetch_factor", "dataloader_multiprocessing_context"),
    *("dataloader_in_order", "save_on_each_node", "enable_jit_checkpoint", "restore_callback_states_from_checkpoint"),
    *("torch_compile_backend", "torch_compile_mode", "gradient_checkpointing", "gradient_checkpointing_kwargs"),
    *("logging_strategy", "logging_first_step", "accelerator_config", "lr_scheduler_type", "lr_scheduler_kwargs"),
    *("warmup_steps", "optim", "optim_args", "adam_beta1", "adam_beta2", "adam_epsilon", "max_grad_norm", "seed"),
    *("data_seed", "dataloader_drop_last", "include_num_input_tokens_seen"),
}
# Tested where the feature is: test_hub, test_resume, test_processes, test_trainer, test_optimizers, and below.
ELSEWHERE = {
    *("push_to_hub", "hub_token", "hub_private_repo", "hub_model_id", "hub_strategy", "hub_always_push"),
    *("hub_revision", "save_strategy", "save_steps", "save_total_limit", "save_only_model", "resume_from_checkpoint"),
    *("load_best_model_at_end", "metric_for_best_model", "greater_is_better", "ignore_data_skip"),
    *("average_tokens_across_devices", "gradient_accumulation_steps", "bf16", "weight_decay", "logging_steps"),
    *("per_device_train_batch_size", "per_device_eval_batch_size", "num_train_epochs", "max_steps"),
    *("learning_rate", "eval_strategy", "dataloader_num_workers", "dataloader_persistent_workers"),
    *("auto_find_batch_size", "eval_on_start", "eval_steps", "eval_delay", "prediction_loss_only"),
    *("eval_do_concat_batches", "eval_use_gather_object", "eval_accumulation_steps", "include_for_metrics"),
    *("batch_eval_metrics", "torch_compile", "bf16_full_eval"),
    *("activation_checkpointing", "activation_checkpointing_kwargs"),
}


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


def test_each_option_is_in_one_table():
    """Fails if a new release of transformers adds an option, which is then to be examined."""
    names = {field.name for field in fields(TrainingArguments)}
    tables = [set(REFUSED) - {"optim"}, OUTSIDE, ELSEWHERE]
    assert set().union(*tables) == names and sum(map(len, tables)) == len(names)
    assert set(SUPPORTED_VALUES) == set(REFUSED) - {"optim", "optim_target_modules"}


@pytest.mark.parametrize("name", REFUSED)
def test_option_is_refused_by_name(tmp_path, name):
    with pytest.raises(ValueError, match=rf"^{name} is .*(Set it to|Use another|Unset it)"):
        VLKDTrainingArguments(str(tmp_path), use_cpu=True, **{name: REFUSED[name]})


@pytest.mark.parametrize("optim", [optim.value for optim in OptimizerNames])
def test_optimizers_that_step_in_the_backward_pass_are_refused(tmp_path, optim):
    allowed = True
    try:
        VLKDTrainingArguments(str(tmp_path), use_cpu=True, optim=optim)
    except ValueError as error:
        allowed = "during the backward pass" not in str(error)
    assert allowed == (not optim.endswith(("lomo", "layerwise")))


def test_activation_checkpointing_computes_the_same(parts):
    expected, _ = one_step(parts, load(rows=8), per_device_train_batch_size=8)
    options = {"activation_checkpointing": True, "activation_checkpointing_kwargs": {"use_reentrant": False}}
    actual, _ = one_step(parts, load(rows=8), per_device_train_batch_size=8, **options)
    assert actual["text_projection.weight"].abs().max() > 0
    for name, value in expected.items():
        torch.testing.assert_close(actual[name], value, rtol=1e-4, atol=1e-5)


def test_compiled_step_is_the_step(parts):
    expected, log = one_step(parts, load(rows=8), per_device_train_batch_size=8)
    options = {"torch_compile": True, "torch_compile_backend": "eager"}
    actual, compiled = one_step(parts, load(rows=8), per_device_train_batch_size=8, **options)
    assert compiled["loss"] == pytest.approx(log["loss"], rel=1e-4)
    torch.testing.assert_close(
        actual["image_projection.weight"], expected["image_projection.weight"], rtol=1e-3, atol=1e-5
    )


def test_evaluation_on_start_is_that_of_the_untrained_model(parts):
    before = build(parts).evaluate()
    trainer = build(parts, eval_on_start=True, eval_strategy="steps", eval_steps=2, eval_delay=0)
    trainer.train()
    logs = {log["step"]: log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log}
    assert logs[0] == pytest.approx(before["eval_loss"], rel=1e-6) and logs[2] != logs[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"eval_accumulation_steps": 1},
        {"eval_do_concat_batches": False},
        {"batch_eval_metrics": True},
        {"include_for_metrics": ["inputs", "loss"]},
        {"eval_use_gather_object": True},
        {"prediction_loss_only": True},
    ],
)
def test_compute_metrics_sees_logits_and_labels(parts, options):
    """Its own number is the accuracy on the labels' tokens, worked out from the model beside it."""
    trainer = build(parts, load(rows=6), per_device_eval_batch_size=3, **options)
    trainer.processing_class = parts.processor
    counts = []

    def compute(prediction, compute_result: bool = True) -> dict[str, float]:
        logits, labels = prediction.predictions, prediction.label_ids
        logits = [
            part[0] if isinstance(part, tuple) else part for part in (logits if type(logits) is list else [logits])
        ]
        labels = labels if type(labels) is list else [labels]
        counts.append(sum(int((torch.as_tensor(part) != -100).sum()) for part in labels))
        if "include_for_metrics" in options:
            assert len(prediction.inputs) == 6 and len(prediction.losses) == 6
        assert all(len(part) == len(own) for part, own in zip(logits, labels, strict=True))
        return {"tokens": sum(counts)} if compute_result else {}

    trainer.compute_metrics = compute
    metrics = trainer.evaluate()
    tokens = sum(
        int((trainer.data_collator([trainer.eval_dataset[index]])["labels"] != -100).sum()) for index in range(6)
    )
    assert metrics.get("eval_tokens") == (None if "prediction_loss_only" in options else tokens)


def test_predict_takes_a_dataset(parts):
    output = build(parts).predict(load(rows=5))
    assert len(output.label_ids) == 5 and output.metrics["test_icti"] > 0


def test_evaluation_in_bfloat16(parts):
    expected = build(parts).evaluate()
    trainer = build(parts, bf16_full_eval=True)
    metrics = trainer.evaluate()
    assert metrics["eval_icti"] != expected["eval_icti"]
    assert metrics["eval_icti"] == pytest.approx(expected["eval_icti"], rel=0.05)


@pytest.mark.parametrize("metric", ["icti", "eval_icti", "eval_small_ttdm"])
def test_a_lower_loss_is_better(tmp_path, metric):
    """`Trainer` takes any metric whose name does not end in "loss" for one that is to grow."""
    args = VLKDTrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model=metric)
    assert args.greater_is_better is False
    own = VLKDTrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model=metric, greater_is_better=True)
    assert own.greater_is_better is True
    other = VLKDTrainingArguments(str(tmp_path), use_cpu=True, metric_for_best_model="accuracy")
    assert other.greater_is_better is True


@pytest.mark.parametrize(
    ("given", "expected"),
    [("true", True), ("True", True), (True, True), ("false", None), (None, None), ("a/b", "a/b")],
)
def test_resume_from_checkpoint_in_every_spelling(tmp_path, given, expected):
    args = VLKDTrainingArguments(str(tmp_path), use_cpu=True, resume_from_checkpoint=given)
    assert args.resume_from_checkpoint is expected or args.resume_from_checkpoint == expected


def test_changed_defaults_are_those_of_the_docstring(tmp_path):
    ours, theirs = (kind(str(tmp_path), use_cpu=True) for kind in (VLKDTrainingArguments, TrainingArguments))
    changed = {field.name for field in fields(theirs) if getattr(ours, field.name) != getattr(theirs, field.name)}
    listed = VLKDTrainingArguments.__doc__.split("differ from `TrainingArguments`:")[1].split("\n\n")[0]
    names = {line.strip().split(":")[0] for line in listed.splitlines() if line.startswith("        ")}
    depending = {"greater_is_better", "bf16"}  # on another option, on the device
    assert names - depending == changed - depending


# ---- out of memory


@pytest.mark.parametrize("stream", [False, True])
def test_batch_size_is_lowered_when_memory_runs_out(parts, stream):
    """The first run ends in its second step; the second one logs nothing of it."""
    trainer = build(parts, counted_stream() if stream else None, max_steps=3, auto_find_batch_size=True)
    sizes, compute_loss = [], trainer.compute_loss

    def limited(model, inputs, **kwargs):
        sizes.append(len(inputs["labels"]))
        if sizes == [4, 4]:
            compute_loss(model, inputs, **kwargs)  # the terms are noted, then the gradient does not fit
            raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return compute_loss(model, inputs, **kwargs)

    trainer.compute_loss = limited
    trainer.args.logging_steps = 3
    trainer.state.logging_steps = 3
    trainer.train()
    assert sizes == [4, 4, 3, 3, 3]
    (log,) = train_logs(trainer)
    assert log["loss"] == pytest.approx(log["ttdm"] + log["itcl"] + log["icti"], rel=1e-4)
