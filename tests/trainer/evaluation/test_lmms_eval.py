"""The command of lmms-eval runs VLKD: the tasks of docs/evaluation.md, on local files. Needs `make test-slow`."""

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
NEW_TOKENS = 16  # of both tasks

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


def write_tasks(folder: Path, data: str, stop: str) -> None:
    """The two files of docs/evaluation.md, of the first only VQAv2 and on local data, and a captioning task."""
    page = (ROOT / "docs" / "evaluation.md").read_text(encoding="utf-8").split("## More benchmarks: lmms-eval\n")[1]
    group, questions = (block.split("```")[0] for block in page.split("```yaml\n")[1:3])
    group = yaml.safe_load(group)
    group["task"] = [task for task in group["task"] if task["task"] == "vqav2_val"]
    group["task"][0] |= {"dataset_path": "parquet", "dataset_kwargs": {"data_files": {"validation": data}}}
    (folder / "vlkd_tasks.yaml").write_text(yaml.safe_dump(group))
    (folder / "my_questions.yaml").write_text(questions)
    captions = yaml.safe_load(questions) | {"task": "my_captions", "doc_to_text": "<mask>", "doc_to_target": "caption"}
    options = {"num_beams": 2, "max_new_tokens": 1024, "temperature": 0, "top_p": None, "until": [stop]}
    (folder / "my_captions.yaml").write_text(yaml.safe_dump(captions | {"generation_kwargs": options}))


def run_command(model: str, folder: Path) -> tuple[dict, dict]:
    """The results by task, and the texts of each task."""
    command = [sys.executable, "-m", "lmms_eval", "--model", "vlkd", "--batch_size", "3", "--device", "cpu"]
    command += ["--model_args", f"pretrained={model},dtype=float32", "--tasks", "vlkd_tasks,my_questions,my_captions"]
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
    stop = texts[0].split()[-1]
    captions = [text.split(stop)[0].strip() for text in texts]
    assert captions != texts

    # 10, 2, 1 and no people agree. VQA accuracy leaves each one out: 1, (8 * 2/3 + 2 * 1/3) / 10, (9 * 1/3) / 10, 0.
    votes = [voters(answer, number) for answer, number in zip(answers, (10, 2, 1, 0), strict=True)]
    rows = {"image": images, "question": QUESTIONS, "question_id": list(range(4)), "answers": votes}
    rows |= {"answer": [answers[0].upper(), *answers[1:3], "zebra"], "caption": [*captions[:2], "zebra", "zebra"]}
    Dataset.from_dict(rows).to_parquet(tmp_path / "pictures.parquet")
    write_tasks(tmp_path, str(tmp_path / "pictures.parquet"), stop)

    results, samples = run_command(micro_dir, tmp_path)
    assert samples["vqav2_val"] == samples["my_questions"] == answers and samples["my_captions"] == captions
    assert math.isclose(results["vqav2_val"]["exact_match,none"], (1 + 0.6 + 0.3) / 4, abs_tol=1e-6)
    assert results["my_questions"]["exact_match,none"] == 3 / 4 and results["my_captions"]["exact_match,none"] == 2 / 4
