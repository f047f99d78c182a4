"""Callbacks and running means of `VLKDTrainer`."""

import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from accelerate.utils import gather_object
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import Trainer, TrainerCallback

from trainer.data.epoch_dataset import EpochDataset
from trainer.data.skipped import FILE, count_skipped

MAX_NAMED_ROWS = 16  # in an error message
CAUSE = " because of "
logger = logging.getLogger(__name__)


Batch = tuple[dict[str, Tensor], Tensor, list[str] | None]  # losses, which rows are not finite, names of the rows


@dataclass
class CheckedStep:
    """A step with its batches; `wrong` is on the host once `copied` has happened."""

    step: int
    batches: list[Batch]
    wrong: Tensor
    copied: torch.cuda.Event | None

    def is_wrong(self) -> bool:
        if self.copied is not None:
            self.copied.synchronize()
        return bool(self.wrong)


class RunningMeans:
    """Weighted means of named scalars. They are summed on the device; only `pop` synchronizes."""

    def __init__(self):
        self.sums: dict[str, Tensor] = {}
        self.weights: dict[str, Tensor | float] = {}

    def add(self, weighted: dict[str, Tensor], weights: dict[str, Tensor | float]) -> None:
        """Add values that are already multiplied by their weights."""
        for name, value in weighted.items():
            self.sums[name] = self.sums.get(name, 0) + value.detach()
            self.weights[name] = self.weights.get(name, 0) + weights[name]

    def pop(self, accelerator: Accelerator) -> dict[str, float]:
        """Return the means over all processes, which must hold the same names, and reset."""
        names = list(self.sums)
        sums = torch.stack([self.sums[name].float() for name in names])
        weights = torch.stack([torch.as_tensor(self.weights[name]).to(sums) for name in names])
        self.sums, self.weights = {}, {}
        sums, weights = accelerator.reduce(torch.stack([sums, weights]), reduction="sum")
        return dict(zip(names, (sums / weights).tolist(), strict=True))


class StartTraining(TrainerCallback):
    """Resets the logs when training starts, and passes each epoch to the training dataset."""

    def __init__(self, trainer: Trainer):
        self.trainer = trainer

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.trainer.reset_logs()

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if isinstance(self.trainer.train_dataset, EpochDataset):
            self.trainer.train_dataset.start_epoch(int(state.epoch))  # fractional when resuming mid-epoch


class FiniteCheck(TrainerCallback):
    """Stops training if a loss or gradient is not finite, before that gradient changes the weights.

    The processes exchange a single number, so that all of them stop together. A GPU replaces the gradients of such a
    step by zeros, and the host reads the number during the next step, or before it saves or evaluates, so that neither
    waits for the other.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.batches: list[Batch] = []  # of the present step
        self.checked: CheckedStep | None = None  # the last step, if the host has not read its result

    def add(self, terms: dict[str, Tensor], embeds: tuple[Tensor, ...], names: list[str] | None) -> None:
        """Add a batch of the step.

        Args:
            terms: losses by name.
            embeds: embeddings, each (batch, projection_dim); a row that is not finite is the cause.
            names: names of the rows.
        """
        suspects = torch.stack([rows.detach().isfinite().all(dim=-1) for rows in embeds]).all(dim=0).logical_not()
        self.batches.append(({name: term.detach() for name, term in terms.items()}, suspects, names))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches, self.checked = [], None  # an interrupted step may have left some

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the losses and gradients of the step; with a GPU, read the result of the step before.

        Raises:
            FloatingPointError: one is not finite; the message names the rows.
        """
        self.read_result()
        batches, self.batches = self.batches, []
        gradients = [parameter.grad for parameter in kwargs["model"].parameters() if parameter.grad is not None]
        values = [*(term for terms, _, _ in batches for term in terms.values()), self._norm(gradients)]
        wrong = torch.stack([value.isfinite().to(args.device) for value in values]).all().logical_not().float()
        wrong = self.trainer.accelerator.reduce(wrong, reduction="sum") > 0
        copy = wrong.to("cpu", non_blocking=wrong.is_cuda)
        copied = torch.cuda.current_stream().record_event() if wrong.is_cuda else None
        self.checked = CheckedStep(state.global_step + 1, batches, copy, copied)
        if not self.is_deferred(wrong):
            return self.read_result()
        for gradient in gradients:
            local = gradient.to_local() if isinstance(gradient, DTensor) else gradient
            local.masked_fill_(wrong, 0)

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if control.should_save or control.should_evaluate:
            self.read_result()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.read_result()

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.read_result()

    def is_deferred(self, wrong: Tensor) -> bool:
        return wrong.is_cuda

    def read_result(self) -> None:
        """Raise a FloatingPointError if the last checked step has a loss or gradient that is not finite."""
        checked, self.checked = self.checked, None
        if checked is None or not checked.is_wrong():
            return
        own = [_describe(*batch, self.trainer.accelerator) for batch in checked.batches]
        found = gather_object([line for line in own if line])
        found = [line for line in found if CAUSE in line] or found  # ITCL spreads one row's NaN to others
        raise FloatingPointError(
            f"step {checked.step}: {'; '.join(found) or 'the losses are finite, but their gradient is not'}. "
            "Training stopped. Check these rows, or lower the learning rate, and resume from the last checkpoint."
        )

    def _norm(self, gradients: list[Tensor]) -> Tensor:
        """The norm of all gradients; 0 with a gradient scaler, which skips steps that overflow itself."""
        if self.trainer.accelerator.scaler is not None:
            return torch.zeros(())
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _describe(
    terms: dict[str, Tensor], suspects: Tensor, names: list[str] | None, accelerator: Accelerator
) -> str | None:
    """The losses of a batch that are not finite, with the rows; None if all are finite."""
    wrong = [f"{name} is {value.item()}" for name, value in terms.items() if not value.isfinite()]
    if not wrong:
        return None
    if names is None:
        names = [f"row {place} of the batch" for place in range(len(suspects))]
    named = [name for name, suspect in zip(names, suspects.tolist(), strict=True) if suspect]
    link = CAUSE if named else " in a batch of "
    named = named or names
    more = f" and {len(named) - MAX_NAMED_ROWS} more" if len(named) > MAX_NAMED_ROWS else ""
    place = f" on process {accelerator.process_index}" if accelerator.num_processes > 1 else ""
    return f"{' and '.join(wrong)}{link}{', '.join(named[:MAX_NAMED_ROWS])}{more}{place}"


class ReportSkipped(TrainerCallback):
    """Logs the number of skipped rows at the end of training."""

    def __init__(self, folder: str | os.PathLike):
        self.file = Path(folder, FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counts = count_skipped(self.file)
        if counts and state.is_world_process_zero:
            counted = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counted)
            logger.warning(f"{counts.total():,} invalid row(s) were skipped ({reasons}); {self.file} lists them.")
