"""Invalid rows: each is skipped for a reason and counted once; too many are an error."""

import io
import json
import logging
import multiprocessing
from collections import Counter
from itertools import islice
from pathlib import Path
from types import SimpleNamespace

import datasets
import numpy as np
import pytest
from cached_data import add_image_features, add_teacher_embeds
from PIL import Image
from source_data import jpegs
from torch.utils.data import DataLoader

from trainer.cache.invalid_rows import InvalidRows
from trainer.callbacks import ReportSkipped
from trainer.data.epoch_dataset import EpochDataset
from trainer.data.rows import InvalidRowError, as_rows, load_image, read_captions
from trainer.data.skipped import FILE, RowDecoder, SkipLog, count_skipped
from trainer.data.streaming import MAX_SHARD_ROWS, StreamingDataset
from trainer.models import load_teacher

EMOJI = "a 🐶 dog 👩🏽‍🚀 at the 🏖️"


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def rotated() -> bytes:
    image = Image.new("RGB", (40, 20), "red")
    image.paste("blue", (0, 0, 20, 20))
    exif = Image.Exif()
    exif[274] = 6  # to be turned by 90 degrees
    return encoded(image, "JPEG", exif=exif, quality=95)


def sixteen_bits() -> bytes:
    return encoded(Image.fromarray(np.full((20, 30), 32896, np.uint16)))


