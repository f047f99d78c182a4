"""Captions of a few validation images at each evaluation, for a web page and for experiment trackers."""

import base64
import html
import importlib
import io
from dataclasses import dataclass
from pathlib import Path
from string import Template
from typing import Any

import numpy as np
import torch
from accelerate.logging import get_logger
from datasets import Dataset
from PIL import Image
from transformers import ProcessorMixin, Trainer, TrainerCallback
from transformers.integrations import TensorBoardCallback, TrackioCallback, WandbCallback

from trainer.data.epoch_dataset import EpochDataset
from trainer.data.rows import InvalidRowError, check_column, load_image, read_captions
from trainer.evaluation.metrics_file import write_atomically

FILE = "samples.html"
KEY = "eval_samples"  # of the captions in the trainer's log_history
SIDE = 192  # pixels of the longer side of a picture on the page
MAX_NEW_TOKENS = 40  # as in `vlkd caption`
PAGE = Template("""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>Samples of $name</title>
<style>
:root { color-scheme: light dark; } body { font: 15px/1.4 system-ui, sans-serif; margin: 1.5rem; }
h1 { font-size: 1.3rem; margin: 0; } p { margin: .4rem 0 1rem; }
table { border-collapse: separate; border-spacing: 0; }
th, td { padding: .6rem .8rem; border-bottom: 1px solid #8885; text-align: left; vertical-align: top;
  font-weight: normal; min-width: 10rem; max-width: 16rem; overflow-wrap: anywhere; }
thead th { position: sticky; top: 0; z-index: 2; background: Canvas; white-space: nowrap; font-weight: bold; }
tr > :first-child { position: sticky; left: 0; z-index: 1; background: Canvas; border-right: 1px solid #8885; }
thead tr > :first-child { z-index: 3; }
img { display: block; margin-bottom: .4rem; height: 7rem; max-width: 100%; object-fit: contain;
  object-position: left; }
small { font-weight: normal; } small, .same { color: #888; }
</style></head><body>
<h1>Samples of $name</h1>
<p>Validation images with their captions, and what the model wrote at each evaluation, newest first. Unchanged captions
are gray. Hover over an image for all its captions.</p>
<table><thead><tr><th>image</th>$heads</tr></thead><tbody>
$rows
</tbody></table></body></html>
""")
logger = get_logger(__name__)  # of the main process


@dataclass(frozen=True)
class Sample:
    """A validation image.

    Attributes:
        number: its row in the dataset.
        captions: the true ones.
        picture: the image, `SIDE` pixels at most.
        pixel_values: (1, 3, height, width), float32.
    """

    number: int
    captions: list[str]
    picture: Image.Image
    pixel_values: torch.Tensor


