"""`eval_samples`: samples.html shows what the model wrote at each evaluation, and training is not disturbed."""

import html
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import datasets
import pytest
import torch
from caption_data import load
from training_runs import build, make_parts, parameters

from trainer import EpochDataset, VLKDTrainer, VLKDTrainingArguments
from trainer.checkpoints import complete_checkpoints
from trainer.cli import main
from trainer.data.skipped import RowDecoder, SkipLog
from trainer.eval_samples import EvalSamples

ROWS = 16
SHOWN = [0, 5, 10]  # of 16 rows, three at equal distances


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


def make(parts: SimpleNamespace, folder: str = "run", **options) -> VLKDTrainer:
    """A trainer with dropout that evaluates and shows three samples every second step."""
    parts = SimpleNamespace(**{**vars(parts), "folder": f"{parts.folder}/{folder}"})
    options = {"eval_samples": 3, "eval_strategy": "steps", "eval_steps": 2, "max_steps": 4, **options}
    return build(parts, dropout=0.1, **options)


def trained(parts: SimpleNamespace, folder: str = "run", **options) -> VLKDTrainer:
    trainer = make(parts, folder, **options)  # seeds everything
    trainer.train()
    return trainer


def read_page(folder: str) -> tuple[list[int], list[str], list[list[str]]]:
    """The steps, the true captions, and the texts of each column, as they are shown from left to right."""
    page = Path(folder, "samples.html").read_bytes().decode()
    steps = [int(step) for step in re.findall(r"<th>step (\d+) ", page)]
    truths = [html.unescape(text) for text in re.findall(r'alt="row \d+">(.*?)</th>', page)]
    rows = [
        re.findall(r"<td[^>]*>(.*?)</td>", row, re.DOTALL)
        for row in re.findall(r"<tr><th title.*?</tr>", page, re.DOTALL)
    ]
    return steps, truths, [[html.unescape(text) for text in column] for column in zip(*rows, strict=True)]


def captions_of(model, processor, numbers: list[int] = SHOWN) -> list[str]:
    """The captions of single images by `generate`."""
    texts = []
    for number in numbers:
        pixels = processor(images=[load()[number]["image"]])["pixel_values"]
        ids = model.eval().generate(pixel_values=pixels, do_sample=False, max_new_tokens=40)
        texts += processor.tokenizer.batch_decode(ids, skip_special_tokens=True)
    return [text.strip() for text in texts]


def test_page_shows_what_the_model_generates(parts):
    """The newest column is by the trained model, the one after it by a model of half the steps."""
    trainer, half = trained(parts), trained(parts, "half", max_steps=2)
    steps, truths, columns = read_page(trainer.args.output_dir)
    assert steps == [4, 2]
    assert truths == [load()[number]["caption"][0] for number in SHOWN]
    assert columns[0] == captions_of(trainer.model, parts.processor)
    assert columns[1] == captions_of(half.model, parts.processor) != columns[0]
    assert [path.name for path in Path(trainer.args.output_dir).iterdir()] == ["samples.html"]  # nothing temporary


def test_weights_are_those_of_a_run_without_samples(parts):
    """Also if the checkpoint's own generation settings would draw random numbers."""
    parts.model.generation_config.do_sample = True
    watched, plain = trained(parts), trained(parts, "plain", eval_samples=0)
    expected = parameters(plain.model)
    assert all(torch.equal(value, expected[name]) for name, value in parameters(watched.model).items())
    assert not Path(plain.args.output_dir, "samples.html").exists()


def test_resumed_run_continues_the_page(parts):
    """The killed run had evaluated after its last checkpoint; the page ends up that of the straight run."""
    options = {"eval_steps": 1, "save_strategy": "steps", "save_steps": 2}
    straight, killed = trained(parts, "a/run", **options), trained(parts, "b/run", **options)
    assert read_page(killed.args.output_dir)[0] == [4, 3, 2, 1]
    shutil.rmtree(complete_checkpoints(killed.args.output_dir)[-1])
    resumed = make(parts, "b/run", **options)
    resumed.train(resume_from_checkpoint=True)
    pages = [Path(run.args.output_dir, "samples.html").read_text() for run in (straight, resumed)]
    assert pages[0] == pages[1]
    resumed.evaluate()  # as `vlkd train` does at the end: the column exists
    assert read_page(resumed.args.output_dir)[0] == [4, 3, 2, 1]
    trained(parts, "b/run", **options)  # a new run in the same folder
    assert read_page(resumed.args.output_dir)[0] == [4, 3, 2, 1]


COMPILED = {"torch_compile": True, "torch_compile_backend": "eager"}


@pytest.mark.parametrize("options", [{"bf16": True}, pytest.param(COMPILED, marks=pytest.mark.slow)])
def test_compiled_and_in_bfloat16(parts, options):
    """Compiled, the captions are those of `generate`; in bfloat16, those under autocast."""
    trainer = trained(parts, **options)
    with torch.autocast("cpu", torch.bfloat16, enabled="bf16" in options):
        expected = captions_of(trainer.accelerator.unwrap_model(trainer.model), parts.processor)
    assert read_page(trainer.args.output_dir)[2][0] == expected


