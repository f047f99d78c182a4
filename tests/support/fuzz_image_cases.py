"""One corrupted image through the reader of `vlkd caption`, the processor, and the trainer's rows and collator."""

import json
from pathlib import Path

import numpy as np
import torch
from fuzz import Failure, refusal
from fuzz_images import COLOR, File, draw
from PIL import Image

from modeling_vlkd import VLKDProcessor
from modeling_vlkd.image_loading_vlkd import read_image
from trainer.data.collator import VLKDDataCollator
from trainer.data.infilling import TextInfilling
from trainer.data.skipped import FILE, RowDecoder, SkipLog
from trainer.image_loader import load_images, min_jpeg_side
from trainer.models import load_teacher

TEACHERS = Path(__file__).parents[2] / "microworld" / "teachers"
REASONS = {"empty file", "not an image", "broken image", "too many pixels", "too long", "one pixel"}  # docs/data.md
GOOD = Image.new("RGB", (40, 30), COLOR)


class Cases:
    """Called with a case's number and a folder for it, returns how it came out: "right" or the reason it was not."""

    def __init__(self):
        clip, bart = str(TEACHERS / "clip"), str(TEACHERS / "bart")
        self.processor = VLKDProcessor.from_vision_text_pretrained(clip, bart)
        _, tokenizer = load_teacher(clip)
        infilling = TextInfilling(self.processor.tokenizer.mask_token_id, 0.3, 0.3)
        self.collator = VLKDDataCollator(self.processor, tokenizer, infilling, 2, projection_dim=64)

    def __call__(self, number: int, folder: Path) -> str:
        file = draw(number)
        path = folder / file.name
        path.write_bytes(file.data)
        readable = self.as_asked(path, file)
        outcome = self.as_trained(path, file)
        path.unlink()
        if readable != (outcome in ("right", "one pixel")):
            raise Failure(f"{file.story}: read for a caption, but not for training, or the other way: {outcome}")
        return outcome

    def as_asked(self, path: Path, file: File) -> bool:
        """Whether `read_image` reads the file; of its bytes, the processor and `vlkd caption` say the same."""
        size = self.look(path, str(path), file)
        if size != self.look(file.data, "bytes", file):
            raise Failure(f"{file.story}: the file is {size}, its bytes are another")
        if file.color is not None and size is None:
            raise Failure(f"{file.story}: a sound image is refused")
        batch, _ = refusal(lambda: self.processor(images=[GOOD, str(path)]), "images[1]")
        self.check(batch, size is not None, file)
        (loaded,) = load_images(read_image, [path], self.processor, 1)
        if len(loaded.numbers) + len(loaded.errors) != 1 or len(loaded.numbers) != (size is not None):
            raise Failure(f"{file.story}: `vlkd caption` reads {loaded.numbers} and says {loaded.errors}")
        return size is not None

    def look(self, source: Path | bytes, name: str, file: File) -> tuple[int, int] | None:
        """The size of what `read_image` makes of it, seen right; None if it refuses."""
        picture, _ = refusal(lambda: read_image(source), name)
        if picture is None:
            return None
        if picture.mode != "RGB":
            raise Failure(f"{file.story}: {picture}")
        if file.color is not None:
            seen = np.asarray(picture, dtype=float).mean((0, 1))
            if np.abs(seen - file.color).max() > 8:
                raise Failure(f"{file.story}: the color is {seen}, not {file.color}")
        return picture.size

    def as_trained(self, path: Path, file: File) -> str:
        """Right through row and collator, or the reason under which the row is listed."""
        skipped = SkipLog(path.parent, "train", 2, max_fraction=1.0)
        read = RowDecoder("image", "caption", skipped, min_jpeg_side(self.processor))
        row = {"image": {"path": str(path), "bytes": None}, "caption": "a red circle"}
        found, _ = refusal(lambda: [read(row, 0)])
        listed = path.with_name(FILE)
        if found == [None]:
            (line,) = map(json.loads, listed.read_text().splitlines())
            listed.unlink()
            if line["reason"] not in REASONS or line["name"] != str(path) or "\n" in line["message"]:
                raise Failure(f"{file.story}: {line}")
            return line["reason"]
        good = {"image": GOOD, "caption": ["a blue square"], "index": 1, "epoch": 0}
        batch, _ = refusal(lambda: self.collator([{**found[0], "index": 0, "epoch": 0}, good]))
        self.check(batch, True, file)
        return "right"

    def check(self, batch: dict | None, readable: bool, file: File) -> None:
        if (batch is not None) != readable:
            raise Failure(f"{file.story}: the reader and the processor do not agree")
        if batch is not None:
            size = self.processor.image_processor.crop_size
            pixels = batch["pixel_values"]
            if pixels.shape != (2, 3, size["height"], size["width"]) or not torch.isfinite(pixels).all():
                raise Failure(f"{file.story}: pixel_values {tuple(pixels.shape)}")
