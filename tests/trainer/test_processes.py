"""Two processes with half the batch each learn what one learns with the whole batch, and stop together."""

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import yaml
from caption_data import load
from safetensors.torch import load_file
from training_runs import build, counted_stream, free_port, make_parts, parameters, train_logs

from trainer import EpochDataset

ROOT = Path(__file__).parents[2]
PROCESSES = 2
TERMS = ("loss", "ttdm", "itcl", "icti")
ROWS = 30  # three batches of 8 an epoch, with six rows left over: others in each epoch
EVAL_ROWS = 11
EVAL_BATCHES = (2, 3, 8)  # of a process: of the last rows it has 3 of 4, 5 of 6, and 3 of 8 where the other has all
RUNS = {
    "every step": {},
    "accumulated": {"gradient_accumulation_steps": 2},
    "chunked": {"gradient_accumulation_steps": 2, "contrastive_chunk_size": 3},
    "without a loss of W_d": {"activation_checkpointing": True, "icti_weight": 0.0},
    "without a loss of W_e": {"activation_checkpointing": True, "ttdm_weight": 0.0, "itcl_weight": 0.0},
}


def run(parts: SimpleNamespace, batch: int, **options) -> tuple[dict, list[dict]]:
    """Weights and logs of 9 steps in shuffled order; captions are ragged.

    A key's bias has no effect, so that its gradient is rounding alone; Adam's epsilon lies above it.
    """
    trainer = build(
        parts,
        EpochDataset(load(rows=ROWS)),
        per_device_train_batch_size=batch,
        dataloader_drop_last=True,
        max_steps=9,
        learning_rate=1e-4,
        adam_epsilon=1e-6,
        **options,
    )
    trainer.train()
    return parameters(trainer.model), train_logs(trainer)


def resumed_and_straight(parts: SimpleNamespace, folder: str, kind: str) -> list[dict]:
    """Weights of a run with dropout, once as it is and once resumed from its middle, the only checkpoint left."""
    parts = SimpleNamespace(**{**vars(parts), "folder": f"{folder}/{kind}"})
    weights = []
    for resume in (False, True):
        if kind == "stream":
            data = counted_stream(dist.get_rank(), PROCESSES)
        else:
            data = EpochDataset(load(rows=ROWS))
        trainer = build(parts, data, dropout=0.1, max_steps=6, save_strategy="steps", save_steps=4)
        trainer.train(resume_from_checkpoint=f"{parts.folder}/checkpoint-4" if resume else None)
        weights.append(parameters(trainer.model))
    return weights


def message_of_spoilt_run(parts: SimpleNamespace) -> str:
    """What stops a run in whose third step one row, which only one process has, makes CLIP see NaN."""
    dataset = EpochDataset(load(rows=16))
    trainer = build(
        parts,
        dataset,
        max_steps=4,
        per_device_train_batch_size=2,
        gradient_accumulation_steps=2,
        train_sampling_strategy="sequential",
    )
    collate = trainer.data_collator

    def spoil(rows: list[dict]) -> dict:
        batch = collate(rows)
        for place, row in enumerate(rows):
            if row["index"] == 11:
                batch["pixel_values"][place, 0, 0, 0] = float("nan")
        return batch

    trainer.data_collator = spoil
    with pytest.raises(FloatingPointError) as error:
        trainer.train()
    assert all(value.isfinite().all() for value in trainer.model.parameters())
    return str(error.value)


def evaluated(parts: SimpleNamespace, batch: int) -> dict[str, float]:
    """The metrics of 11 rows, which neither two processes nor a batch divide; texts are ragged."""
    data = EpochDataset(load(rows=EVAL_ROWS))
    return build(parts, data, per_device_eval_batch_size=batch).evaluate()


def sampled(parts: SimpleNamespace, folder: str, batch: int) -> list[dict]:
    """The captions of a run that shows three samples, from its state; `folder` gets the page.

    A learning rate of 0: rounding in the weights would change a caption sooner or later.
    """
    parts = SimpleNamespace(**{**vars(parts), "folder": folder})
    options = {"eval_samples": 3, "eval_strategy": "steps", "eval_steps": 2, "learning_rate": 0.0}
    trainer = build(parts, EpochDataset(load(rows=ROWS)), per_device_train_batch_size=batch, max_steps=4, **options)
    trainer.train()
    return [log["eval_samples"] for log in trainer.state.log_history if "eval_samples" in log]


def in_process(rank: int, parts: SimpleNamespace, folder: str, port: int) -> None:
    launch = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": 2, "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in launch.items()})  # as torchrun does
    torch.set_num_threads(1)
    results = {name: run(parts, 4, **options) for name, options in RUNS.items()}
    results["evaluation"] = {batch: evaluated(parts, batch) for batch in EVAL_BATCHES}
    results["samples"] = sampled(parts, f"{folder}/samples", 4)
    results["message"] = message_of_spoilt_run(parts)
    for kind in ("rows", "stream"):
        results[kind] = resumed_and_straight(parts, folder, kind)
    torch.save(results, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.fixture(scope="module")
def parts(model, processor, clip_dir, tmp_path_factory) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path_factory.mktemp("run")))


