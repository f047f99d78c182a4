"""Checkpoints that are whole or not there at all, whenever a run is killed."""

import errno
import os
import shutil
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import Trainer
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, TrainOutput, rotate_checkpoints, sort_checkpoints
from transformers.utils import logging

UNFINISHED = "unfinished"  # the folder in the run's own in which a checkpoint is written
CONTENTS = "contents.txt"  # in a checkpoint: `bytes name` of each other file, written last
STATE = "trainer_state.json"
WRITE_ERRORS = (OSError, RuntimeError, SafetensorError)  # the last two: a full disk, as torch and safetensors tell it
NO_FOLDER_SYNC = (errno.EACCES, errno.EBADF, errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM)

logger = logging.get_logger(__name__)


class AtomicCheckpointMixin(Trainer):
    """A `Trainer` that writes a checkpoint apart, has the disk confirm it, and only then gives it its name.

    Older checkpoints are deleted (`save_total_limit`) after that. `resume_from_checkpoint=True` takes the newest one
    that is complete; the next save deletes what a killed run left of another. The best checkpoint is found by its
    name, so that the run's folder may be moved.

    All processes must see one `output_dir`; with `save_on_each_node` those of a node.
    """

    resumed_from: str | None = None  # the checkpoint that `train` goes on from
    _apart: str | None = None  # where a checkpoint is being written

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> TrainOutput:
        """As `Trainer`'s.

        Raises:
            ValueError: there is no complete checkpoint, the one named is not complete, or it has no optimizer state.
        """
        if resume_from_checkpoint is True:
            resume_from_checkpoint = newest_checkpoint(self.args.output_dir)
        elif resume_from_checkpoint:
            check_contents(resume_from_checkpoint)
        if resume_from_checkpoint:
            check_optimizer_state(resume_from_checkpoint)
        self.resumed_from = resume_from_checkpoint or None
        return super().train(self.resumed_from, *args, **kwargs)

    def save_extra_state(self, checkpoint: Path) -> None:
        """For a subclass: called by every process with the folder into which a checkpoint is being written."""

    def _init_training_state(self, *args: Any, **kwargs: Any) -> tuple[int, int]:
        """As `Trainer`'s, which takes the path of the best checkpoint as it was when the state was saved."""
        place = super()._init_training_state(*args, **kwargs)
        if self.resumed_from and self.state.best_global_step:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.best_global_step}"
            folders = [Path(self.resumed_from).parent, Path(self.args.output_dir)]  # a run may go on in a new folder
            best = next((str(folder / name) for folder in folders if (folder / name).is_dir()), None)
            if best != self.state.best_model_checkpoint:
                logger.warning(f"The best checkpoint is {repr(best) if best else 'gone: ' + name}.")
            self.state.best_model_checkpoint = best
        return place

    def _get_output_dir(self, trial: Any) -> str:
        return self._apart or super()._get_output_dir(trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        if self._apart is None:  # else it has no name yet
            super()._push_from_checkpoint(checkpoint_folder)

    def _save_checkpoint(self, model: torch.nn.Module, trial: Any) -> None:
        run_folder = Path(self._get_output_dir(trial))
        written = run_folder / UNFINISHED / f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
        checkpoint = run_folder / written.name
        if self.args.should_save:
            shutil.rmtree(written.parent, ignore_errors=True)  # what a killed run left
        self.accelerator.wait_for_everyone()
        self._apart = str(written.parent)
        try:
            super()._save_checkpoint(model, trial)
            self.save_extra_state(written)
            self.accelerator.wait_for_everyone()
            self._name_best_checkpoint(written, checkpoint)
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

    def _name_best_checkpoint(self, written: Path, checkpoint: Path) -> None:
        """If this is the best checkpoint so far, the state must know it by the name that it will have."""
        if self.state.best_model_checkpoint == str(written):
            self.state.best_model_checkpoint = str(checkpoint)
            if self.args.should_save:
                self.state.save_to_json(str(written / STATE))

    def _describe(self, error: Exception, checkpoint: Path) -> str:
        parameters = list(self.model.parameters())
        needed = sum(p.nbytes + (8 * p.numel() if p.requires_grad else 0) for p in parameters)  # and Adam's moments
        kept = complete_checkpoints(checkpoint.parent)
        return (
            f"checkpoint '{checkpoint}' could not be written: {' '.join(str(error).split())}. It takes about "
            f"{needed / 1e6:,.0f} MB, and {shutil.disk_usage(checkpoint.parent).free / 1e6:,.0f} MB are free. Make "
            "room, or lower save_total_limit; then resume_from_checkpoint: true goes on from "
            f"{repr(kept[-1]) if kept else 'the start, since no checkpoint is complete'}."
        )


def finish(written: Path, checkpoint: Path) -> None:
    """List the files, bring all to the disk, and rename the folder; a checkpoint of that name is replaced."""
    files = sorted(path for path in written.rglob("*") if path.is_file())
    lines = [f"{path.stat().st_size} {path.relative_to(written).as_posix()}\n" for path in files]
    (written / CONTENTS).write_text("".join(lines), encoding="utf-8")
    folders = [path for path in written.rglob("*") if path.is_dir()]
    for path in (*files, written / CONTENTS, *folders, written):
        sync(path)
    if checkpoint.exists():  # of an earlier run in the same folder
        os.replace(checkpoint, written.parent / "replaced")
    os.replace(written, checkpoint)
    sync(checkpoint.parent)
    shutil.rmtree(written.parent, ignore_errors=True)


def sync(path: Path) -> None:
    """Returns when a file, or the names in a folder, would survive a power cut.

    On Windows and on some network drives folders cannot be synced; there the drive decides when it writes their names.
    """
    writable = os.name == "nt" and path.is_file()  # Windows syncs only files that are open for writing
    try:
        handle = os.open(path, os.O_RDWR if writable else os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
    except OSError as error:
        if path.is_file() or error.errno not in NO_FOLDER_SYNC:
            raise


def newest_checkpoint(folder: str | os.PathLike) -> str:
    """The complete checkpoint of the most steps in a run's folder.

    Raises:
        ValueError: there is none.
    """
    complete = complete_checkpoints(folder)
    if not complete:
        raise ValueError(
            f"resume_from_checkpoint: no complete checkpoint lies in '{folder}'; leave the option out to start anew."
        )
    return complete[-1]


def complete_checkpoints(folder: str | os.PathLike) -> list[str]:
    """A run's complete checkpoints, fewest steps first; others are named in a warning."""
    complete = []
    for checkpoint in sort_checkpoints(str(folder)):
        if missing := missing_files(checkpoint):
            logger.warning(f"'{checkpoint}' is passed over: {missing[0]} is missing or cut off.")
        else:
            complete.append(checkpoint)
    return complete


def check_contents(checkpoint: str | os.PathLike) -> None:
    """Raise a ValueError that names a file that a checkpoint lacks; one that `Trainer` alone wrote is not checked."""
    if not Path(checkpoint, STATE).is_file() and not Path(checkpoint, CONTENTS).is_file():
        raise ValueError(f"resume_from_checkpoint: '{checkpoint}' is no checkpoint: it has no {STATE}.")
    if Path(checkpoint, CONTENTS).is_file() and (missing := missing_files(checkpoint)):
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' is not complete: {missing[0]} is missing or cut off; set it to "
            "true for the newest complete one."
        )


def check_optimizer_state(checkpoint: str | os.PathLike) -> None:
    """Raise a ValueError if a checkpoint has no optimizer state, from which a run would restart its schedule."""
    # FSDP names the optimizer's state in other ways. Trainer loads neither, if the schedule is missing.
    if not any(Path(checkpoint).glob("optimizer*")) or not Path(checkpoint, "scheduler.pt").is_file():
        raise ValueError(
            f"resume_from_checkpoint: '{checkpoint}' has no state of the optimizer and its schedule: it was "
            "saved with save_only_model or is from the Hub. To start a new run from its weights, load it as the model "
            f"(`model_name_or_path: {checkpoint}` in train.yaml) and leave resume_from_checkpoint out."
        )


def missing_files(checkpoint: str | os.PathLike) -> list[str]:
    """Names of the files that `contents.txt` lists and that are not there in full; of itself, where it is missing."""
    contents = Path(checkpoint, CONTENTS)
    if not contents.is_file():
        return [CONTENTS]
    listed = [line.split(" ", 1) for line in contents.read_text(encoding="utf-8").splitlines()]
    return [name for size, name in listed if not _has_size(Path(checkpoint, name), int(size))]


def _has_size(path: Path, size: int) -> bool:
    return path.is_file() and path.stat().st_size == size
