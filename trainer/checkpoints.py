"""Atomic checkpoints: a checkpoint is complete or does not exist, whenever a run is killed."""

import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints, sort_checkpoints
from transformers.utils import logging

UNFINISHED = "unfinished"  # the folder inside output_dir in which a checkpoint is written
CONTENTS = "contents.txt"  # in a checkpoint: `bytes name` of each other file, written last
STATE = "trainer_state.json"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # torch and safetensors raise the last two on a full disk

logger = logging.get_logger(__name__)


class AtomicCheckpointMixin(Trainer):
    """A `Trainer` that writes a checkpoint to a temporary folder, syncs it to the disk, and then renames it.

    Older checkpoints (`save_total_limit`) and the unfinished one of a killed run are deleted after that.
    `resume_from_checkpoint=True` resumes from the newest complete checkpoint. The folder of a run may be moved: the
    best checkpoint is found by its name. All processes (with `save_on_each_node`, all of a node) must share
    `output_dir`.
    """

    resumed_from: str | None = None  # the checkpoint that `train` resumes from
    _apart: str | None = None  # the folder in which a checkpoint is being written

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer`'s.

        Raises:
            ValueError: there is no complete checkpoint, the given one is incomplete, or it does not match this run.
        """
        self.resumed_from = None
        if resume_from_checkpoint:
            self.resumed_from = find_checkpoint(resume_from_checkpoint, self.args.output_dir)
            self.check_checkpoint(self.resumed_from)
        return super().train(self.resumed_from, *args, **kwargs)

    def check_checkpoint(self, checkpoint: str) -> None:
        """For a subclass: raise a ValueError if this run cannot resume from a complete checkpoint."""

    def save_extra_state(self, checkpoint: Path) -> None:
        """For a subclass: called in every process with the folder in which a checkpoint is being written."""

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As `Trainer`'s, and update the path of the best checkpoint if the run's folder was moved."""
        position = super()._init_training_state(*args, **kwargs)
        if self.resumed_from and self.state.best_global_step:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            folders = [
                Path(self.resumed_from).parent,
                Path(self.args.output_dir),
            ]  # the run may go on in another
            best = next((str(folder / name) for folder in folders if (folder / name).is_dir()), None)
            if best is None:
                logger.warning(f"The best checkpoint, {name}, is missing.")
            self.state.best_model_checkpoint = best
        return position

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        """As `Trainer`'s, but tied weights, which a checkpoint stores once, are not missing."""
        tied = getattr(self.model, "all_tied_weights_keys", {})
        load_result.missing_keys[:] = [name for name in load_result.missing_keys if name not in tied]
        super()._issue_warnings_after_load(load_result)

    def _get_output_dir(self, trial: Any) -> str:
        return self._apart or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._apart is None:  # else the checkpoint is not renamed yet
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        written = run_folder / UNFINISHED / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoint = run_folder / written.name
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)  # left by a killed run
        self.accelerator.wait_for_everyone()
        self._apart = str(written.parent)
        try:
            super()._save_checkpoint(model, trial)
            self.save_extra_state(written)
            self.accelerator.wait_for_everyone()
            if self.state.best_model_checkpoint == str(written):
                self.state.best_model_checkpoint = str(checkpoint)
                if self.args.should_save:
                    self.state.save_to_json(str(written / STATE))
            if self.args.should_save:
                finish(written, checkpoint)
        except WRITE_ERRORS as error:
            shutil.rmtree(written.parent, ignore_errors=True)
            raise OSError(self._describe(error, checkpoint)) from error
        finally:
            self._apart = None
        self.accelerator.wait_for_everyone()
        if self.args.push_to_hub:
            self._push_from_checkpoint(str(checkpoint))
        if self.args.should_save:
            best = self.state.best_model_checkpoint
            rotate_checkpoints(str(run_folder), self.args.save_total_limit, best, use_mtime=True)

    def _describe(self, error: Exception, checkpoint: Path) -> str:
        parameters = list(self.model.parameters())
        needed = sum(p.nbytes + (8 * p.numel() if p.requires_grad else 0) for p in parameters)  # and Adam's moments
        free = shutil.disk_usage(checkpoint.parent).free
        kept = complete_checkpoints(checkpoint.parent)
        return (
            f"checkpoint '{checkpoint}' could not be written: {' '.join(str(error).split())}. It needs about "
            f"{needed / 1e6:,.0f} MB, and {free / 1e6:,.0f} MB are free. Free some space or lower save_total_limit; "
            f"then resume from {repr(kept[-1]) if kept else 'the start, since no checkpoint is complete'}."
        )


def finish(written: Path, checkpoint: Path) -> None:
    """Write the list of files, sync everything to the disk, and rename the folder, replacing an older checkpoint."""
    files = sorted(path for path in written.rglob("*") if path.is_file())
    lines = [f"{path.stat().st_size} {path.relative_to(written).as_posix()}\n" for path in files]
    (written / CONTENTS).write_text("".join(lines), encoding="utf-8")
    folders = [path for path in written.rglob("*") if path.is_dir()]
    for path in (*files, written / CONTENTS, *folders, written):
        sync(path)
    if checkpoint.exists():  # from an earlier run in the same folder
        os.replace(checkpoint, written.parent / "replaced")
    os.replace(written, checkpoint)
    sync(checkpoint.parent)
    shutil.rmtree(written.parent, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file, or the names in a folder, to the disk; Windows and some network drives cannot sync folders."""
    try:
        handle = os.open(path, os.O_RDWR if os.name == "nt" else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError:
        if path.is_file():
            raise


def find_checkpoint(checkpoint: str | os.PathLike | bool, folder: str | os.PathLike) -> str:
    """The checkpoint to resume from: the given one or, for True, the newest complete one in `folder`.

    Raises:
        ValueError: there is none, it is not complete, or it has no optimizer state, without which the run would
            silently restart Adam's moments and the learning rate schedule.
    """
    if checkpoint is True:
        complete = complete_checkpoints(folder)
        if not complete:
            raise ValueError(
                f"resume_from_checkpoint: '{folder}' has no complete checkpoint; leave the option out to start a new "
                "run."
            )
        checkpoint = complete[-1]
    elif not Path(checkpoint, STATE).is_file():
        raise ValueError(f"resume_from_checkpoint: '{checkpoint}' is not a checkpoint: it has no {STATE}.")
    elif Path(checkpoint, CONTENTS).is_file() and (damaged := damaged_files(checkpoint)):  # Trainer writes none
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' is not complete: {damaged[0]} is missing or damaged. Set it to "
            "True for the newest complete checkpoint."
        )
    # FSDP names the optimizer's state differently. Without scheduler.pt, Trainer loads neither.
    if not any(Path(checkpoint).glob("optimizer*")) or not Path(checkpoint, "scheduler.pt").is_file():
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' has no optimizer and scheduler state: it was saved with "
            "save_only_model or is from the Hub. To start a new run from its weights, set model_name_or_path to it "
            "and leave resume_from_checkpoint out."
        )
    return str(checkpoint)


def complete_checkpoints(folder: str | os.PathLike) -> list[str]:
    """The complete checkpoints of a run, fewest steps first; warns about each of the others."""
    complete = []
    for checkpoint in sort_checkpoints(str(folder)):
        if damaged := damaged_files(checkpoint):
            logger.warning(f"'{checkpoint}' is skipped: {damaged[0]} is missing or damaged.")
        else:
            complete.append(checkpoint)
    return complete


def damaged_files(checkpoint: str | os.PathLike) -> list[str]:
    """The files listed in `contents.txt` that are missing or of another size; or `contents.txt` if it is missing."""
    contents = Path(checkpoint, CONTENTS)
    if not contents.is_file():
        return [CONTENTS]
    listed = [line.split(" ", 1) for line in contents.read_text(encoding="utf-8").splitlines()]
    files = [(name, Path(checkpoint, name), int(size)) for size, name in listed]
    return [name for name, path, size in files if not path.is_file() or path.stat().st_size != size]
