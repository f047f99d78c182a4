"""Killed and resumed, a run ends with the weights of one that was never interrupted, to the bit."""

import multiprocessing
import os
import resource
import shutil
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from caption_data import load
from safetensors.torch import load_file
from training_runs import build, counted_stream, make_parts, parameters
from transformers import TrainerCallback

from trainer import EpochDataset, VLKDTrainer
from trainer.checkpoints import complete_checkpoints, find_checkpoint

MUON = {"projector_optimizer": "muon", "lr_scheduler_type": "cosine", "gradient_accumulation_steps": 2}
RUNS = {  # options, and how many rows were used up before the first checkpoint; an epoch has 18, in batches of 4
    "within an epoch, chunked": ({"lr_scheduler_type": "linear", "contrastive_chunk_size": 3}, 12),
    "after an epoch, bf16": ({"max_steps": 10, "save_steps": 5, "bf16": True}, 18),
    "accumulated, Muon, cosine": ({"max_steps": 5, "save_steps": 4, **MUON}, 26),
    "workers": ({"dataloader_num_workers": 2, **MUON}, None),
    "stream": ({"stream": True, **MUON}, 24),
    "stream, workers": ({"stream": True, "dataloader_num_workers": 2}, None),
}


class CountedRows(EpochDataset):
    """Remembers which rows were read, in this process."""

    def __init__(self, *args):
        super().__init__(*args)
        self.reads: list[int] = []

    def __getitems__(self, indices: list[int]) -> list[dict]:
        self.reads += indices
        return super().__getitems__(indices)


def make(parts: SimpleNamespace, folder: str = "run", stream: bool = False, **options) -> VLKDTrainer:
    """A trainer with dropout; its data remembers its `reads`."""
    parts = SimpleNamespace(**{**vars(parts), "folder": f"{parts.folder}/{folder}"})
    options = {"max_steps": 6, "save_steps": 3, "save_strategy": "steps", "logging_steps": 100, **options}
    data = counted_stream() if stream else CountedRows(load(rows=18))
    return build(parts, data, dropout=0.1, **options)


@pytest.fixture
def parts(model, processor, clip_dir, tmp_path) -> SimpleNamespace:
    return make_parts(model, processor, clip_dir, str(tmp_path))


def assert_same_weights(actual: torch.nn.Module, expected: torch.nn.Module) -> None:
    expected = parameters(expected)
    assert all(torch.equal(value, expected[name]) for name, value in parameters(actual).items())


@pytest.mark.parametrize("name", RUNS)
def test_resumed_run_is_the_uninterrupted_one(parts, name):
    """And reads nothing again of what it had used: that it does so shows in `reads`, where no workers read."""
    options, used = RUNS[name]
    straight = make(parts, **options)
    straight.train()
    first, *later = complete_checkpoints(straight.args.output_dir)
    for checkpoint in later:
        shutil.rmtree(checkpoint)
    resumed = make(parts, **options)
    torch.rand(7)  # whatever was drawn before
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, straight.model)
    if used is not None:
        assert resumed.train_dataset.reads == straight.train_dataset.reads[used:]


# ---- killed


class KillAtStep(TrainerCallback):
    """SIGKILL, which nobody can catch, as a step begins."""

    def __init__(self, step: int):
        self.step = step

    def on_step_begin(self, args, state, control, **kwargs) -> None:
        if state.global_step == self.step:
            os.kill(os.getpid(), signal.SIGKILL)


class KillInSave:
    """In place of the processor: the second checkpoint's weights have been written, the rest has not."""

    def __init__(self):
        self.saves = 0

    def save_pretrained(self, folder: str) -> None:
        self.saves += 1
        if self.saves == 2:
            os.kill(os.getpid(), signal.SIGKILL)


def in_child(function: Callable[[], None]) -> int:
    """The exit code of a forked process that runs the function."""

    def run() -> None:
        torch.set_num_threads(1)
        function()

    child = multiprocessing.get_context("fork").Process(target=run)
    child.start()
    child.join(60)
    return child.exitcode


