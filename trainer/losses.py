"""The losses of VLKD, as pure functions of tensors.

| loss | what it aligns | the paper's name |
|---|---|---|
| `ttdm` | BART's sentence embedding with CLIP's text embedding | text-text distance minimization |
| `itcl` | BART's sentence embedding with CLIP's image embedding | image-text contrastive learning |
| `icti` | BART's decoder with the image | image-conditioned text infilling |
| `itdd` | BART's decoder on the image with BART's decoder on a caption | not in the paper |
"""

from collections.abc import Sequence
from typing import Any
from weakref import WeakKeyDictionary

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor


def ttdm(student: Tensor, teacher: Tensor) -> Tensor:
    """Text-text distance minimization (TTDM): the batch mean of ‖s − t‖² = 2 − 2 cos(s, t).

    Args:
        student: s, (batch, projection_dim), unit norm.
        teacher: t, (batch, projection_dim), unit norm: CLIP's embeddings of the same captions.

    Raises:
        ValueError: the two shapes differ.
    """
    if student.shape != teacher.shape:
        raise ValueError(
            f"ttdm: student has shape {tuple(student.shape)}, teacher {tuple(teacher.shape)}; they must be equal."
        )
    return (student - teacher).square().sum(dim=-1).mean()


def itcl(text: Tensor, image: Tensor, logit_scale: Tensor | float, rows: int | None = None) -> Tensor:
    """Image-text contrastive learning (ITCL): ½ [CE(τ s vᵀ) + CE(τ v sᵀ)] over the rows of all processes.

    Row i of `text` belongs to row i of `image`; all other rows, on any process, are negatives. Each process returns
    the mean over its own rows, so the mean over processes is the loss of the whole batch, and DDP's averaged gradient
    equals that of a single process with all rows.

    Args:
        text: s, (batch, projection_dim), unit norm.
        image: v, (batch, projection_dim), unit norm.
        logit_scale: log τ, as CLIP's checkpoint stores it.
        rows: use only the first `rows` rows of all processes, in rank order; all if None. A process without any of
            them returns NaN.

    Raises:
        ValueError: the two shapes differ, or the processes have different numbers of rows.
    """
    if text.shape != image.shape:
        raise ValueError(f"itcl: text has shape {tuple(text.shape)}, image {tuple(image.shape)}; they must be equal.")
    scale = torch.as_tensor(logit_scale, device=text.device).exp()
    all_text, all_image = _gather_pairs(text, image, rows)
    own_rows = torch.arange(len(text), device=text.device) + _rank() * len(text)
    own_rows = own_rows.masked_fill(own_rows >= len(all_text), -100)  # which cross_entropy ignores
    text_to_image = F.cross_entropy(scale * text @ all_image.T, own_rows)  # (batch, processes * batch)
    image_to_text = F.cross_entropy(scale * image @ all_text.T, own_rows)
    return (text_to_image + image_to_text) / 2


def icti(logits: Tensor, labels: Tensor, num_items: Tensor | int | None = None) -> Tensor:
    """Image-conditioned text infilling (ICTI): token cross-entropy of the whole caption.

    `logits[:, i]` predicts `labels[:, i]`: the decoder inputs are already the labels shifted to the right.

    Args:
        logits: (batch, tokens, vocabulary).
        labels: (batch, tokens); -100 is ignored.
        num_items: the sum over tokens is divided by this; by the number of labels in the batch if None. With gradient
            accumulation, pass the number of labels in all accumulated batches.
    """
    total = F.cross_entropy(logits.flatten(0, 1).float(), labels.flatten(), ignore_index=-100, reduction="sum")
    return total / (labels.ne(-100).sum() if num_items is None else num_items)


def itdd(
    states: Sequence[Tensor], teacher_states: Sequence[Tensor], labels: Tensor, num_items: Tensor | int | None = None
) -> Tensor:
    """Image-text decoder distillation (ITDD, not in the paper).

    It matches the decoder's hidden states h on the image to the original BART's h₀ on a caption of the image, for the
    same target text: the mean over layers and tokens of ‖h − h₀‖² / ‖h₀‖².

    Args:
        states: h of each layer, (batch, tokens, d_model).
        teacher_states: h₀ of each layer, without gradient.
        labels: (batch, tokens); -100 is ignored.
        num_items: as in `icti`.
    """
    counted = labels.ne(-100)
    total = 0.0
    for state, teacher in zip(states, teacher_states, strict=True):
        state, teacher = state.float(), teacher.float()  # of the padding too: state[counted] would wait for the GPU
        norms = teacher.square().sum(dim=-1).masked_fill(~counted, 1)  # (batch, tokens)
        total = total + ((state - teacher).square().sum(dim=-1) / norms).masked_fill(~counted, 0).sum()
    return total / len(states) / (counted.sum() if num_items is None else num_items)


def _gather_pairs(text: Tensor, image: Tensor, rows: int | None) -> tuple[Tensor, Tensor]:
    """The first `rows` of all processes, by one collective operation."""
    if _is_alone():
        return text[:rows], image[:rows]
    all_text, all_image = gather_rows(torch.cat([text, image], dim=1))[:rows].chunk(2, dim=1)
    return all_text, all_image if image.requires_grad else all_image.detach()


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def gather_rows(rows: Tensor) -> Tensor:
    """Rows of every process in rank order, (processes * batch, dim), with gradient; `rows` itself on one process.

    Raises:
        ValueError: the processes have different numbers of rows.
    """
    if _is_alone():
        return rows
    sizes = [torch.empty(1, dtype=torch.long) for _ in range(dist.get_world_size())]
    dist.all_gather(sizes, torch.tensor([len(rows)]), group=_cpu_group())
    sizes = [int(size) for size in sizes]
    if len(set(sizes)) > 1:
        raise ValueError(
            f"itcl: the processes have batches of {sizes} rows, which must be equal. Set dataloader_drop_last=True, "
            "or leave accelerate's even_batches on."
        )
    return _GatherRows.apply(rows)


def _cpu_group() -> Any:
    """All processes, for tensors on the CPU: the sizes are compared without waiting for the GPUs."""
    world = dist.group.WORLD
    if dist.get_backend(world) == "gloo":
        return world
    if world not in _CPU_GROUPS:
        _CPU_GROUPS[world] = dist.new_group(backend="gloo")
    return _CPU_GROUPS[world]


# By the group of all processes. Weak: a group that outlives `destroy_process_group` aborts the process at its exit.
_CPU_GROUPS: WeakKeyDictionary[Any, Any] = WeakKeyDictionary()


class _GatherRows(torch.autograd.Function):
    """A differentiable all_gather (torch's is deprecated); backward sums each row's gradient over the processes."""

    @staticmethod
    def forward(ctx, rows: Tensor) -> Tensor:
        gathered = [torch.empty_like(rows) for _ in range(dist.get_world_size())]
        dist.all_gather(gathered, rows.contiguous())
        return torch.cat(gathered)

    @staticmethod
    def backward(ctx, grad: Tensor) -> Tensor:
        grad = grad.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(grad)  # gloo has no reduce_scatter
        return grad.chunk(dist.get_world_size())[dist.get_rank()]


def _rank() -> int:
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
