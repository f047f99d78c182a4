"""Small datasets in exactly the schema of those on the Hub, and the official files of the same examples.

Every image of `images` has two questions and five captions, but for those datasets that say otherwise.
"""

import json
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, Features, Image, List, Value
from PIL import Image as PILImage

TEXT, INT, INT32 = Value("string"), Value("int64"), Value("int32")
ANSWERS = ["red", "red", "red", "blue", "red", "dark red", "red", "red", "green", "red"]
QUESTIONS = ["what color is the circle?", "how many squares are there?"]

VQAV2 = Features(
    {
        "question_type": TEXT,
        "multiple_choice_answer": TEXT,
        "answers": List({"answer": TEXT, "answer_confidence": TEXT, "answer_id": INT}),
        "image_id": INT,
        "answer_type": TEXT,
        "question_id": INT,
        "question": TEXT,
        "image": Image(),
    }
)
OKVQA = Features(
    {
        "question_id": TEXT,
        "image": Image(),
        "question": TEXT,
        "answers": List(TEXT),
        "question_type": TEXT,
        "answer_type": TEXT,
    }
)
COCO_KARPATHY = Features(
    {
        "filepath": TEXT,
        "sentids": List(INT),
        "filename": TEXT,
        "imgid": INT,
        "split": TEXT,
        "sentences": List(TEXT),
        "cocoid": INT,
        "url": TEXT,
    }
)
NOCAPS = Features(
    {
        "image": Image(),
        "image_coco_url": TEXT,
        "image_date_captured": TEXT,
        "image_file_name": TEXT,
        "image_height": INT32,
        "image_width": INT32,
        "image_id": INT32,
        "image_license": Value("int8"),
        "image_open_images_id": TEXT,
        "annotations_ids": List(INT32),
        "annotations_captions": List(TEXT),
    }
)
FLICKR = Features({"image": Image(), "text": List(TEXT)})


def captions_of(number: int) -> list[str]:
    return [f"a photo of a red circle number {number} said {times} times" for times in range(5)]


def vqav2(images: list[PILImage.Image], answers: bool = True) -> Dataset:
    rows = [
        {
            "question_type": ("what color", "how many")[kind],
            "multiple_choice_answer": "red" if answers else None,
            "answers": vqa_answers() if answers else None,
            "image_id": 42 + number,
            "answer_type": ("other", "number")[kind],
            "question_id": (42 + number) * 1000 + kind,
            "question": QUESTIONS[kind],
            "image": image,
        }
        for kind in (0, 1)  # the questions about an image do not stand together
        for number, image in enumerate(images)
    ]
    return Dataset.from_list(rows, features=VQAV2)


def vqa_answers() -> list[dict[str, Any]]:
    return [
        {"answer": answer, "answer_confidence": "yes", "answer_id": number}
        for number, answer in enumerate(ANSWERS, start=1)
    ]


def okvqa(images: list[PILImage.Image]) -> Dataset:
    rows = [
        {
            "question_id": f"{42 + number}{kind}",
            "image": image,
            "question": QUESTIONS[kind],
            "answers": ANSWERS,
            "question_type": "one",
            "answer_type": "other",
        }
        for kind in (0, 1)
        for number, image in enumerate(images)
    ]
    return Dataset.from_list(rows, features=OKVQA)


def coco_karpathy(urls: list[str]) -> Dataset:
    rows = [
        {
            "filepath": "val2014",
            "sentids": [5 * number + i for i in range(5)],
            "filename": coco_name(number),
            "imgid": number,
            "split": "test",
            "sentences": captions_of(number),
            "cocoid": 42 + number,
            "url": url,
        }
        for number, url in enumerate(urls)
    ]
    return Dataset.from_list(rows, features=COCO_KARPATHY)


def nocaps(images: list[PILImage.Image], captions: bool = True) -> Dataset:
    rows = [
        {
            "image": image,
            "image_coco_url": f"https://s3.amazonaws.com/nocaps/val/{number:016x}.jpg",
            "image_date_captured": "2018-11-06 11:04:33",
            "image_file_name": f"{number:016x}.jpg",
            "image_height": image.height,
            "image_width": image.width,
            "image_id": number,
            "image_license": 0,
            "image_open_images_id": f"{number:016x}",
            "annotations_ids": list(range(10 * number, 10 * number + 5)) if captions else [],
            "annotations_captions": captions_of(number) if captions else [],
        }
        for number, image in enumerate(images)
    ]
    return Dataset.from_list(rows, features=NOCAPS)


