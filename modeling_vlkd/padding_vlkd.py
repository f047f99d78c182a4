"""Padding on either side: BART counts positions from the left, so rows are moved there and back."""

import torch
from torch import nn
from transformers.modeling_outputs import BaseModelOutput


def left_padding(attention_mask: torch.Tensor) -> torch.LongTensor:
    """(batch, tokens) -> (batch,): how many padding tokens stand before each row's first token."""
    return attention_mask.long().argmax(dim=1)


def encode_from_left(encoder: nn.Module, inputs: dict[str, torch.Tensor], **kwargs) -> BaseModelOutput:
    """
    What the encoder gives for rows that are padded on the left as it would for the same rows padded on the right.

    Args:
        encoder: BART's.
        inputs: `attention_mask` (batch, tokens), and `input_ids` or `inputs_embeds` (batch, tokens, ...).
        kwargs: the encoder's further options.

    Returns:
        The encoder's output, with every token where it stands in `inputs`.
    """
    shift = left_padding(inputs["attention_mask"])
    output = encoder(**{name: _roll(value, shift) for name, value in inputs.items()}, **kwargs)
    output.last_hidden_state = _roll(output.last_hidden_state, -shift)
    if output.hidden_states is not None:
        output.hidden_states = tuple(
            None if states is None else _roll(states, -shift) for states in output.hidden_states
        )
    if output.attentions is not None:
        output.attentions = tuple(_roll_attentions(weights, -shift) for weights in output.attentions)
    return output


def _roll(rows: torch.Tensor, shift: torch.LongTensor) -> torch.Tensor:
    """(batch, tokens, ...) -> the same, row i moved left by shift[i], round the end."""
    columns = torch.arange(rows.shape[1], device=rows.device)
    columns = (columns + shift.unsqueeze(1)) % rows.shape[1]  # (batch, tokens)
    return rows[torch.arange(rows.shape[0], device=rows.device).unsqueeze(1), columns]


def _roll_attentions(weights: torch.FloatTensor, shift: torch.LongTensor) -> torch.FloatTensor:
    """(batch, heads, queries, keys) -> the same, with the queries and the keys of row i moved left by shift[i]."""
    weights = _roll(weights.transpose(1, 2), shift)  # (batch, queries, heads, keys)
    return _roll(weights.transpose(1, 3), shift).permute(0, 2, 3, 1)