@pytest.mark.parametrize("stream", [False, True])
def test_killed_while_it_saves(parts, stream):
    """The half-written checkpoint has no name; the one before is taken, and the next save clears it away."""
    options = {"save_steps": 2, "stream": stream, "save_total_limit": 1}
    straight = make(parts, "straight", **options)
    straight.train()
    killed = make(parts, **options)
    killed.processing_class = KillInSave()
    assert in_child(killed.train) == -signal.SIGKILL
    folder = Path(killed.args.output_dir)
    assert find_checkpoint(True, folder).endswith("checkpoint-2")
    assert Path(folder, "unfinished", "checkpoint-4", "model.safetensors").is_file()
    resumed = make(parts, **options)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, straight.model)
    assert sorted(path.name for path in folder.iterdir()) == ["checkpoint-6"]


def test_killed_between_checkpoints(parts):
    straight = make(parts, "straight")
    straight.train()
    killed = make(parts)
    killed.add_callback(KillAtStep(5))
    assert in_child(killed.train) == -signal.SIGKILL
    resumed = make(parts)
    resumed.train(resume_from_checkpoint=True)
    assert_same_weights(resumed.model, straight.model)


# ---- a full disk, and what is left of checkpoints


class LimitFiles(TrainerCallback):
    """From the first checkpoint on no file may grow beyond a limit: what a full disk does, without filling one."""

    def on_save(self, args, state, control, **kwargs) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))


def test_full_disk(parts):
    trainer = make(parts)
    trainer.add_callback(LimitFiles())
    told = Path(parts.folder, "told.txt")

    def run() -> None:
        with pytest.raises(OSError) as error:
            trainer.train()
        told.write_text(str(error.value))

    assert in_child(run) == 0
    folder = Path(trainer.args.output_dir)
    message = told.read_text()
    for part in (
        f"'{folder}/checkpoint-6' could not",
        "File too large",
        "MB are free",
        f"resume from '{folder}/checkpoint-3'",
    ):
        assert part in message
    assert [path.name for path in folder.iterdir()] == ["checkpoint-3"]
    make(parts, max_steps=4).train(resume_from_checkpoint=True)


def test_newest_complete_checkpoint(parts):
    trainer = make(parts, save_steps=2, save_total_limit=0)
    trainer.train()
    folder = trainer.args.output_dir
    Path(folder, "checkpoint-6", "optimizer.pt").unlink()
    cut = Path(folder, "checkpoint-4", "model.safetensors")
    cut.write_bytes(cut.read_bytes()[:-1])
    assert complete_checkpoints(folder) == [f"{folder}/checkpoint-2"]
    with pytest.raises(ValueError, match="checkpoint-4' is not complete: model.safetensors is missing or damaged"):
        trainer.train(resume_from_checkpoint=f"{folder}/checkpoint-4")
    with pytest.raises(ValueError, match="'.*/nowhere' is not a checkpoint"):
        trainer.train(resume_from_checkpoint=f"{folder}/nowhere")
    shutil.rmtree(f"{folder}/checkpoint-2")
    with pytest.raises(ValueError, match="/run' has no complete checkpoint; leave the option out"):
        trainer.train(resume_from_checkpoint=True)