@pytest.fixture(scope="module")
def results(parts, tmp_path_factory) -> list[dict]:
    """What each of the two processes came to. They are forked from one that has imported the trainer, and no more."""
    folder = str(tmp_path_factory.mktemp("processes"))
    mp.set_forkserver_preload(["trainer.vlkd_trainer"])
    arguments = (parts, folder, free_port())
    mp.start_processes(in_process, args=arguments, nprocs=PROCESSES, start_method="forkserver")
    return [{**torch.load(f"{folder}/{rank}.pt"), "folder": folder} for rank in range(PROCESSES)]


@pytest.mark.parametrize("name", RUNS)
def test_two_processes_learn_what_one_learns(parts, results, name):
    """The losses of 9 steps, and the weights afterwards. Dropout is 0: each process draws its own random numbers."""
    options = {**RUNS[name], "contrastive_chunk_size": None}  # nor do chunks change anything
    expected, expected_logs = run(parts, 8, **options)
    weights, logs = results[0][name]
    assert len(logs) == len(expected_logs) == 9
    for log, expected_log in zip(logs, expected_logs, strict=True):
        for term in TERMS:
            assert log[term] == pytest.approx(expected_log[term], rel=1e-5, abs=1e-5)
    for key, value in expected.items():
        torch.testing.assert_close(weights[key], value, rtol=1e-5, atol=1e-5, msg=lambda m, key=key: f"{key}: {m}")
        assert torch.equal(weights[key], results[1][name][0][key])


@pytest.mark.parametrize("batch", EVAL_BATCHES)
def test_evaluation_counts_each_row_once(parts, results, batch):
    """accelerate repeats rows where a split does not divide. ITCL's negatives are those of a batch, so that the one
    process has a batch as large as both together; the other terms do not depend on it."""
    expected, alone = evaluated(parts, PROCESSES * batch), evaluated(parts, 1)
    for result in results:
        metrics = result["evaluation"][batch]
        for term in TERMS:
            assert metrics[f"eval_{term}"] == pytest.approx(expected[f"eval_{term}"], rel=1e-5)
        for term in ("ttdm", "icti"):
            assert metrics[f"eval_{term}"] == pytest.approx(alone[f"eval_{term}"], rel=1e-5)


def test_samples_are_those_of_one_process(parts, results, tmp_path):
    """Both processes keep the captions in their state; one of them writes the page."""
    expected = sampled(parts, str(tmp_path / "samples"), 8)
    assert len(expected) == 2 and len(expected[0]) == 3
    assert results[0]["samples"] == results[1]["samples"] == expected
    pages = [Path(folder, "samples", "samples.html").read_bytes() for folder in (results[0]["folder"], tmp_path)]
    assert pages[0] == pages[1]


@pytest.mark.parametrize("kind", ["rows", "stream"])
def test_both_processes_resume_exactly(results, kind):
    """Each has its own random state and place in the stream; a folder gets its name once both have written."""
    for result in results:
        straight, resumed = result[kind]
        assert all(torch.equal(resumed[name], value) for name, value in straight.items())


def test_a_loss_that_is_not_finite_stops_all_processes(results):
    """Row 11 is the second process's; the first, whose ITCL it spoils, names it too, and nobody waits for anybody."""
    first, second = (result["message"] for result in results)
    assert first == second
    assert first.startswith("step 2: itcl is nan and icti is nan because of row 11 of epoch 0 on process 1. ")


@pytest.mark.slow
def test_torchrun_as_documented(tmp_path):
    """`vlkd train` by torchrun on the two shipped teachers, which have no dropout; the command is the page's."""
    options = {
        "clip": str(ROOT / "microworld/teachers/clip"),
        "bart": str(ROOT / "microworld/teachers/bart"),
        "dataset_name": "microworld.dataset:load",
        "dataset_kwargs": {"size": 64, "captions_per_image": 2},
        "caption_column": "captions",
        "cache_dir": str(tmp_path / "cache"),
        "max_steps": 20,
        "learning_rate": 1e-4,
        "adam_epsilon": 1e-6,
        "projector_optimizer": "adamw",  # Muon may compute in bfloat16, which enlarges rounding errors
        "use_cpu": True,
        "bf16": False,
        "disable_tqdm": True,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
    }
    page = (ROOT / "docs" / "scaling.md").read_text(encoding="utf-8")
    command = next(line for line in page.splitlines() if line.startswith("torchrun"))
    launchers = {1: "python -m trainer.cli train --config train.yaml", 2: command}
    for processes, launcher in launchers.items():
        sizes = {"per_device_train_batch_size": 16 // processes, "output_dir": str(tmp_path / str(processes))}
        (tmp_path / "train.yaml").write_text(yaml.safe_dump(options | sizes))
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        environment["PATH"] = f"{Path(sys.executable).parent}{os.pathsep}{environment['PATH']}"
        subprocess.run(shlex.split(launcher), cwd=tmp_path, env=environment, check=True)
    one, two = (load_file(tmp_path / str(processes) / "model.safetensors") for processes in launchers)
    torch.testing.assert_close(two, one, rtol=1e-5, atol=1e-5)
    logs = [json.loads((tmp_path / name / "trainer_state.json").read_text())["log_history"] for name in "12"]
    for log, expected in zip(*logs, strict=True):
        for term in {"loss", "ttdm", "itcl", "icti"} & expected.keys():
            assert log[term] == pytest.approx(expected[term], rel=1e-5, abs=1e-5)