def palette() -> bytes:
    image = Image.new("P", (30, 20), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    return encoded(image, transparency=1)


def animated() -> bytes:
    frames = [Image.new("RGB", (30, 20), color) for color in ("red", "blue")]
    return encoded(frames[0], "GIF", save_all=True, append_images=frames[1:])


JPEG = encoded(Image.effect_noise((64, 48), 80), "JPEG")
PNG = encoded(Image.effect_noise((64, 48), 80))
FLAWED = {
    "truncated": (JPEG[: len(JPEG) // 2], "broken image"),
    "truncated PNG": (PNG[:700], "broken image"),
    "damaged": (PNG[:200] + b"\0" * 100 + PNG[300:], "broken image"),
    "without a head": (b"\0" * 400 + JPEG[400:], "not an image"),
    "no bytes": (b"", "empty file"),
    "a web page": (b"<html>404 not found</html>" * 20, "not an image"),
    "nothing": (None, "no image"),
    "one pixel": (encoded(Image.new("RGB", (1, 1))), "one pixel"),
    "20,000 wide, 20 high": (encoded(Image.new("L", (20_000, 20))), "too long"),
    "too large": (encoded(Image.new("1", (20_000, 10_000))), "too many pixels"),
    "a number": (12, "not an image"),
}
SOUND = {  # and the mean color that a person sees
    "CMYK": (encoded(Image.new("CMYK", (30, 20), (0, 255, 255, 0)), "JPEG"), (254, 0, 0)),
    "16 bits": (sixteen_bits(), (128, 128, 128)),
    "palette with transparency": (palette(), (255, 255, 255)),
    "animated": (animated(), (255, 0, 0)),
    "20,000 wide": (encoded(Image.new("RGB", (20_000, 300), "red"), "JPEG"), (254, 0, 0)),
    "two pixels": (encoded(Image.new("RGB", (2, 1), "red")), (255, 0, 0)),
}


# ---- images


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize(("image", "reason"), FLAWED.values(), ids=FLAWED)
def test_flawed_image_has_a_reason(image, reason, tmp_path):
    images = [image]
    if isinstance(image, bytes):
        (tmp_path / "7.jpg").write_bytes(image)
        images += [{"path": str(tmp_path / "7.jpg"), "bytes": None}, {"path": "7.jpg", "bytes": image}]
    for image in images:
        with pytest.raises(InvalidRowError, match="row 7: ") as flaw:
            load_image(image, "row 7", "image", min_side=96)
        assert flaw.value.reason == reason and "\n" not in str(flaw.value)


@pytest.mark.parametrize(("image", "color"), SOUND.values(), ids=SOUND)
def test_unusual_image_is_seen_right(image, color):
    picture = load_image({"bytes": image, "path": None}, "row 7", "image", min_side=96)
    assert picture.mode == "RGB" and np.abs(np.asarray(picture).mean((0, 1)) - color).max() <= 1


def test_rotated_image_is_upright():
    picture = load_image(rotated(), "row 7", "image", min_side=10)
    assert picture.height == 2 * picture.width
    assert np.asarray(picture)[0].mean(0).argmax() == 2 and np.asarray(picture)[-1].mean(0).argmax() == 0


def test_missing_file_has_a_reason(tmp_path):
    for image in (
        str(tmp_path / "7.jpg"),
        {"path": str(tmp_path / "7.jpg"), "bytes": None},
        {"path": None, "bytes": None},
    ):
        with pytest.raises(InvalidRowError) as flaw:
            load_image(image, "row 7", "image")
        assert flaw.value.reason == ("no image" if image == {"path": None, "bytes": None} else "missing file")


# ---- captions


@pytest.mark.parametrize(
    ("captions", "reason"),
    [
        ("", "no caption"),
        (" \n", "no caption"),
        (None, "no caption"),
        ([], "no caption"),
        (["a dog", ""], "no caption"),
        (float("nan"), "no caption"),
        (b"caf\xe9", "not UTF-8"),
        ([b"a dog", b"\xff\xfe"], "not UTF-8"),
        ("caf\ufffd", "not UTF-8"),
    ],
)
def test_flawed_caption_has_a_reason(captions, reason):
    with pytest.raises(InvalidRowError, match="row 7: .*column 'text'") as flaw:
        read_captions(captions, "row 7", "text")
    assert flaw.value.reason == reason and len(str(flaw.value)) < 300


def test_emoji_and_long_captions_are_valid():
    long = "word " * 10_000
    assert read_captions([EMOJI.encode(), long], "row 7", "text") == [EMOJI, long]


# ---- rows


def table(rows: int = 20, flawed: dict[int, bytes | None] | None = None) -> datasets.Dataset:
    """Rows of image and caption, some flawed; a str is a caption."""
    flawed = flawed or {}
    images = [flawed.get(i, data) for i, data in enumerate(jpegs(rows))]
    captions = [images[i] if isinstance(images[i], str) else f"a photo of number {i}" for i in range(rows)]
    images = [
        {"bytes": jpegs(1)[0] if isinstance(data, str) else data, "path": f"{i}.jpg"} for i, data in enumerate(images)
    ]
    features = datasets.Features({"image": datasets.Image(decode=False), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": images, "caption": captions}, features)


def reader(folder: Path, rows: int | None, **options) -> RowDecoder:
    return RowDecoder("image", "caption", SkipLog(folder, "train", rows, **options))


def lines(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / FILE).read_text().splitlines()]


BAD = {3: b"", 7: JPEG[:300], 12: " ", 15: b"no image"}


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_keep_their_size_and_each_flaw_is_listed_once(tmp_path, workers):
    data = EpochDataset(table(20, BAD), decode=reader(tmp_path, 20, max_fraction=0.2), seed=3)
    loader = DataLoader(data, batch_size=5, num_workers=workers, collate_fn=list)
    epochs = []
    for epoch in range(3):
        data.start_epoch(epoch)
        epochs.append([(row["index"], row["caption"][0]) for batch in loader for row in batch])
    assert all([index for index, _ in rows] == list(range(20)) for rows in epochs)
    for rows in epochs:
        for index, caption in rows:
            assert (caption == f"a photo of number {index}") == (index not in BAD)
    assert len({str(rows) for rows in epochs}) > 1  # replaced by other rows in other epochs
    found = lines(tmp_path)
    assert {(line["row"], line["name"], line["reason"]) for line in found} == {
        (3, "3.jpg", "empty file"),
        (7, "7.jpg", "broken image"),
        (12, "12.jpg", "no caption"),
        (15, "15.jpg", "not an image"),
    }
    assert {line["split"] for line in found} == {"train"}
    assert count_skipped(tmp_path / FILE).total() == 4


def test_the_replacement_is_the_same_in_every_layout(tmp_path):
    data = EpochDataset(table(20, BAD), decode=reader(tmp_path, 20, max_fraction=1.0), seed=3)
    alone = [data[index]["caption"] for index in range(20)]
    batches = DataLoader(data, batch_size=7, num_workers=2, collate_fn=list)
    assert [row["caption"] for batch in batches for row in batch] == alone


def test_too_many_are_an_error_that_says_so(tmp_path):
    data = EpochDataset(table(20, BAD), decode=reader(tmp_path, 20, max_fraction=0.1))
    with pytest.raises(
        InvalidRowError, match=r"3 of 20 rows of split 'train' are invalid, .*max_skipped_fraction: 0.1.*skipped.jsonl"
    ):
        [data[index] for index in range(20)]


def test_the_error_of_a_worker_is_one_line():
    traceback = (
        "Caught InvalidRowError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  File x"
    )
    assert str(InvalidRowError(f"{traceback}\n\ntrainer.data.rows.InvalidRowError: row 3 is bad\n")) == "row 3 is bad"


def test_raise_stops_at_the_first(tmp_path):
    data = EpochDataset(table(20, BAD), decode=reader(tmp_path, 20, on_error="raise"))
    with pytest.raises(
        InvalidRowError, match=r"3.jpg: the image in column 'image' cannot be read: it is empty, 0 bytes"
    ):
        [data[index] for index in range(20)]
    assert not (tmp_path / FILE).exists()


def test_nothing_but_flaws_ends(tmp_path):
    data = EpochDataset(table(4, dict.fromkeys(range(4), b"")), decode=reader(tmp_path, 4, max_fraction=1.0))
    with pytest.raises(ValueError, match="row 2 and 100 replacements are invalid"):
        data[2]


def write_many(folder: str, process: int) -> None:
    skipped = SkipLog(folder, "train", 10_000, max_fraction=1.0)
    for row in range(200):
        skipped.add(row if row % 2 else row + 1000 * process, "a" * 500, InvalidRowError("é" * 300, "broken image"))


def test_no_line_is_lost_or_torn(tmp_path):
    processes = [multiprocessing.Process(target=write_many, args=(str(tmp_path), number)) for number in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    found = {line["row"] for line in lines(tmp_path)}
    expected = {row if row % 2 else row + 1000 * process for row in range(200) for process in range(4)}
    assert found == expected and count_skipped(tmp_path / FILE) == Counter({"broken image": len(expected)})


def test_a_line_that_was_cut_off_is_no_obstacle(tmp_path):
    (tmp_path / FILE).write_text('{"split": "train", "row": 1, "reason": "no caption"}\n{"split": "tra')
    skipped = SkipLog(tmp_path, "train", 10, max_fraction=0.3)
    skipped.add(2, "", InvalidRowError("", "no caption"))
    skipped.add(3, "", InvalidRowError("", "one pixel"))
    assert count_skipped(tmp_path / FILE).total() == 2  # row 2 was written behind the rest of the line


# ---- streams


def test_stream_passes_over_flawed_rows(tmp_path):
    source = table(20, BAD).to_iterable_dataset(num_shards=3)
    stream = StreamingDataset([source], reader(tmp_path, None, max_fraction=0.2), buffer_size=4)
    rows = list(islice(stream, 32))
    captions = Counter(row["caption"][0] for row in rows)
    assert captions == {f"a photo of number {index}": 2 for index in range(20) if index not in BAD}
    assert count_skipped(tmp_path / FILE) == Counter(
        {"empty file": 1, "broken image": 1, "no caption": 1, "not an image": 1}
    )
    assert {line["row"] % MAX_SHARD_ROWS < 7 for line in lines(tmp_path)} == {True}


def test_stream_stops_when_more_are_flawed_than_chance_explains(tmp_path):
    flaw = InvalidRowError("", "no caption")
    skipped = SkipLog(tmp_path, "train", None, max_fraction=0.01)
    skipped.valid = 2989
    for number in range(11):  # 11 of 3,000: up to 30 + 3 √30 = 46.4 are allowed
        skipped.add(number, "", flaw)
    skipped.valid = 480
    with pytest.raises(InvalidRowError, match="12 of 492 rows of split 'train' are invalid"):  # 4.92 + 3 √4.92 = 11.6
        skipped.add(11, "", flaw)


def test_a_few_flaws_at_the_start_of_a_stream_are_allowed(tmp_path):
    """A worker may meet an invalid row first: 64 workers that each read one do not show that 1% of all are invalid."""
    flaw = InvalidRowError("", "no caption")
    skipped = SkipLog(tmp_path, "train", None, max_fraction=0.01)
    for number in range(10):
        skipped.add(number, "", flaw)
    with pytest.raises(InvalidRowError, match="11 of 11 rows of split 'train' are invalid"):
        skipped.add(10, "", flaw)
    with pytest.raises(InvalidRowError, match="1 of 1 rows of split 'train' are invalid"):
        SkipLog(tmp_path, "train", None, max_fraction=0).add(11, "", flaw)


def test_a_stream_of_flaws_ends(tmp_path):
    source = table(6, dict.fromkeys(range(6), b"")).to_iterable_dataset()
    with pytest.raises(InvalidRowError, match="are invalid"):
        next(iter(StreamingDataset([source], reader(tmp_path, None))))


# ---- before the cache


@pytest.mark.parametrize("images", [True, False])
def test_flawed_rows_are_dropped_before_the_cache(tmp_path, images):
    for run in ("first", "second"):  # the second one finds what the first one kept
        read = reader(tmp_path / run, 20, max_fraction=0.2)
        columns = ["caption", "image"] if images else ["caption"]
        numbered = table(20, BAD).add_column("row_number", range(100, 120))
        kept = InvalidRows(read, columns, str(tmp_path / "cache")).drop_from(numbered)
        bad = set(BAD) if images else {12}
        assert kept["row_number"][:] == [100 + index for index in range(20) if index not in bad]
        assert kept["caption"][:] == [f"a photo of number {index}" for index in range(20) if index not in bad]
        assert {(line["row"], line["name"]) for line in lines(tmp_path / run)} == {(100 + i, f"{i}.jpg") for i in bad}
    assert len(list((tmp_path / "cache").iterdir())) == 1


def test_rows_keep_their_number_after_others_were_dropped(tmp_path):
    kept = InvalidRows(reader(tmp_path, 20, max_fraction=0.2), ["caption"], str(tmp_path)).drop_from(table(20, BAD))
    data = EpochDataset(kept, decode=reader(tmp_path, 20, max_fraction=0.2))
    [data[index] for index in range(len(data))]
    assert sorted(line["row"] for line in lines(tmp_path)) == sorted(BAD)


def test_captions_in_another_encoding_are_dropped(tmp_path):
    import pyarrow as pa

    texts = pa.array([b"a dog", b"caf\xe9", b"a cat"])
    texts = pa.Array.from_buffers(pa.string(), 3, texts.buffers())
    arrow = pa.table({"image": pa.array(jpegs(3)), "caption": texts})
    dataset = datasets.Dataset(datasets.table.InMemoryTable(arrow)).cast_column("image", datasets.Image(decode=False))
    kept = InvalidRows(reader(tmp_path, 3, max_fraction=0.5), ["caption"], str(tmp_path)).drop_from(dataset)
    assert kept["caption"][:] == ["a dog", "a cat"] and lines(tmp_path)[0]["reason"] == "not UTF-8"
    assert as_rows(arrow)[1]["caption"] == b"caf\xe9"


def test_the_cache_is_made_of_what_is_left(tmp_path, model, processor, clip_dir):
    read = reader(tmp_path, 12, max_fraction=0.4)
    kept = InvalidRows(read, ["caption", "image"], str(tmp_path)).drop_from(table(12, BAD))
    cached = add_image_features(kept, model, processor, cache_dir=str(tmp_path))
    cached = add_teacher_embeds(cached, *load_teacher(clip_dir), cache_dir=str(tmp_path))
    data = EpochDataset(cached, decode=read)
    assert len(data) == 10 and data[9]["caption"] == ["a photo of number 11"]
    assert data[9]["image_features"].shape == (17 * 24,)


# ---- the last line


def test_the_end_says_what_was_skipped(tmp_path, caplog):
    skipped = SkipLog(tmp_path, "train", 10, max_fraction=1.0)
    for number, reason in ((1, "no caption"), (2, "no caption"), (3, "broken image"), (1, "no caption")):
        skipped.add(number, "", InvalidRowError("", reason))
    SkipLog(tmp_path, "validation", 10, max_fraction=1.0).add(1, "", InvalidRowError("", "no caption"))
    with caplog.at_level(logging.WARNING):
        ReportSkipped(tmp_path).on_train_end(None, SimpleNamespace(is_world_process_zero=True), None)
    (record,) = caplog.records
    assert "4 " in record.getMessage() and "(3 no caption, 1 broken image)" in record.getMessage()
    ReportSkipped(tmp_path / "none").on_train_end(None, SimpleNamespace(is_world_process_zero=True), None)
    assert len(caplog.records) == 1