def test_unreadable_images_are_left_out(parts, tmp_path, images, caplog):
    """Row 1 is no image. Row 2's caption would be markup on the page."""
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    for file, image in zip(files, images, strict=True):
        image.save(file)
    Path(files[1]).write_text("no image")
    captions = [["a dog"], ["a cat"], ["<b>a & b</b>", '"c"'], ["d"]]
    rows = datasets.Dataset.from_dict({"photo": files, "text": captions})
    decoder = RowDecoder("photo", "text", SkipLog(tmp_path, "validation", 4, max_fraction=0.5))
    trainer = build(parts, eval_samples=9, eval_strategy="steps", eval_steps=2)
    trainer.pop_callback(EvalSamples)
    trainer.add_callback(EvalSamples(trainer, EpochDataset(rows, decode=decoder)))
    assert "row 1 is left out" in caplog.text
    decoded = rows.rename_columns({"photo": "image", "text": "caption"}).cast_column("image", datasets.Image())
    assert [sample.number for sample in EvalSamples(trainer, decoded).samples] == [0, 2, 3]
    trainer.train()
    assert read_page(parts.folder)[1] == ["a dog", "<b>a & b</b>", "d"]
    page = Path(parts.folder, "samples.html").read_text()
    assert "<b>" not in page and '<th title="&lt;b&gt;a &amp; b&lt;/b&gt;\n&quot;c&quot;">' in page
    with pytest.raises(ValueError, match="eval_samples is 9, but none of the images can be read"):
        EvalSamples(trainer, decoded.select([1]))
    with pytest.raises(ValueError, match="no column 'image'"):
        EvalSamples(trainer, rows)


def test_samples_of_several_datasets_are_of_the_first(parts):
    trainer = make(parts)
    trainer.eval_dataset = {"small": EpochDataset(load(rows=3)), "large": trainer.eval_dataset}
    trainer.pop_callback(EvalSamples)
    trainer.add_callback(EvalSamples(trainer))
    trainer.train()
    steps, truths, _ = read_page(trainer.args.output_dir)
    assert steps == [4, 2] and truths == [row["caption"][0] for row in load(rows=3)]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"eval_samples": 3}, "eval_samples is 3, but eval_strategy is no; set it to steps or epoch"),
        ({"eval_samples": -1, "eval_strategy": "epoch"}, "eval_samples is -1; set it to 0"),
    ],
)
def test_wrong_options(tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        VLKDTrainingArguments(str(tmp_path), use_cpu=True, **options)


def test_processor_and_evaluation_data_are_required(parts):
    trainer = make(parts)
    collator, tokenizer = trainer.data_collator, parts.processor.tokenizer
    options = {"train_dataset": EpochDataset(load()), "data_collator": collator}
    with pytest.raises(ValueError, match="eval_samples is 3, which requires a VLKDProcessor"):
        VLKDTrainer(
            trainer.model, trainer.args, eval_dataset=EpochDataset(load()), processing_class=tokenizer, **options
        )
    with pytest.raises(ValueError, match="eval_dataset"):
        VLKDTrainer(trainer.model, trainer.args, processing_class=parts.processor, **options)


@pytest.mark.parametrize("data", [{"cache_image_features": "all"}, {"streaming": "true"}])
def test_by_command(vlkd_dir, clip_dir, tmp_path, data):
    """A feature cache replaces the images of the dataset, but the page shows them."""
    options = {"model_name_or_path": vlkd_dir, "clip": clip_dir, "dataset_name": "caption_data:load", **data}
    options |= {"dataset_test_split": "validation", "eval_strategy": "steps", "eval_samples": "2", "max_steps": "2"}
    options |= {"cache_dir": str(tmp_path / "cache"), "output_dir": str(tmp_path / "out"), "save_strategy": "no"}
    options |= {"per_device_train_batch_size": "8", "use_cpu": "true", "bf16": "false", "disable_tqdm": "true"}
    assert main(["train", *(f"--{name}={value}" for name, value in options.items())]) == 0
    steps, truths, _ = read_page(str(tmp_path / "out"))
    rows = load("validation")
    assert steps == [2] and truths == [rows[number]["caption"][0] for number in (0, 8)]


def test_tensorboard(parts):
    """The pictures once, and a table at each evaluation."""
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    trainer = trained(parts, report_to="tensorboard")
    (folder,) = Path(trainer.args.output_dir, "runs").iterdir()
    events = EventAccumulator(str(folder))
    events.Reload()
    assert events.Tags()["images"] == [f"samples/{number}" for number in SHOWN]
    assert [event.step for event in events.Images("samples/5")] == [2]
    tables = events.Tensors("samples/text_summary")
    assert [event.step for event in tables] == [2, 4]
    lines = tables[-1].tensor_proto.string_val[0].decode().splitlines()
    newest = read_page(trainer.args.output_dir)[2][0]
    for number, text, line in zip(SHOWN, newest, lines[2:], strict=True):
        cells = [str(number), load()[number]["caption"][0], " ".join(text.replace("|", " ").split())]
        assert line == f"| {' | '.join(cells)} |"