class EvalSamples(TrainerCallback):
    """Captions the same images at each evaluation, and writes samples.html and what `report_to` names.

    All processes generate, which a sharded model requires; only the main process writes. Decoding is greedy and draws
    no random number. The captions are part of `state.log_history`, so checkpoints contain them and a resumed run
    continues the page.

    Args:
        trainer: a `VLKDTrainer`, whose `args.eval_samples` is the number of images.
        dataset: rows with an image and captions, from which the images are taken at equal distances; by default the
            trainer's `eval_dataset`, or the first of several.

    Raises:
        ValueError: `processing_class` has no image processor, a column is missing, or no image can be read.
    """

    def __init__(self, trainer: Trainer, dataset: EpochDataset | Dataset | None = None):
        count, self.trainer = trainer.args.eval_samples, trainer
        if not hasattr(trainer.processing_class, "image_processor"):
            raise ValueError(f"eval_samples is {count}, which requires a VLKDProcessor as processing_class.")
        dataset = trainer.eval_dataset if dataset is None else dataset
        dataset = next(iter(dataset.values())) if isinstance(dataset, dict) else dataset
        dataset = dataset if isinstance(dataset, EpochDataset) else EpochDataset(dataset)
        self.samples = read_samples(dataset, count, trainer.processing_class)
        self.pictures_reported = False

    def on_evaluate(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        columns = [log for log in state.log_history if KEY in log]
        if any(log["step"] == state.global_step for log in columns):
            return  # the second of several datasets, or evaluated again after training
        texts = self.write_captions()
        numbered = {str(sample.number): text for sample, text in zip(self.samples, texts, strict=True)}
        columns.append({"epoch": state.epoch, "step": state.global_step, KEY: numbered})
        state.log_history.append(columns[-1])
        if state.is_world_process_zero:
            page = render(Path(args.output_dir).absolute().name, self.samples, columns)
            Path(args.output_dir).mkdir(parents=True, exist_ok=True)
            write_atomically(Path(args.output_dir, FILE), page)
            self.report(texts, state.global_step)

    def write_captions(self) -> list[str]:
        """The captions that the model writes now."""
        trainer, processor = self.trainer, self.trainer.processing_class
        model = trainer.accelerator.unwrap_model(trainer.model)
        options = {"max_new_tokens": MAX_NEW_TOKENS, "num_beams": 1, "do_sample": False}
        texts = []
        pixel_values = torch.cat([sample.pixel_values for sample in self.samples])
        for batch in pixel_values.split(trainer.args.per_device_eval_batch_size):
            prompts = processor.encode_prompts(None, len(batch)).to(trainer.args.device)
            with trainer.accelerator.autocast():
                batch = batch.to(trainer.args.device, model.dtype)
                ids = model.generate(**prompts, pixel_values=batch, **options)
            texts += processor.post_process_generation(ids, prompts["input_ids"])
        return texts

    def report(self, texts: list[str], step: int) -> None:
        """Send the captions to the trackers of `report_to` that can show them."""
        pairs = list(zip(self.samples, texts, strict=True))
        for callback in self.trainer.callback_handler.callbacks:
            if isinstance(callback, TensorBoardCallback):
                self.report_to_tensorboard(callback.tb_writer, pairs, step)
            elif isinstance(callback, WandbCallback | TrackioCallback):
                tracker = importlib.import_module("wandb" if isinstance(callback, WandbCallback) else "trackio")
                images = {f"samples/{s.number}": tracker.Image(s.picture, caption=text) for s, text in pairs}
                tracker.log({**images, "train/global_step": step})

    def report_to_tensorboard(self, writer: Any, pairs: list[tuple[Sample, str]], step: int) -> None:
        """A table of captions at each step, and the pictures once."""
        lines = ["| image | caption | model |", "| --- | --- | --- |"]
        cells = [(str(sample.number), sample.captions[0], text) for sample, text in pairs]
        lines += [f"| {' | '.join(' '.join(cell.replace('|', ' ').split()) for cell in row)} |" for row in cells]
        writer.add_text("samples", "\n".join(lines), step)
        if not self.pictures_reported:
            for sample, _ in pairs:
                pixels = np.asarray(sample.picture)
                writer.add_image(f"samples/{sample.number}", pixels, step, dataformats="HWC")
        self.pictures_reported = True


def read_samples(dataset: EpochDataset, count: int, processor: ProcessorMixin) -> list[Sample]:
    """Read `count` rows, spread evenly over the dataset; a row that cannot be read is left out with a warning.

    Raises:
        ValueError: a column is missing, or no image can be read.
    """
    samples = []
    for number in range(0, len(dataset), max(1, len(dataset) // count))[:count]:
        try:
            row = dataset.dataset[number]
            row = row if dataset.decode is None else dataset.decode(row, number)
            if row is None:
                raise InvalidRowError(f"row {number} is invalid")  # skipped.jsonl has the reason
            for column in ("image", "caption"):
                check_column(column, row)
            image = load_image(row["image"], f"row {number}", "image")
            captions = read_captions(row["caption"], f"row {number}", "caption")
        except (InvalidRowError, OSError) as error:  # an OSError is of `datasets`, which decodes the image
            logger.warning(f"eval_samples: row {number} is left out: {error}")
            continue
        pixel_values = processor(images=[image], return_tensors="pt")["pixel_values"]
        picture = image.copy()
        picture.thumbnail((SIDE, SIDE))
        samples.append(Sample(number, captions, picture, pixel_values))
    if not samples:
        raise ValueError(f"eval_samples is {count}, but none of the images can be read; see the warnings.")
    return samples


def render(name: str, samples: list[Sample], columns: list[dict[str, Any]]) -> str:
    """The page: a row for each sample, and a column for each evaluation, given oldest first and shown newest first."""
    newest_first = columns[::-1]
    heads = [f"<th>step {log['step']:,} <small>epoch {log['epoch']:.4g}</small></th>" for log in newest_first]
    rows = []
    for sample in samples:
        texts = [log[KEY].get(str(sample.number), "") for log in newest_first]
        pairs = zip(texts, [*texts[1:], None], strict=True)  # a caption and the one before it
        cells = [f"<td{' class=same' if text == before else ''}>{html.escape(text)}</td>" for text, before in pairs]
        image = f'<img src="{data_url(sample.picture)}" alt="row {sample.number}">'
        shown, more = html.escape(sample.captions[0]), html.escape("\n".join(sample.captions))
        rows.append(f'<tr><th title="{more}">{image}{shown}</th>{"".join(cells)}</tr>')
    return PAGE.substitute(name=html.escape(name), heads="".join(heads), rows="\n".join(rows))


def data_url(picture: Image.Image) -> str:
    """A JPEG inside a URL."""
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(file.getvalue()).decode()}"
