"""What the pretraining of both teachers shares: the optimizer, and how a checkpoint is written."""

import copy
from pathlib import Path

import torch
from transformers import PreTrainedModel

from trainer.optimizers import with_muon


def build_optimizer(model: PreTrainedModel, learning_rate: float) -> torch.optim.Optimizer:
    """Muon, at twice the learning rate, for the matrices of the layers and projections; AdamW for all else.

    By AdamW alone CLIP's tokens come to vary in few directions and hardly in any other: kinds lie close
    together, where the paper's linear W_d cannot tell them apart.
    """
    tables = {id(m.weight) for m in model.modules() if isinstance(m, torch.nn.Embedding)}  # rows are looked up singly
    matrices, others = [], []
    for parameter in model.parameters():
        (matrices if parameter.ndim == 2 and id(parameter) not in tables else others).append(parameter)
    groups = [{"params": matrices, "lr": 2 * learning_rate}, {"params": others}]
    adamw = torch.optim.AdamW(groups, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.02, fused=True)
    return with_muon(adamw, matrices)


def save(model: PreTrainedModel, processor, folder: Path) -> None:
    """Write an fp16 copy of the model, which itself stays as it is, and its processor or tokenizer."""
    copy.deepcopy(model).half().save_pretrained(folder)
    processor.save_pretrained(folder)