def flickr30k(images: list[PILImage.Image]) -> Dataset:
    return Dataset.from_list(
        [{"image": image, "text": captions_of(number)} for number, image in enumerate(images)], features=FLICKR
    )


def save(splits: dict[str, Dataset], folder: Path) -> str:
    """As the Hub's would lie on disk after `load_dataset(…).save_to_disk(…)`."""
    DatasetDict(splits).save_to_disk(folder)
    return str(folder)


def coco_name(number: int) -> str:
    return f"COCO_val2014_{42 + number:012d}.jpg"


def save_images(images: list[PILImage.Image], folder: Path, names: Any = coco_name) -> str:
    """Under val2014/, named as COCO's (but without JPEG's losses)."""
    (folder / "val2014").mkdir(parents=True)
    for number, image in enumerate(images):
        image.save(folder / "val2014" / names(number), "PNG")
    return str(folder)


def write(path: Path, content: Any) -> str:
    path.write_text(json.dumps(content))
    return str(path)


def vqa_files(dataset: Dataset, folder: Path, subtype: str = "val2014") -> tuple[str, str]:
    """VQA's questions and annotations of a dataset in VQAv2's schema."""
    about = {"info": {}, "license": {}, "data_type": "mscoco", "data_subtype": subtype}
    rows = list(dataset.remove_columns("image"))
    questions = [{key: row[key] for key in ("image_id", "question", "question_id")} for row in rows]
    keys = ("question_type", "multiple_choice_answer", "answers", "image_id", "answer_type", "question_id")
    annotations = [{key: row[key] for key in keys} for row in rows]
    return (
        write(folder / "questions.json", {**about, "task_type": "Open-Ended", "questions": questions}),
        write(folder / "annotations.json", {**about, "annotations": annotations}),
    )


def coco_captions(number_of_images: int, path: Path) -> str:
    """captions_val2014.json."""
    images = [{"id": 42 + n, "file_name": coco_name(n), "height": 40, "width": 48} for n in range(number_of_images)]
    annotations = [
        {"image_id": 42 + n, "id": 5 * n + i, "caption": text}
        for n in range(number_of_images)
        for i, text in enumerate(captions_of(n))
    ]
    return write(path, {"info": {}, "licenses": [], "images": images, "annotations": annotations})


def nocaps_captions(number_of_images: int, path: Path) -> str:
    """nocaps_val_4500_captions.json: COCO's, with a domain."""
    domains = ("in-domain", "near-domain", "out-domain")
    images = [
        {
            "id": n,
            "open_images_id": f"{n:016x}",
            "file_name": f"{n:016x}.jpg",
            "coco_url": "",
            "height": 40,
            "width": 48,
            "date_captured": "2018-11-06 11:04:33",
            "license": 0,
            "domain": domains[n % 3],
        }
        for n in range(number_of_images)
    ]
    annotations = [
        {"image_id": n, "id": 10 * n + i, "caption": text}
        for n in range(number_of_images)
        for i, text in enumerate(captions_of(n))
    ]
    return write(path, {"info": {}, "licenses": [], "images": images, "annotations": annotations})


def karpathy(number_of_images: int, path: Path, name: str) -> str:
    """dataset_coco.json or dataset_flickr30k.json; the last image is of another split."""
    images = []
    for n in range(number_of_images):
        sentences = [
            {"tokens": text.split(), "raw": text, "imgid": n, "sentid": 5 * n + i}
            for i, text in enumerate(captions_of(n))
        ]
        image = {
            "sentids": [sentence["sentid"] for sentence in sentences],
            "imgid": n,
            "sentences": sentences,
            "split": "train" if n == number_of_images - 1 else "test",
            "filename": coco_name(n),
        }
        images.append(image | ({"filepath": "val2014", "cocoid": 42 + n} if name == "coco" else {}))
    return write(path, {"images": images, "dataset": name})
