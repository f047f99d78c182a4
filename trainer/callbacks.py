"""Callbacks and running means of `VLKDTrainer`."""

import logging
import os
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
CAUSE = "because of "
logger = logging.getLogger(__name__)


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
    """Stops training before the optimizer's step if a loss or gradient is not finite.

    The processes exchange a single number, so that all of them stop together.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.batches: list[tuple[dict[str, Tensor], Tensor, list[str] | None]] = []

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
        self.batches = []  # an interrupted step may have left some

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Check the losses and gradients of the step.

        Raises:
            FloatingPointError: one is not finite; the message names the rows.
        """
        batches, self.batches = self.batches, []
        values = [*(term for terms, _, _ in batches for term in terms.values()), self._gradient_norm(kwargs["model"])]
        wrong = torch.stack([value.isfinite().to(args.device) for value in values]).all().logical_not().float()
        accelerator = self.trainer.accelerator
        if not accelerator.reduce(wrong, reduction="sum").item():
            return
        own = [_describe(*batch, accelerator) for batch in batches]
        found = gather_object([line for line in own if line])
        found = [line for line in found if line.startswith(CAUSE)] or found  # ITCL spreads one row's NaN to others
        raise FloatingPointError(
            f"step {state.global_step + 1}: {'; '.join(found) or 'the losses are finite, but their gradient is not'}. "
            "Training stopped before the optimizer's step. Check these rows, or lower the learning rate and resume."
        )

    def _gradient_norm(self, model: torch.nn.Module) -> Tensor:
        """The norm of all gradients; 0 with a gradient scaler, which skips steps that overflow itself."""
        if self.trainer.accelerator.scaler is not None:
            return torch.zeros(())
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
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
    prefix = CAUSE if named else "a batch of "
    named = named or names
    more = f" and {len(named) - MAX_NAMED_ROWS} more" if len(named) > MAX_NAMED_ROWS else ""
    place = f" on process {accelerator.process_index}" if accelerator.num_processes > 1 else ""
    return f"{prefix}{', '.join(named[:MAX_NAMED_ROWS])}{more}{place}: {' and '.join(wrong)}"


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
