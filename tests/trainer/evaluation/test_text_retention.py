"""Denoising loss and text QA of a model and its BART; `to_bart()` in the example scripts of transformers."""

import copy
import json
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from datasets import Dataset
from huggingface_hub import HfApi
from transformers import AutoModelForSeq2SeqLM

from modeling_vlkd.image_loading_vlkd import download
from trainer.cli import main
from trainer.data.infilling import TextInfilling, seeded_rng
from trainer.evaluation.metrics_file import load_metrics
from trainer.evaluation.retention import CORRUPTION, denoising_losses, loss_results

BART = str(Path(__file__).parents[3] / "microworld" / "teachers" / "bart")
TEXTS = ["a photo of a red circle and a blue square", "two dogs", "the green triangle is left of it! one cat"]


def test_the_loss_of_each_text_is_what_it_is_alone(model, processor):
    bart, tokenizer = model.to_bart().eval(), processor.tokenizer
    sums, counts = denoising_losses(bart, tokenizer, TEXTS, batch_size=2)
    infilling = TextInfilling(tokenizer.mask_token_id, mask_ratio=0.3, full_mask_probability=0.0)
    for number, text in enumerate(TEXTS):
        ids = tokenizer(text).input_ids
        corrupted = infilling(ids, seeded_rng(0, CORRUPTION, 0, number))
        assert corrupted != ids or number == 1
        with torch.no_grad():
            loss = bart(torch.tensor([corrupted]), labels=torch.tensor([ids])).loss
        assert counts[number] == len(ids)
        assert sums[number] == pytest.approx(loss.item() * len(ids), rel=1e-5)


def test_the_change_is_paired():
    before = np.array([10.0, 40.0, 90.0, 20.0])
    counts = np.array([10, 20, 30, 10])
    worse = loss_results({"model": (before + counts, counts), "reference": (before, counts)})
    (_, (after,)), (_, (was,)), (_, (change,)) = worse
    assert (was["value"], after["value"], was["n"]) == (160 / 70, 230 / 70, 4)
    assert was["low"] < was["value"] < was["high"]  # the documents differ much
    # One nat a token more in every document: there is no doubt of that, whichever documents are drawn.
    assert (change["value"], change["low"], change["high"]) == pytest.approx((1, 1, 1))


def run(folder: Path, *argv: str) -> dict:
    assert main(["evaluate", "--task", "text-retention", *argv, "--output_dir", str(folder)]) == 0
    metrics = load_metrics(folder / "metrics.json")
    return {(f["metric"], f["row"], f["condition"]): f for f in metrics["figures"]}


def test_a_model_that_was_not_trained_forgot_nothing(micro_dir, tmp_path):
    figures = run(tmp_path, "--reference_model", BART, "--model", micro_dir, "--limit", "30")
    for (metric, row, condition), figure in figures.items():
        if condition == "reference":
            same = figures[metric, row, "model"]
            assert [same[key] for key in ("value", "low", "high")] == [figure[key] for key in ("value", "low", "high")]
        if "change" in row:
            assert (figure["value"], figure["low"], figure["high"]) == (0, 0, 0)
    assert figures["denoising loss", "nats per token", "reference"]["n"] == 30
    assert {metric for metric, _, _ in figures} == {"denoising loss", "text QA"}


