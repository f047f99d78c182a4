"""What `VLKDTrainer` builds from its arguments, and what it refuses."""

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from caption_data import load
from training_runs import build, counted_stream, make_parts, train_logs
from transformers import TrainerCallback, TrainingArguments

from modeling_vlkd import VLKDModel
from trainer import EpochDataset, VLKDDataCollator, VLKDTrainer, VLKDTrainingArguments
from trainer.models import load_teacher
from trainer.optimizers import CombinedOptimizer


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path, monkeypatch) -> SimpleNamespace:
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    return make_parts(model, processor, clip_dir, str(tmp_path))


def arguments(parts: SimpleNamespace, **options) -> VLKDTrainingArguments:
    defaults = {
        "clip": parts.clip,
        "itdd_weight": 0.0,
        "max_steps": 2,
        "save_strategy": "no",
        "per_device_train_batch_size": 4,
    }
    return VLKDTrainingArguments(parts.folder, use_cpu=True, disable_tqdm=True, **{**defaults, **options})


# ---- what is built


def test_four_arguments_are_enough(parts):
    args = arguments(parts, mask_ratio=0.1, full_mask_probability=0.9, max_text_length=17, itdd_weight=0.5, seed=3)
    trainer = VLKDTrainer(parts.model, args, train_dataset=load(), processing_class=parts.processor)
    collator, tokens = trainer.data_collator, parts.processor.tokenizer
    assert (collator.infilling.mask_ratio, collator.infilling.full_mask_probability) == (0.1, 0.9)
    assert (collator.max_text_length, collator.seed, collator.with_itdd_targets) == (17, 3, True)
    assert (collator.infilling.mask_token_id, collator.decoder_start_token_id) == (tokens.mask_token_id, 2)
    trainer.train()

    row = trainer.train_dataset[5]  # t of both captions, as CLIP's own text tower gives them
    teacher, tokenizer = load_teacher(parts.clip)
    inputs = tokenizer(row["caption"], padding=True, return_tensors="pt")
    expected = torch.nn.functional.normalize(teacher(**inputs).text_embeds, dim=-1)
    torch.testing.assert_close(torch.tensor(row["teacher_embeds"]).float().view(2, -1), expected, atol=1e-3, rtol=0)


def test_length_is_cut_to_what_bart_reads(parts):
    args = arguments(parts, max_text_length=128)
    trainer = VLKDTrainer(parts.model, args, train_dataset=load(), processing_class=parts.processor)
    assert trainer.data_collator.max_text_length == 64


def test_teacher_is_that_of_the_model_s_config(parts):
    parts.model.config.base_models = [parts.clip, "some/bart"]
    rows = {"train_dataset": EpochDataset(load()), "processing_class": parts.processor}
    trainer = VLKDTrainer(parts.model, arguments(parts, clip=None), **rows)
    trainer.train()
    named = load_teacher(parts.clip)[0].state_dict()
    assert all(torch.equal(value, named[name]) for name, value in trainer.teacher.state_dict().items())


def test_a_teacher_of_the_users_own(parts):
    """Its embeddings, here CLIP's in the opposite direction, are those that BART learns."""
    tower, tokenizer = load_teacher(parts.clip)
    tower.text_projection.weight.data.neg_()
    rows = {"train_dataset": load(), "processing_class": parts.processor}
    trainer = VLKDTrainer(parts.model, arguments(parts, clip=None), teacher=(tower, tokenizer), **rows)
    usual = VLKDTrainer(parts.model, arguments(parts), **rows)
    own, expected = (torch.tensor(one.train_dataset[5]["teacher_embeds"]) for one in (trainer, usual))
    assert trainer.teacher is tower and torch.equal(own, -expected)
    trainer.train()


def test_no_teacher_is_loaded_for_cached_captions(parts):
    embedded = VLKDTrainer(parts.model, arguments(parts), train_dataset=load(), processing_class=parts.processor)
    rows = embedded.train_dataset.dataset
    trainer = VLKDTrainer(
        parts.model, arguments(parts, clip=None), train_dataset=rows, processing_class=parts.processor
    )
    trainer.train()
    assert trainer.teacher is None and trainer.state.global_step == 2


def test_datasets_given_later_are_prepared_too(parts):
    trainer = build(parts)
    for metrics in (trainer.evaluate(load(rows=5)), trainer.predict(load(rows=5), metric_key_prefix="eval").metrics):
        assert metrics["eval_icti"] > 0


def test_a_transform_of_the_rows(parts):
    """`EpochDataset` reads rows through the transform, here one that turns every image black."""

    def black(rows: dict[str, list]) -> dict[str, list]:
        seen.extend(rows["caption"])
        return {**rows, "image": [image.point(lambda value: 0) for image in rows["image"]]}

    seen, rows = [], EpochDataset(load().with_transform(black))
    trainer = VLKDTrainer(parts.model, arguments(parts), train_dataset=rows, processing_class=parts.processor)
    trainer.train()
    assert len(seen) >= 8
    (batch, *_) = trainer.get_train_dataloader()
    assert all(torch.equal(pixels, batch["pixel_values"][0]) for pixels in batch["pixel_values"])