def test_best_checkpoint_is_known_by_its_name(parts):
    """`load_best_model_at_end` finds it, and `save_total_limit` spares it, though it was written elsewhere."""
    options = {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    trainer = make(parts, load_best_model_at_end=True, **options)
    trainer.train()
    assert (
        trainer.state.best_model_checkpoint == f"{trainer.args.output_dir}/checkpoint-{trainer.state.best_global_step}"
    )
    assert Path(trainer.state.best_model_checkpoint, "model.safetensors").is_file()


def make_with_best(parts, folder: str, **options) -> VLKDTrainer:
    """A run whose first checkpoint stays the best: the loss falls, and the largest one is asked for."""
    options |= {"eval_strategy": "steps", "eval_steps": 2, "save_steps": 2, "save_total_limit": 1}
    options |= {"load_best_model_at_end": True, "metric_for_best_model": "loss", "greater_is_better": True}
    return make(parts, folder, learning_rate=3e-3, **options)


@pytest.mark.parametrize("old_folder", ["moved", "copied"])
def test_best_checkpoint_of_a_moved_run(parts, old_folder):
    """It is kept by `save_total_limit` and loaded at the end, though the state names a path in the old folder."""
    run = make_with_best(parts, "run", max_steps=4)
    run.train()
    assert run.state.best_global_step == 2
    new = f"{parts.folder}/new"
    shutil.copytree(run.args.output_dir, new)
    if old_folder == "moved":
        shutil.rmtree(run.args.output_dir)
    resumed = make_with_best(parts, "new", max_steps=8)
    resumed.train(resume_from_checkpoint=f"{new}/checkpoint-4" if Path(new, "checkpoint-4").is_dir() else True)
    assert resumed.state.best_model_checkpoint == f"{new}/checkpoint-2"
    assert Path(new, "checkpoint-2", "model.safetensors").is_file()
    weights = load_file(f"{new}/checkpoint-2/model.safetensors")
    assert torch.equal(resumed.model.text_projection.weight, weights["text_projection.weight"])


def test_checkpoint_without_optimizer_state_is_refused(parts):
    """It would resume with the learning rate's schedule and Adam's moments at their start, and say nothing."""
    make(parts, save_only_model=True).train()
    folder = f"{parts.folder}/run"
    remedy = rf"'{folder}/checkpoint-6' has no optimizer and scheduler state.* set model_name_or_path"
    for checkpoint in (True, f"{folder}/checkpoint-6"):
        with pytest.raises(ValueError, match=remedy):
            make(parts, max_steps=8).train(resume_from_checkpoint=checkpoint)


def test_checkpoint_with_a_zeroed_file_is_skipped(parts):
    """A power cut can leave a file of the right size that holds zeros."""
    trainer = make(parts)
    trainer.train()
    folder = trainer.args.output_dir
    for name in ("model.safetensors", "optimizer.pt", "trainer_state.json", "contents.txt"):
        file = Path(folder, "checkpoint-6", name)
        content = file.read_bytes()
        file.write_bytes(bytes(len(content)))
        assert find_checkpoint(True, folder) == f"{folder}/checkpoint-3"
        with pytest.raises(ValueError, match=f"checkpoint-6' is not complete: {name} is missing or damaged"):
            find_checkpoint(f"{folder}/checkpoint-6", folder)
        file.write_bytes(content)
    assert find_checkpoint(True, folder) == f"{folder}/checkpoint-6"


@pytest.mark.parametrize(
    ("saved", "resumed"),
    [
        ({"projector_optimizer": "adamw"}, {"projector_optimizer": "muon"}),
        ({"projector_optimizer": "muon"}, {"projector_optimizer": "adamw"}),
        ({"optim": "sgd"}, {"optim": "adamw_torch"}),
        ({"freeze": "all"}, {"freeze": "none"}),
    ],
)
def test_another_optimizer_is_refused(parts, saved, resumed):
    make(parts, max_steps=3, **saved).train()
    ((name, value),) = saved.items()
    with pytest.raises(ValueError, match=rf"checkpoint-3' was saved with {name}={value}.*Set {name} to {value}"):
        make(parts, **resumed).train(resume_from_checkpoint=True)


def test_tied_weights_are_not_reported_missing(parts, caplog):
    """BART's embeddings, encoder, decoder and head share one tensor, which a checkpoint stores once."""
    make(parts, max_steps=3).train()
    make(parts).train(resume_from_checkpoint=True)
    assert "missing keys" not in caplog.text


def test_stream_of_another_layout(parts):
    make(parts, stream=True, max_steps=3).train()
    with pytest.raises(ValueError, match="dataloader_num_workers=0 each; this run has 1 .* dataloader_num_workers=1"):
        make(parts, stream=True, dataloader_num_workers=1).train(resume_from_checkpoint=True)
    make(parts, "rows", max_steps=3).train()
    with pytest.raises(ValueError, match="has no stream_0.pt"):
        make(parts, stream=True).train(resume_from_checkpoint=f"{parts.folder}/rows/checkpoint-3")
