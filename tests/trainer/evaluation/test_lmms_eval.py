"""The command of lmms-eval runs VLKD: one of its own tasks and one of ours, on local files. Needs `make test-slow`."""

import json
import math
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
import yaml
from datasets import Dataset

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor

ROOT = Path(__file__).parents[3]
FOLDER = Path(sys.prefix) / "lmms_eval"  # where `make test-slow` installs it
QUESTIONS = ["what is in the picture?", "how many?", "is it red?", "where is the dog?"]
NEW_TOKENS = 8
STOP = " meadow"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not (find_spec("lmms_eval") or FOLDER.exists()), reason="lmms-eval is not installed"),
]


@torch.no_grad()
def write_text(model, processor, image, prompt: str, **options) -> str:
    """The text for one image and prompt, without a batch."""
    inputs = processor(images=image, text=prompt)
    ids = model.generate(**inputs, **options)
    return processor.post_process_generation(ids, inputs["input_ids"], first_sentence=prompt != "<mask>")[0]


def voters(prediction: str, votes: int) -> list[dict]:
    """Ten people's answers, of which some are the prediction."""
    answers = [prediction] * votes + ["zebra"] * (10 - votes)
    return [{"answer": answer, "answer_id": number} for number, answer in enumerate(answers)]


def write_task(folder: Path, name: str, rows: dict, **options) -> None:
    Dataset.from_dict(rows).to_parquet(folder / f"{name}.parquet")
    data = {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"test": str(folder / f"{name}.parquet")}}}
    task = {"task": name, **data, "test_split": "test", "doc_to_visual": "image", **options}
    (folder / f"{name}.yaml").write_text(yaml.safe_dump(task))


def run_command(model: str, folder: Path) -> tuple[dict, dict]:
    """The results by task, and the texts of each task."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "vlkd", "--batch_size", "3", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--tasks", "own_vqav2,own_captions"]
    command += ["--include_path", str(folder), "--output_path", str(folder / "out"), "--log_samples"]
    path = os.pathsep.join(map(str, [ROOT, *([] if find_spec("lmms_eval") else [FOLDER])]))
    environment = {**os.environ, "PYTHONPATH": path, "HF_HOME": str(folder / "home"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    found = list((folder / "out").rglob("*_results.json"))  # the exit code is 0 also after some errors
    assert done.returncode == 0 and len(found) == 1, (done.stdout + done.stderr)[-4000:]
    samples = {}
    for file in (folder / "out").rglob("*_samples_*.jsonl"):
        rows = sorted(map(json.loads, file.read_text().splitlines()), key=lambda row: row["doc_id"])
        samples[file.stem.partition("_samples_")[2]] = [row["filtered_resps"] for row in rows]
    return json.loads(found[0].read_text())["results"], samples


def test_command(micro_dir, images, tmp_path):
    model = VLKDForConditionalGeneration.from_pretrained(micro_dir).eval()
    processor = VLKDProcessor.from_pretrained(micro_dir)
    pairs = list(zip(images, QUESTIONS, strict=True))
    answers = [
        write_text(model, processor, image, processor.build_vqa_prompt(text), max_new_tokens=NEW_TOKENS)
        for image, text in pairs
    ]
    room = processor.tokenizer.model_max_length - 3  # the prompt has three tokens
    texts = [write_text(model, processor, image, "<mask>", max_new_tokens=room, num_beams=2) for image in images]
    captions = [text.split(STOP)[0].strip() for text in texts]
    assert captions != texts

    # 10, 2, 1 and no people agree. VQA accuracy leaves each one out: 1, (8 * 2/3 + 2 * 1/3) / 10, (9 * 1/3) / 10, 0.
    votes = [voters(answer, number) for answer, number in zip(answers, (10, 2, 1, 0), strict=True)]
    rows = {"image": images, "question": QUESTIONS, "question_id": list(range(4)), "answers": votes}
    write_task(tmp_path, "questions", rows)
    data = yaml.safe_load((tmp_path / "questions.yaml").read_text())["dataset_kwargs"]["data_files"]["test"]
    prompts = {"vlkd": {"pre_prompt": "", "post_prompt": ""}}
    task = {"task": "vqav2_val", "dataset_path": "parquet", "dataset_kwargs": {"data_files": {"validation": data}}}
    task |= {"lmms_eval_specific_kwargs": prompts, "generation_kwargs": {"max_new_tokens": NEW_TOKENS}}
    (tmp_path / "own_vqav2.yaml").write_text(yaml.safe_dump({"group": "own_vqav2", "task": [task]}))

    # Two captions of four are right. The task allows more tokens than BART has positions.
    targets = [*captions[:2], "a zebra", "a zebra"]
    options = {"num_beams": 2, "max_new_tokens": 1024, "temperature": 0, "top_p": None, "until": [STOP]}
    metric = {"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}
    common = {"doc_to_text": "<mask>", "doc_to_target": "caption", "metric_list": [metric]}
    common |= {"output_type": "generate_until", "generation_kwargs": options}
    write_task(tmp_path, "own_captions", {"image": images, "caption": targets}, **common)

    results, samples = run_command(micro_dir, tmp_path)
    assert samples["vqav2_val"] == answers
    assert samples["own_captions"] == captions
    assert math.isclose(results["vqav2_val"]["exact_match,none"], (1 + 0.6 + 0.3) / 4, abs_tol=1e-6)
    assert results["own_captions"]["exact_match,none"] == 2 / 4
