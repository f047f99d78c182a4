"""What `make rehearsal` rests on, with tiny checkpoints: the public layouts, how they are served, and the table."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from loopback_hub import running_hub
from rehearsal.__main__ import PAGE, Measured, Step, run, serve, steps_of, table, write_page
from rehearsal.checkpoints import bart_vocabulary, clip_config, clip_vocabulary
from rehearsal.repositories import write_repositories
from rehearsal.sizes import BASE, LARGE

CLIENT = """\
import json
from huggingface_hub import snapshot_download
from datasets import load_dataset
from transformers import AutoTokenizer
from trainer.data.sources import load_split
from trainer.evaluation.datasets import DatasetOverrides, load_examples
from trainer.evaluation.tasks.task import load_task
from trainer.models import load_teacher
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor

clip, bart = "openai/clip-vit-base-patch16", "facebook/bart-base"
model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip, bart)
processor = VLKDProcessor.from_vision_text_pretrained(clip, bart)
teacher, tokenizer = load_teacher(clip)
stream = load_dataset("pixparse/cc3m-wds", split="train", streaming=True)
rows = list(stream)
report = {"d_model": model.config.text_config.d_model, "clip": AutoTokenizer.from_pretrained(clip)("a cat").input_ids}
report |= {"bart": AutoTokenizer.from_pretrained(bart)("<mask>").input_ids, "rows": len(rows)}
report |= {"columns": sorted(rows[0]), "mode": rows[0]["jpg"].mode, "shards": stream.num_shards}
task = load_task("vqav2")[0]
report["limited"] = [row["question_id"] for row in load_examples(task, DatasetOverrides(limit=2)).rows]
report["split"] = load_split("lmms-lab/VQAv2", "testdev").num_rows
try:
    load_split("lmms-lab/VQAv2", "train")
except ValueError as error:
    report["unknown"] = str(error)
