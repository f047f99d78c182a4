"""Small callbacks of the trainer."""

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

from trainer.data.skipped import FILE, count_skipped

MOST_ROWS = 16  # that a message names
AT_FAULT = "because of "
logger = logging.getLogger(__name__)


class FiniteCheck(TrainerCallback):
    """Collects the losses of a step's batches, and looks at them once, when all gradients are there.

    One number is exchanged between the processes, so that all of them stop together.

    Args:
        trainer: the owner of `accelerator`, which each trial of a hyperparameter search replaces.
    """

    def __init__(self, trainer: Trainer):
        self.trainer = trainer
        self.batches: list[tuple[dict[str, Tensor], Tensor, list[str] | None]] = []

    def note(self, terms: dict[str, Tensor], embeds: tuple[Tensor, ...], names: list[str] | None) -> None:
        """
        Args:
            terms: a batch's losses by name.
            embeds: each (batch, projection_dim); where one is not finite, its row is at fault.
            names: of the batch's rows.
        """
        suspects = torch.stack([rows.detach().isfinite().all(dim=-1) for rows in embeds]).all(dim=0).logical_not()
        self.batches.append(({name: term.detach() for name, term in terms.items()}, suspects, names))

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.batches = []  # an interrupted step may have left some

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """
        Raises:
            FloatingPointError: a loss or a gradient is not finite; it names the rows.
        """
        batches, self.batches = self.batches, []
        values = [*(term for terms, _, _ in batches for term in terms.values()), self._gradient_norm(kwargs["model"])]
        wrong = torch.stack([value.isfinite().to(args.device) for value in values]).all().logical_not().float()
        accelerator = self.trainer.accelerator
        if not accelerator.reduce(wrong, reduction="sum").item():
            return
        own = [_describe(*batch, accelerator) for batch in batches]
        found = gather_object([line for line in own if line])
        found = [line for line in found if line.startswith(AT_FAULT)] or found  # ITCL spreads one row's NaN to others
        raise FloatingPointError(
            f"step {state.global_step + 1}: {'; '.join(found) or 'the losses are finite, but their gradient is not'}. "
            "Stopped before the optimizer's step; the checkpoints are as they were. Look at these rows, or lower the "
            "learning rate and resume."
        )

    def _gradient_norm(self, model: torch.nn.Module) -> Tensor:
        """Of all gradients; 0 where a gradient scaler looks after them, which may overflow and be skipped."""
        if self.trainer.accelerator.scaler is not None:
            return torch.zeros(())
        gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients)
        return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _describe(
    terms: dict[str, Tensor], suspects: Tensor, names: list[str] | None, accelerator: Accelerator
) -> str | None:
    """Which losses of a batch are not finite and on which rows; nothing, if all are."""
    wrong = [f"{name} is {value.item()}" for name, value in terms.items() if not value.isfinite()]
    if not wrong:
        return None
    if names is None:
        names = [f"row {place} of the batch" for place in range(len(suspects))]
    named = [name for name, suspect in zip(names, suspects.tolist(), strict=True) if suspect]
    which = AT_FAULT if named else "a batch of "
    named = named or names
    more = f" and {len(named) - MOST_ROWS} more" if len(named) > MOST_ROWS else ""
    place = f" on process {accelerator.process_index}" if accelerator.num_processes > 1 else ""
    return f"{which}{', '.join(named[:MOST_ROWS])}{more}{place}: {' and '.join(wrong)}"


class ReportSkipped(TrainerCallback):
    """Says at the end of training, in one line, what was skipped."""

    def __init__(self, folder: str | os.PathLike):
        self.file = Path(folder, FILE)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        counts = count_skipped(self.file)
        if counts and state.is_world_process_zero:
            counted = sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))
            reasons = ", ".join(f"{count:,} {reason}" for reason, count in counted)
            logger.warning(f"{counts.total():,} flawed row(s) were skipped ({reasons}); {self.file} lists them.")
