"""The same few captioned images as each kind of source, for the tests of what `dataset` can name."""

import csv
import functools
import io
import json
import tarfile
from pathlib import Path

import datasets
from caption_data import load

CAPTIONS = [captions[0] for captions in load(rows=10)["caption"]]


@functools.cache
def jpegs(rows: int = 10) -> list[bytes]:
    """The images of `caption_data` as JPEG files."""
    files = []
    for image in load(rows=rows)["image"]:
        files.append(io.BytesIO())
        image.save(files[-1], "JPEG", quality=95)
    return [file.getvalue() for file in files]


def write_tars(folder: Path, shards: int = 3, split: str = "train", captions: list[bytes] | None = None) -> Path:
    """The schema of pixparse/cc3m-wds: jpg, txt and json of each key."""
    folder.mkdir(parents=True, exist_ok=True)
    captions = captions or [caption.encode() for caption in CAPTIONS]
    rows = list(enumerate(zip(jpegs(), captions, strict=True)))
    for shard in range(shards):
        with tarfile.open(folder / f"cc3m-{split}-{shard:04d}.tar", "w") as tar:
            for number, (image, caption) in rows[shard * len(rows) // shards : (shard + 1) * len(rows) // shards]:
                about = json.dumps({"key": f"{number:09d}", "caption": "not this one", "width": 32}).encode()
                for extension, data in (("jpg", image), ("json", about), ("txt", caption)):
                    member = tarfile.TarInfo(f"{number:09d}.{extension}")
                    member.size = len(data)
                    tar.addfile(member, io.BytesIO(data))
    return folder


def write_images(folder: Path, metadata: str | None = "jsonl") -> Path:
    """Files 0.jpg to 9.jpg and, beside them, metadata.jsonl or metadata.csv."""
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{"file_name": f"{number}.jpg", "caption": caption} for number, caption in enumerate(CAPTIONS)]
    for row, data in zip(rows, jpegs(), strict=True):
        (folder / row["file_name"]).write_bytes(data)
    if metadata == "jsonl":
        (folder / "metadata.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    elif metadata == "csv":
        with open(folder / "metadata.csv", "w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return folder


def write_coco(folder: Path, split: str = "train") -> Path:
    """captions_{split}.json with two captions an image, and the folder of the images, {split}."""
    write_images(folder / split, metadata=None)
    images = [{"id": 100 + number, "file_name": f"{number}.jpg"} for number in range(len(CAPTIONS))]
    annotations = [
        {"id": number, "image_id": image["id"], "caption": caption}
        for number, (image, caption) in enumerate(zip(images * 2, CAPTIONS + CAPTIONS, strict=True))
    ]
    content = {"info": {}, "images": images, "annotations": annotations[::-1], "licenses": []}
    (folder / f"captions_{split}.json").write_text(json.dumps(content))
    return folder / f"captions_{split}.json"


def as_dataset() -> datasets.Dataset:
    """The columns image and caption."""
    features = datasets.Features({"image": datasets.Image(), "caption": datasets.Value("string")})
    return datasets.Dataset.from_dict({"image": jpegs(), "caption": CAPTIONS}, features=features)


def write_parquet(folder: Path, files: int = 2, split: str = "train") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for number in range(files):
        as_dataset().shard(files, number).to_parquet(folder / f"{split}-{number:05d}.parquet")
    return folder


def as_split(split: str) -> datasets.Dataset:
    """By import path."""
    return as_dataset()