def test_a_schedule_free_optimizer_is_told_of_training_and_evaluation(parts):
    """Also as one of two; the other, SGD, has no such methods."""

    class ScheduleFree(torch.optim.SGD):
        def train(self) -> None:
            modes.append("train")

        def eval(self) -> None:
            modes.append("eval")

    modes, projector = [], [parts.model.text_projection.weight]
    bart = ScheduleFree(parts.model.language_model.parameters(), lr=1e-3)
    optimizers = (CombinedOptimizer(bart, torch.optim.SGD(projector, lr=1e-3)), None)
    rows = {"train_dataset": load(), "eval_dataset": load(rows=4), "processing_class": parts.processor}
    args = arguments(parts, eval_strategy="steps", eval_steps=1)
    VLKDTrainer(parts.model, args, optimizers=optimizers, **rows).train()
    assert modes == ["train", "eval", "train", "eval"]


def test_rows_of_a_torch_dataset(parts):
    class Rows(torch.utils.data.Dataset):
        def __len__(self) -> int:
            return 12

        def __getitem__(self, index: int) -> dict:
            return load()[index]

    rows = {"train_dataset": Rows(), "processing_class": parts.processor}
    with pytest.raises(ValueError, match="is a Rows. Set train_sampling_strategy to 'random'"):
        VLKDTrainer(parts.model, arguments(parts), **rows).train()
    trainer = VLKDTrainer(parts.model, arguments(parts, train_sampling_strategy="random"), **rows)
    assert trainer.train().global_step == 2


# ---- what is refused


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_weights_in_half_precision_are_not_trained(parts, dtype):
    """A frozen one may have any dtype."""
    given = {"train_dataset": load(), "processing_class": parts.processor}
    parts.model.vision_model.to(dtype)
    VLKDTrainer(parts.model, arguments(parts), **given)
    with pytest.raises(ValueError, match=f"has dtype {dtype}, .* load the model with dtype=torch.float32"):
        VLKDTrainer(parts.model.to(dtype), arguments(parts), **given)
    given = {"eval_dataset": load(rows=4), "processing_class": parts.processor}
    assert VLKDTrainer(parts.model, arguments(parts), **given).evaluate()["eval_icti"] > 0  # nothing is trained


def test_own_collator_must_agree(parts):
    def own(**options) -> VLKDDataCollator:
        tokenizer = load_teacher(parts.clip)[1]
        return VLKDDataCollator.from_args(arguments(parts, **options), parts.model.config, parts.processor, tokenizer)

    def start(collator, **options) -> VLKDTrainer:
        return VLKDTrainer(parts.model, arguments(parts, **options), train_dataset=load(), data_collator=collator)

    start(own(mask_ratio=0.1, max_text_length=40), mask_ratio=0.1, max_text_length=40).train()
    for name, value in {"mask_ratio": 0.1, "full_mask_probability": 0.9, "max_text_length": 40}.items():
        with pytest.raises(ValueError, match=f"^{name} is {value} in the training arguments, but .* in data_collator"):
            start(own(max_text_length=64), **{"max_text_length": 64, name: value})
        with pytest.raises(ValueError, match=f"^{name} is {value} in the training arguments, but without effect"):
            start(lambda rows: rows, **{name: value})
    with pytest.raises(ValueError, match="^mask_ratio is 0.5 in the training arguments, but 0.1 in data_collator"):
        start(own(mask_ratio=0.1, max_text_length=64), max_text_length=64)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"processing_class": None}, "processing_class is not set; pass a VLKDProcessor"),
        ({"teacher": "some/clip"}, "teacher is a str; pass .*tokenizer.*args.clip"),
        ({"compute_loss_func": lambda *args: 0}, "override VLKDTrainer.compute_loss"),
        ({"model_init": lambda: None}, "model_init is not supported"),
        ({"args": TrainingArguments("out", use_cpu=True)}, "args is a TrainingArguments; pass VLKDTrainingArguments"),
        ({"train_dataset": list(load())}, r"a list of rows; pass .* Dataset.from_list\(rows\)"),
        ({"train_dataset": load().select([])}, "the dataset is empty; check the split"),
        ({"eval_dataset": {"small": load().select([])}}, "the dataset is empty; check the split"),
        (
            {"train_dataset": load().rename_column("caption", "text")},
            r"no column 'caption'; it has image, text, extra",
        ),
        ({"train_dataset": load().rename_column("image", "photo")}, "no column 'image'.*rename_column"),
        ({"train_dataset": {"train": load()}}, r"holds the splits train; pass one of them.*dataset\['train'\]"),
        (
            {"train_dataset": load().with_transform(lambda rows: rows)},
            r"the dataset has a transform .* pass EpochDataset\(dataset\)",
        ),
        ({"model": None}, "model is a NoneType.*VLKDForConditionalGeneration.from_pretrained"),
    ],
)
def test_bad_arguments(parts, options, message):
    given = {"args": arguments(parts), "train_dataset": load(), "processing_class": parts.processor, **options}
    with pytest.raises(ValueError, match=message):
        VLKDTrainer(given.pop("model", parts.model), **given)