def test_a_model_that_was_shaken_forgot(model, processor, vlkd_dir, bart_dir, tmp_path, capsys):
    shaken = copy.deepcopy(model)
    torch.manual_seed(0)
    for parameter in shaken.language_model.parameters():
        parameter.data += 0.3 * torch.randn_like(parameter)
    shaken.save_pretrained(tmp_path / "after")
    processor.save_pretrained(tmp_path / "after")
    text = tmp_path / "text"
    Dataset.from_dict({"story": TEXTS * 4}).save_to_disk(text)
    options = ("--dataset_name", str(text), "--split", "train", "--columns", "{text: story}")
    figures = run(tmp_path, "--reference_model", bart_dir, "--model", str(tmp_path / "after"), *options)
    change = figures["denoising loss", "change", "model"]
    assert set(metric for metric, _, _ in figures) == {"denoising loss"}  # no questions about a user's own text
    assert change["low"] > 0 and change["n"] == 12
    assert "denoising loss: change" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model", "{vlkd}"], "task 'text-retention' requires --reference_model"),
        (["--reference_model", BART], "required: --model"),
        (["--reference_model", BART, "--model", "{empty}"], "empty' is not a readable checkpoint"),
        (["--reference_model", "{clip}", "--model", "{vlkd}"], "is of type 'clip'; give a bart or vlkd checkpoint"),
        (["--reference_model", BART, "--model", "{vlkd}"], "have different vocabularies"),
        (["--reference_model", "{bart}", "--model", "{vlkd}", "--limit", "0"], "--limit 0 must be 1 or more"),
        (["--reference_model", "{bart}", "--model", "{vlkd}", "--clip", "x"], "'text-retention' does not use --clip"),
        (
            ["--reference_model", "{bart}", "--model", "{vlkd}", "--predictions_only"],
            "does not use --predictions_only",
        ),
        (
            ["--reference_model", "{bart}", "--model", "{vlkd}", "--dataset_name", "{text}"],
            "has no column 'text'; it has story",
        ),
        (
            [
                "--reference_model",
                "{bart}",
                "--model",
                "{vlkd}",
                "--dataset_name",
                "{text}",
                "--columns",
                "{text: story}",
            ],
            "row 1: column 'story' is ''; it must be a non-empty text",
        ),
    ],
)
def test_bad_input(vlkd_dir, bart_dir, clip_dir, tmp_path, capsys, options, message):
    Dataset.from_dict({"story": ["a", ""]}).save_to_disk(tmp_path / "text")
    (tmp_path / "empty").mkdir()
    names = {
        "{empty}": str(tmp_path / "empty"),
        "{vlkd}": vlkd_dir,
        "{bart}": bart_dir,
        "{clip}": clip_dir,
        "{text}": str(tmp_path / "text"),
    }
    argv = [names.get(word, word) for word in options]
    split = ["--split", "train"] if "{text}" in options else []
    assert main(["evaluate", "--task", "text-retention", *argv, *split]) == 2
    assert message in capsys.readouterr().err


# --------------------------------------------------------------------------------------------------- GLUE and XSum


@pytest.fixture
def plain_bart(vlkd_dir, tmp_path, monkeypatch) -> str:
    """What the page's one line writes."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_model").symlink_to(vlkd_dir)
    page = (Path(__file__).parents[3] / "docs" / "evaluation.md").read_text(encoding="utf-8")
    (line,) = (line for line in page.splitlines() if line.startswith("python -c "))
    exec(shlex.split(line)[2], {})
    return str(tmp_path / "my_bart")


def test_to_bart_is_the_bart_in_the_model(plain_bart, model):
    bart = AutoModelForSeq2SeqLM.from_pretrained(plain_bart)
    assert type(bart).__name__ == "BartForConditionalGeneration"
    for name, tensor in model.to_bart().state_dict().items():
        assert torch.equal(bart.state_dict()[name], tensor)


@pytest.fixture
def script(tmp_path):
    """A function that fetches one of transformers' example scripts."""

    def fetch(path: str) -> str:
        url = (
            f"https://raw.githubusercontent.com/huggingface/transformers/v{transformers.__version__}/examples/pytorch"
        )
        try:
            content = download(f"{url}/{path}")
            HfApi().list_datasets(limit=1)
        except Exception as error:
            pytest.skip(f"the script comes from GitHub and its metric from the Hub: {error}")
        (tmp_path / Path(path).name).write_bytes(content)
        return str(tmp_path / Path(path).name)

    return fetch


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "rows", "options", "metric"),
    [
        (
            "text-classification/run_glue.py",
            [{"sentence": f"a {word} photo", "label": label} for label, word in enumerate(("bad", "good"))],
            ["--max_seq_length", "32"],
            "eval_accuracy",
        ),
        (
            "summarization/run_summarization.py",
            [{"document": f"{word} and {word}", "summary": word} for word in ("red", "two")],
            ["--predict_with_generate", "--max_source_length", "32", "--max_target_length", "16"],
            "eval_rouge1",
        ),
    ],
)
def test_the_scripts_themselves(plain_bart, script, tmp_path, path, rows, options, metric):
    (tmp_path / "rows.json").write_text("\n".join(map(json.dumps, rows * 8)))
    files = ["--train_file", str(tmp_path / "rows.json"), "--validation_file", str(tmp_path / "rows.json")]
    out = str(tmp_path / "out")
    command = [sys.executable, script(path), "--model_name_or_path", plain_bart, "--do_train", "--do_eval", *files]
    subprocess.run([*command, *options, "--num_train_epochs", "1", "--output_dir", out], check=True, timeout=500)
    assert metric in json.loads(Path(out, "all_results.json").read_text())
