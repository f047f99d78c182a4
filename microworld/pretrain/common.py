"""What the pretraining of both teachers shares: the optimizer, the loop, and how a checkpoint is written."""

import copy
from collections.abc import Callable, Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from tqdm.auto import tqdm
from transformers import PreTrainedModel, get_cosine_schedule_with_warmup

from trainer.optimizers import with_muon


def fit(
    model: PreTrainedModel,
    processor: Any,
    folder: Path,
    batches: Iterator,
    loss_of: Callable[[Any], tuple[torch.Tensor, dict[str, torch.Tensor]]],
    steps: int,
    learning_rate: float,
    warmup: int,
    name: str,
) -> None:
    """Train with one warm-up and cosine; the checkpoint is written every 500 steps, in fp16.

    `loss_of` a batch gives the loss and other figures by name.
    """
    torch.set_flush_denormal(True)
    optimizer = build_optimizer(model, learning_rate)
    schedule = get_cosine_schedule_with_warmup(optimizer, warmup, steps)
    model.train()
    progress = tqdm(islice(batches, steps), total=steps, desc=name)
    for step, batch in enumerate(progress, 1):
        loss, figures = loss_of(batch)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        if hasattr(model, "logit_scale"):
            model.logit_scale.data.clamp_(max=4.6052)  # 100, as in CLIP
        if step % 100 == 0:
            texts = {figure: f"{value.item():.4f}" for figure, value in {"loss": loss, **figures}.items()}
            progress.set_postfix(texts, refresh=False)
        if step % 500 == 0 or step == steps:
            copy.deepcopy(model).half().save_pretrained(folder)
            processor.save_pretrained(folder)


def build_optimizer(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    """Muon, at twice the learning rate, for the matrices of the layers and projections; AdamW for all else.

    With AdamW alone, CLIP's tokens vary in a few directions only, and a linear W_d cannot tell the kinds apart.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}  # rows are looked up singly
    matrices, others = [], []
    for parameter in model.parameters():
        (matrices if parameter.ndim == 2 and id(parameter) not in tables else others).append(parameter)
    groups = [{"params": matrices, "lr": 2 * learning_rate}, {"params": others}]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    return with_muon(adamw, matrices)
