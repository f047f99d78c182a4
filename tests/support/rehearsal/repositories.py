"""The repositories of the rehearsal, written as folders for `loopback_hub.Hub.add_folder`.

`python -m rehearsal.repositories FOLDER SIZE VOCABULARIES` writes them in a process of its own, so that the process
that measures stays small: on Linux, the peak memory of a process starts at that of its parent.
"""

import io
import json
import random
import shutil
import sys
import tarfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from datasets import Dataset, Features, Image, List, Value
from PIL import Image as PIL

from rehearsal.checkpoints import fetch_merges, write_bart, write_clip
from rehearsal.sizes import SIZES

CC3M, VQAV2, COCO = "pixparse/cc3m-wds", "lmms-lab/VQAv2", "yerevann/coco-karpathy"
COCO_IMAGES = "http://images.cocodataset.org/val2014/"
WORDS = "a the river has burst its banks and spread onto farmland dog cat runs on in beach sun person artist".split()
SIDES = ((500, 375), (375, 500), (640, 427), (852, 480), (300, 300), (1024, 768))  # of images on the web
CC3M_CARD = """\
license: other
license_name: conceptual-captions
license_link: https://github.com/google-research-datasets/conceptual-captions/blob/master/LICENSE
task_categories:
- image-to-text
size_categories:
- 1M<n<10M"""
COCO_CARD = """\
task_categories:
- image-to-text
task_ids:
- image-captioning
language:
- en
size_categories:
- 100K<n<1M
tags:
- coco
- image-captioning
pretty_name: COCO Karpathy split"""
VQAV2_CARD = """\
license: cc-by-4.0
dataset_info:
  features:
  - name: question_type
    dtype: string
  - name: multiple_choice_answer
    dtype: string
  - name: answers
    list:
    - name: answer
      dtype: string
    - name: answer_confidence
      dtype: string
    - name: answer_id
      dtype: int64
  - name: image_id
    dtype: int64
  - name: answer_type
    dtype: string
  - name: question_id
    dtype: int64
  - name: question
    dtype: string
  - name: image
    dtype: image
  splits:
{splits}
configs:
- config_name: default
  data_files:
  - split: validation
    path: data/validation-*
  - split: testdev
    path: data/testdev-*
  - split: test
    path: data/test-*"""


def write_repositories(folder: Path, size_name: str, vocabularies: Path) -> None:
    """`models/`, `datasets/` and `web/` (files of other servers, below the server's name), whole or not at all."""
    if folder.exists():
        return
    size = SIZES[size_name]
    clip_merges, gpt2_merges = ([], []) if size_name == "tiny" else fetch_merges(vocabularies)
    new = folder.with_name(f"{folder.name}.new")
    shutil.rmtree(new, ignore_errors=True)
    torch.manual_seed(0)
    write_clip(new / "models" / size.clip, size, clip_merges)
    write_bart(new / "models" / size.bart, size, gpt2_merges)
    rows = {"tiny": 8, "base": 64, "large": 16}[size_name]
    write_cc3m(new / "datasets" / CC3M, rows)
    write_vqav2(new / "datasets" / VQAV2, rows)
    write_coco(new / "datasets" / COCO, new / "web" / COCO_IMAGES.removeprefix("http://"), 8)
    new.rename(folder)


def write_cc3m(folder: Path, rows: int) -> None:
    """WebDataset shards as those of pixparse/cc3m-wds, of which there are 576 and 16: a JPEG and a caption a row."""
    folder.mkdir(parents=True)
    write_card(folder, CC3M_CARD)
    shards = {"train": 4, "validation": 1}
    for split, count in shards.items():
        size = rows if split == "train" else rows // 2
        for shard in range(count):
            with tarfile.open(folder / f"cc3m-{split}-{shard:04}.tar", "w") as archive:
                for row in range(shard * size, (shard + 1) * size):
                    add(archive, f"{row:09}.jpg", jpeg(split, row))
                    add(archive, f"{row:09}.txt", caption(split, row).encode())
    info = {split: {"filename": f"cc3m-{split}-*.tar", "num_shards": count} for split, count in shards.items()}
    (folder / "_info.json").write_text(json.dumps({"splits": info}))