coco = load_examples(load_task("coco-caption")[0], DatasetOverrides())
report["coco"] = [len(coco.rows), len(coco.rows[0]["captions"]), coco.image(0).size]
print(json.dumps(report))
"""


@pytest.fixture(scope="module")
def content(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("rehearsal") / "hub"
    write_repositories(folder, "tiny", folder)
    return folder


@pytest.fixture(scope="module")
def served(content, tmp_path_factory) -> tuple[dict, list[str]]:
    """What a client process loads from the Hub, and the files that it fetched."""
    home = tmp_path_factory.mktemp("client")
    with running_hub() as hub:
        serve(hub, content)
        environment = {**os.environ, **hub.environment(str(home)), "http_proxy": hub.url, "https_proxy": hub.url}
        environment |= {"PYTHONPATH": str(PAGE.parents[1]), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", CLIENT]
        done = subprocess.run(command, env=environment, cwd=home, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
        fetched = [path.relative_to(content).as_posix() for path in hub.fetched]
    return json.loads(done.stdout.splitlines()[-1]), fetched


def files_of(dataset: str, fetched: list[str]) -> set[str]:
    return {name.rpartition("/")[2] for name in fetched if f"{dataset}/data" in name}


def test_public_layouts_load(served):
    report, _ = served
    assert report["d_model"] == 32
    # Without merges a word is its letters, the last one with </w>: start, a</w>, c, a, t</w>, end.
    words = clip_vocabulary([])
    expected = ["<|startoftext|>", "a</w>", "c", "a", "t</w>", "<|endoftext|>"]
    assert report["clip"] == [words[word] for word in expected]
    assert report["bart"] == [0, len(bart_vocabulary([])) - 1, 2]


def test_shards_stream(served):
    report, _ = served
    assert report["rows"] == 4 * 8 and report["shards"] == 4 and report["mode"] == "RGB"
    assert report["columns"] == ["__key__", "__url__", "jpg", "txt"]


def test_coco_images_come_from_their_server(served):
    assert served[0]["coco"] == [8, 5, [500, 375]]


def test_only_the_split_that_is_asked_for_is_downloaded(served):
    report, fetched = served
    assert report["limited"] == [42000, 42001] and report["split"] == 8
    assert files_of("coco-karpathy", fetched) == {"test-00000-of-00001.parquet"}
    vqa = {name for name in files_of("VQAv2", fetched) if not name.startswith("validation")}
    assert vqa == {"testdev-00000-of-00001.parquet"}
    assert report["unknown"].endswith("Unknown split 'train'. It has validation, testdev, test.")


def test_with_a_limit_later_shards_are_not_downloaded(served):
    _, fetched = served
    shards = {name for name in files_of("VQAv2", fetched) if name.startswith("validation")}
    first, second = (f"validation-0000{i}-of-00004.parquet" for i in range(2))
    assert first in shards and shards <= {first, second}  # `datasets` opens the next shard ahead of time


def test_real_shapes():
    config = clip_config(BASE, 49408)
    assert config["vision_config"]["intermediate_size"] == 3072 and config["text_config"]["eos_token_id"] == 2
    assert (LARGE.vision, LARGE.patch_size, LARGE.projection_dim) == ((1024, 24, 16), 14, 768)
    merges = [("xy", str(i)) for i in range(50000)]  # as many as GPT-2's, no two the same
    words = bart_vocabulary(merges)
    assert len(words) == 50265
    assert [words[word] for word in ("<s>", "<pad>", "</s>", "<unk>", "<mask>")] == [0, 1, 2, 3, 50264]
    assert len(clip_vocabulary(merges[:48894])) == 49408


def test_killed_and_failed_commands(tmp_path):
    (tmp_path / "hf").mkdir()
    script = "import pathlib, time; pathlib.Path('there').write_bytes(bytes(1000)); time.sleep(60)"
    step = Step(f'python -c "{script}"', check=None, kill_at="there")
    with running_hub() as hub:
        found = run(step, hub, tmp_path, dict(os.environ), tmp_path / "log")
        assert found.seconds < 30 and found.output == 1000 and found.cached == found.downloaded == 0
        assert 5e6 < found.peak < 1e10
        with pytest.raises(SystemExit, match="exit code 3"):
            run(Step('python -c "exit(3)"', check=None), hub, tmp_path, dict(os.environ), tmp_path / "log")
        with pytest.raises(SystemExit, match="exit code 0"):  # it ended before it was killed
            run(Step("python -V", check=None, kill_at="never"), hub, tmp_path, dict(os.environ), tmp_path / "log")


def test_table_and_page(tmp_path):
    sizes = {"peak": 3_700_000_000, "downloaded": 0, "written": 9, "cached": 5_000_000, "output": 2_040_000_000}
    row = Measured("vlkd train --max_steps 4", killed=True, seconds=12.4, **sizes)
    lines = table([row]).splitlines()
    assert lines[:4] == ["```bash", "# 1", "vlkd train --max_steps 4", "```"]
    assert lines[-1] == "| 1. `vlkd train` (killed) | 12 | 3.70 | 0.00 | 0.00 | 0.01 | 2.04 |"
    page = tmp_path / "page.md"
    page.write_text("Before.\n\n<!-- figures: rehearsal-base -->\n<!-- /figures -->\n\nAfter.\n")
    write_page(page, "base", [row], "make rehearsal")
    text = page.read_text()
    assert text.startswith("Before.") and text.endswith("After.\n") and "| 12 | 3.70 |" in text
    assert "Measured with `make rehearsal` on commit" in text and f"{os.cpu_count()} cores" in text


def test_page_has_a_place_for_each_size_and_every_script():
    text = PAGE.read_text(encoding="utf-8")
    for name in ("base", "large"):
        assert text.count(f"<!-- figures: rehearsal-{name} -->") == 1
    commands = {step.command.split()[1] for step in steps_of(BASE, 2, 2, 2)}
    assert {"cache", "train", "evaluate", "push", "caption", "ask"} <= commands
