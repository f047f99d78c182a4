"""The training loop: what moves, what is logged, and that accumulation, processes and the cache change nothing."""

import copy
from types import SimpleNamespace

import pytest
import torch
from cached_data import add_image_features, add_teacher_embeds
from caption_data import load
from torch import nn
from training_runs import assert_same_gradients, build, make_parts, one_step, parameters, train_logs

from trainer import VLKDTrainingArguments
from trainer.callbacks import RunningMeans
from trainer.losses import icti, itcl, ttdm
from trainer.models import load_teacher

TERMS = ("ttdm", "itcl", "icti")


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


# ---- what learns


@pytest.mark.parametrize("freeze", ["none", "decoder", "all"])
def test_trainable_parameters_move_and_frozen_ones_stay(parts, freeze):
    trainer = build(parts, max_steps=1, freeze=freeze)
    before = parameters(trainer.model)
    trainer.train()
    trainable = {name for name, parameter in trainer.model.named_parameters() if parameter.requires_grad}
    moved = {name for name, parameter in trainer.model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == trainable
    maps = trainer.model.projection_parameter_names()
    assert moved == maps if freeze == "all" else moved > maps
    assert any("decoder.layers" in name for name in moved) == (freeze == "none")
    assert not any(name.startswith(("vision_model", "visual_projection", "logit_scale")) for name in moved)


def test_teacher_and_clip_stay_frozen_and_in_eval_mode(parts):
    trainer = build(parts)
    before = copy.deepcopy(trainer.teacher.state_dict())
    trainer.train()
    assert not trainer.teacher.training and not trainer.model.vision_model.training
    assert all(torch.equal(value, before[name]) for name, value in trainer.teacher.state_dict().items())


def test_parameter_groups(parts):
    trainer = build(parts, weight_decay=0.1, projector_learning_rate=0.5)
    optimizer = trainer.create_optimizer()
    names = {id(parameter): name for name, parameter in trainer.model.named_parameters()}
    maps = trainer.model.projection_parameter_names()
    grouped = [names[id(parameter)] for group in optimizer.param_groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(name for name, p in trainer.model.named_parameters() if p.requires_grad)
    for group in optimizer.param_groups:
        assert len({names[id(parameter)] in maps for parameter in group["params"]}) == 1
        assert group["lr"] == (0.5 if names[id(group["params"][0])] in maps else 1e-3)
        assert all(
            ("bias" in names[id(p)] or "norm" in names[id(p)]) == (group["weight_decay"] == 0) for p in group["params"]
        )


def test_projection_learning_rate_is_scheduled_too(parts):
    trainer = build(parts, freeze="all", projector_learning_rate=0.25)
    trainer.train()
    assert {group["lr"] for group in trainer.optimizer.param_groups} == {0.25}


def test_weight_of_zero_leaves_a_loss_out(parts):
    trainer = build(parts, max_steps=1, ttdm_weight=0, itcl_weight=0)
    before = parameters(trainer.model)
    trainer.train()
    assert torch.equal(trainer.model.text_projection.weight, before["text_projection.weight"])
    log = train_logs(trainer)[0]
    assert log["loss"] == pytest.approx(log["icti"], rel=1e-3) and log["ttdm"] > 0 and log["itcl"] > 0


def test_it_learns(parts):
    trainer = build(parts, max_steps=40, num_train_epochs=10, logging_steps=10, learning_rate=3e-3)
    trainer.train()
    logs = train_logs(trainer)
    assert all(logs[-1][term] < logs[0][term] for term in TERMS)


# ---- losses and logs


def test_terms_are_those_of_the_losses(parts):
    trainer = build(parts, per_device_eval_batch_size=16)
    metrics = trainer.evaluate()
    model = trainer.model.eval()
    batch = trainer.data_collator([trainer.eval_dataset[index] for index in range(16)])
    with torch.no_grad():
        teacher = trainer.teacher(batch.pop("teacher_input_ids"), batch.pop("teacher_attention_mask")).text_embeds
        labels, _ = batch.pop("labels"), batch.pop("row_names")
        student = model.get_text_features(batch["caption_input_ids"], batch["caption_attention_mask"]).pooler_output
        image = model.get_image_features(batch["pixel_values"]).pooler_output
        logits = model(**batch).logits
    assert metrics["eval_ttdm"] == pytest.approx(ttdm(student, nn.functional.normalize(teacher)).item(), rel=1e-4)
    assert metrics["eval_itcl"] == pytest.approx(itcl(student, image, model.logit_scale).item(), rel=1e-4)
    assert metrics["eval_icti"] == pytest.approx(icti(logits, labels).item(), rel=1e-4)


def test_logged_loss_is_the_weighted_sum_of_the_logged_terms(parts):
    weights = {"ttdm": 0.5, "itcl": 2.0, "icti": 3.0, "itdd": 1.5}
    options = {f"{name}_weight": weight for name, weight in weights.items()}
    trainer = build(parts, load(), max_steps=4, logging_steps=2, gradient_accumulation_steps=2, **options)
    trainer.train()
    metrics = trainer.evaluate()
    for log in train_logs(trainer):
        assert log["loss"] == pytest.approx(sum(weights[name] * log[name] for name in weights), rel=1e-4)
        assert log["samples_per_second"] > 0
    assert metrics["eval_loss"] == pytest.approx(sum(weights[name] * metrics[f"eval_{name}"] for name in weights))


def test_evaluation_is_the_same_whenever_it_runs(parts):
    trainer = build(parts, num_train_epochs=3, max_steps=-1, learning_rate=0.0, eval_strategy="epoch")
    trainer.train()
    losses = [log["eval_loss"] for log in trainer.state.log_history if "eval_loss" in log]
    assert len(losses) == 3 and len(set(losses)) == 1
    assert len({log["icti"] for log in train_logs(trainer)}) > 8  # while training draws anew in every epoch


def test_evaluation_means_do_not_depend_on_the_batch_size(parts):
    trainers = [build(parts, load(rows=11), per_device_eval_batch_size=size) for size in (3, 11)]
    by_size = [trainer.evaluate() for trainer in trainers]
    for term in ("eval_ttdm", "eval_icti"):
        assert by_size[0][term] == pytest.approx(by_size[1][term], rel=1e-5)


def test_evaluation_of_named_splits(parts):
    trainer = build(parts)
    metrics = trainer.evaluate({"small": load(rows=4), "large": load(rows=8)})
    assert metrics["eval_small_icti"] != metrics["eval_large_icti"]


def test_epochs_reach_the_rows(parts):
    trainer = build(parts, max_steps=-1, num_train_epochs=2)
    seen = []
    collate = trainer.data_collator
    trainer.data_collator = lambda rows: seen.extend(row["epoch"] for row in rows) or collate(rows)
    trainer.train()
    assert seen == [0] * 16 + [1] * 16


def test_running_means_are_weighted_and_start_anew():
    accelerator = SimpleNamespace(reduce=lambda tensor, reduction: tensor)
    means = RunningMeans()
    means.add({"a": torch.tensor(3.0) * 1}, {"a": 1})
    means.add({"a": torch.tensor(6.0) * 2}, {"a": torch.tensor(2)})
    assert means.pop(accelerator) == {"a": 5.0}
    means.add({"a": torch.tensor(1.0)}, {"a": 1})
    assert means.pop(accelerator) == {"a": 1.0}


# ---- the same step in other layouts


def test_accumulated_step_is_the_step_of_the_whole_batch(parts):
    """ITCL is left out: its negatives are those of a batch. The labels are ragged, so means of means would differ."""
    options = {"itcl_weight": 0.0}
    whole, log = one_step(parts, load(rows=8), per_device_train_batch_size=8, **options)
    accumulated, logged = one_step(
        parts, load(rows=8), per_device_train_batch_size=4, gradient_accumulation_steps=2, **options
    )
    assert_same_gradients(accumulated, whole)
    for term in ("loss", "ttdm", "icti"):
        assert logged[term] == pytest.approx(log[term], rel=1e-5)


@pytest.mark.parametrize(
    ("image_tokens", "image_features"),
    [("all", "all"), ("patch", "all"), ("pooled", "pooled")],
)
def test_step_from_the_cache_is_the_live_step(parts, tmp_path, image_tokens, image_features):
    parts.model.config.image_tokens = image_tokens
    cached = add_image_features(load(rows=8), parts.model, parts.processor, image_features, cache_dir=str(tmp_path))
    cached = add_teacher_embeds(cached, *load_teacher(parts.clip), cache_dir=str(tmp_path))
    live_gradients, live = one_step(parts, load(rows=8), per_device_train_batch_size=8)
    gradients, log = one_step(parts, cached, per_device_train_batch_size=8)
    for term in ("loss", *TERMS):
        assert log[term] == pytest.approx(live[term], rel=2e-3)
    name = "image_projection.weight"
    torch.testing.assert_close(
        gradients[name], live_gradients[name], rtol=0.02, atol=2e-3 * live_gradients[name].std()
    )


def test_bf16_autocast(parts):
    trainer = build(parts, load(), bf16=True, max_steps=3)
    trainer.train()
    assert all(torch.tensor(log["loss"]).isfinite() for log in train_logs(trainer))
    assert {parameter.dtype for parameter in trainer.model.parameters()} == {torch.float32}


# ---- bad input


def test_no_teacher_and_no_cache(parts):
    parts.clip = None  # and the model was made from local folders
    with pytest.raises(ValueError, match="clip is not set, .* has no base_models"):
        build(parts)


def test_decoder_distillation_brings_the_image_near_the_caption(parts):
    weights = {"ttdm_weight": 0, "itcl_weight": 0, "icti_weight": 0, "itdd_weight": 1.0}
    trainer = build(parts, max_steps=40, freeze="all", learning_rate=1e-2, **weights)
    trainer.train()
    logs = train_logs(trainer)
    assert logs[-1]["loss"] == pytest.approx(logs[-1]["itdd"], rel=1e-4)
    first, last = (sum(log["itdd"] for log in epoch) for epoch in (logs[:4], logs[-4:]))
    assert last < 0.7 * first


def test_no_readings_to_distil(parts):
    trainer = build(parts, itdd_weight=1.0)
    trainer.data_collator.with_itdd_targets = False
    with pytest.raises(ValueError, match="with_itdd_targets=True"):
        trainer.train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ttdm_weight": -1.0}, "ttdm_weight is -1"),
        ({"itdd_weight": float("nan")}, "itdd_weight is nan"),
        ({"learning_rate": -1.0}, "learning_rate is -1"),
        ({"projector_learning_rate": float("nan")}, "projector_learning_rate is nan"),
        ({"mask_ratio": 2.0}, "mask_ratio is 2"),
        ({"ttdm_weight": 0, "itcl_weight": 0, "icti_weight": 0, "itdd_weight": 0}, "are all 0"),
        ({"max_text_length": 2}, "max_text_length is 2"),
        ({"projector_learning_rate": -1.0}, "projector_learning_rate is -1"),
        ({"projector_optimizer": "sgd"}, "projector_optimizer is 'sgd'; choose one of adamw, muon"),
        ({"freeze": "encoder"}, "freeze is 'encoder'; choose one of none, decoder, all"),
    ],
)
def test_bad_arguments(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        VLKDTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)