def test_a_tokenizer_in_place_of_the_processor(parts):
    with pytest.raises(ValueError, match="processing_class is a .*Tokenizer.*pass a VLKDProcessor"):
        VLKDTrainer(parts.model, arguments(parts), train_dataset=load(), processing_class=parts.processor.tokenizer)


def test_a_model_that_does_not_generate(parts):
    with pytest.raises(ValueError, match="model is a VLKDModel.*VLKDForConditionalGeneration.from_pretrained"):
        VLKDTrainer(
            VLKDModel(parts.model.config), arguments(parts), train_dataset=load(), processing_class=parts.processor
        )


def test_without_arguments_the_recommended_ones_are_used(parts, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    parts.model.config.base_models = [parts.clip, "some/bart"]
    trainer = VLKDTrainer(parts.model, train_dataset=load(), processing_class=parts.processor)
    assert trainer.args.output_dir == "trainer_output" and trainer.data_collator.infilling.mask_ratio == 0.5


def test_rows_without_a_caption_name_their_columns(parts):
    trainer = build(parts, EpochDataset(load().rename_column("caption", "text")))
    expected = "'caption'; the dataset has image, text, extra. Rename .* set train_sampling_strategy to 'random'"
    with pytest.raises(ValueError, match=expected):
        trainer.train()


@pytest.mark.parametrize("options", [{"projector_learning_rate": 1e-2}, {"projector_optimizer": "adamw"}])
def test_options_that_an_optimizer_of_one_s_own_ignores(parts, options):
    optimizer = torch.optim.SGD(parts.model.parameters(), lr=0.1)
    with pytest.raises(ValueError, match="has no effect on the optimizer in `optimizers`"):
        VLKDTrainer(
            parts.model, arguments(parts, **options), processing_class=parts.processor, optimizers=(optimizer, None)
        )


@pytest.mark.parametrize("options", [{"data_seed": 1}, {"train_sampling_strategy": "sequential"}])
def test_options_that_a_stream_ignores(parts, options):
    with pytest.raises(ValueError, match=f"^{next(iter(options))} has no effect on a stream"):
        build(parts, counted_stream(), **options)


# ---- the first log line of a run


class StopAt(TrainerCallback):
    """Ctrl-C in the middle of a logging window."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            self.step = None
            raise KeyboardInterrupt


def test_a_second_run_logs_nothing_of_an_interrupted_one(parts):
    """With a learning rate of 0 and rows in order, its first line is that of a run that was never interrupted."""
    options = {"learning_rate": 0.0, "train_sampling_strategy": "sequential", "max_steps": 4, "logging_steps": 2}
    expected = build(parts, **options)
    expected.train()
    trainer = build(parts, **options)
    trainer.add_callback(StopAt(3))
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.train()
    names = ("loss", "ttdm", "itcl", "icti")
    lines = [[{name: log[name] for name in names} for log in train_logs(run)] for run in (expected, trainer)]
    assert lines[0][0] == pytest.approx(lines[1][0], rel=1e-6)


class EvaluateAt(TrainerCallback):
    """Evaluates as a step ends, before the log line of that step is written."""

    def on_step_end(self, args, state, control, **kwargs) -> None:
        self.trainer.evaluate()
        control.should_log = True  # which the evaluation's own log line has taken back


def test_evaluation_by_a_callback_leaves_the_log_whole(parts):
    """And takes no part in samples_per_second: evaluation is made to take far longer than the steps."""
    trainer = build(parts, max_steps=2, logging_steps=1)
    callback = EvaluateAt()
    callback.trainer = trainer
    trainer.add_callback(callback)
    evaluation_loop = trainer.evaluation_loop

    def slow(*args, **kwargs):
        time.sleep(2)
        return evaluation_loop(*args, **kwargs)

    trainer.evaluation_loop = slow
    trainer.train()
    assert [log["step"] for log in train_logs(trainer)] == [1, 2]
    assert all(log["samples_per_second"] > 4 / 2 for log in train_logs(trainer))


def test_checkpoints_are_limited(parts):
    build(parts, max_steps=4, save_strategy="steps", save_steps=1).train()
    assert sorted(path.name for path in Path(parts.folder).glob("checkpoint-*")) == ["checkpoint-3", "checkpoint-4"]


def test_log_by_the_user_is_no_line_of_training(parts):
    trainer = build(parts)
    trainer.log({"loss": 1.0})
    assert trainer.state.log_history[-1]["loss"] == 1.0 and "ttdm" not in trainer.state.log_history[-1]