def write_vqav2(folder: Path, rows: int) -> None:
    """Parquet files of lmms-lab/VQAv2, all splits; three questions an image, whose bytes each row holds."""
    entry = {"answer": Value("string"), "answer_confidence": Value("string"), "answer_id": Value("int64")}
    texts = ("question_type", "multiple_choice_answer", "answer_type", "question")
    numbers = dict.fromkeys(("image_id", "question_id"), Value("int64"))
    features = Features({**dict.fromkeys(texts, Value("string")), "answers": List(entry), **numbers, "image": Image()})
    splits = {"validation": (4, rows), "testdev": (1, rows), "test": (2, 2 * rows)}
    (folder / "data").mkdir(parents=True)
    for split, (shards, count) in splits.items():
        asked = Dataset.from_list([vqa_row(split, row) for row in range(count)], features=features)
        for shard in range(shards):
            file = folder / "data" / f"{split}-{shard:05}-of-{shards:05}.parquet"
            asked.shard(shards, shard, contiguous=True).to_parquet(file)
    lines = (f"  - name: {split}\n    num_bytes: 0\n    num_examples: {rows}" for split, (_, rows) in splits.items())
    write_card(folder, VQAV2_CARD.format(splits="\n".join(lines)))


def vqa_row(split: str, row: int) -> dict[str, Any]:
    image_id, words = 42 + row // 3, random.Random(f"{split} {row}").sample(WORDS, 10)
    answers = [{"answer": word, "answer_confidence": "yes", "answer_id": i} for i, word in enumerate(words, start=1)]
    known = split == "validation"
    return {
        "question_type": "what is the",
        "multiple_choice_answer": words[0] if known else None,
        "answers": answers if known else None,
        "image_id": image_id,
        "answer_type": "other" if known else None,
        "question_id": image_id * 1000 + row % 3,
        "question": f"What is the {words[1]} of the {words[2]}?",
        "image": {"bytes": jpeg(split, row // 3), "path": f"COCO_val2014_{image_id:012}.jpg"},
    }


def write_coco(folder: Path, images: Path, rows: int) -> None:
    """Parquet files of yerevann/coco-karpathy, without images; these are on another server."""
    images.mkdir(parents=True)
    (folder / "data").mkdir(parents=True)
    write_card(folder, COCO_CARD)
    for split in ("train", "restval", "validation", "test"):
        found = [coco_row(split, row) for row in range(rows)]
        Dataset.from_list(found).to_parquet(folder / "data" / f"{split}-00000-of-00001.parquet")
    for row in range(rows):
        (images / coco_row("test", row)["filename"]).write_bytes(jpeg("coco", row))


def coco_row(split: str, row: int) -> dict[str, Any]:
    coco_id = 391895 + row
    name = f"COCO_val2014_{coco_id:012}.jpg"
    return {
        "filepath": "val2014",
        "sentids": [5 * row + i for i in range(5)],
        "filename": name,
        "imgid": row,
        "split": split,
        "sentences": [caption(f"coco {i}", row) for i in range(5)],
        "cocoid": coco_id,
        "url": COCO_IMAGES + name,
    }


def caption(split: str, row: int) -> str:
    chance = random.Random(f"{split} {row}")
    return " ".join(chance.choices(WORDS, k=chance.randint(5, 16)))


def jpeg(split: str, row: int) -> bytes:
    """Coloured clouds with some grain: a JPEG that is about as large as a photograph of its size."""
    chance = np.random.default_rng([row, *split.encode()])
    width, height = SIDES[row % len(SIDES)]
    clouds = PIL.fromarray(chance.integers(0, 256, (9, 12, 3), dtype=np.uint8)).resize((width, height), PIL.BICUBIC)
    grain = chance.normal(0, 12, (height, width, 3))
    image = PIL.fromarray(np.clip(np.asarray(clouds) + grain, 0, 255).astype(np.uint8))
    image = image.convert("L") if row % 16 == 15 else image  # some are gray
    file = io.BytesIO()
    image.save(file, "JPEG", quality=85)
    return file.getvalue()


def add(archive: tarfile.TarFile, name: str, content: bytes) -> None:
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


def write_card(folder: Path, metadata: str) -> None:
    (folder / "README.md").write_text(
        f"---\n{metadata}\n---\n\nGenerated rows in the layout of the public repository.\n"
    )


if __name__ == "__main__":
    write_repositories(Path(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
