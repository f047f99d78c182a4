"""Pretrains the small BART by denoising on plain text: captions, statements, facts, questions with their answers.

Corruption is BART's text infilling, on random spans or on whole segments of a document: the answers, the questions
with their answers, or the passage. Where a question is masked with its answer, the decoder writes both and must look
the answer up through its cross-attention.
"""

import itertools
import random
from collections.abc import Callable, Iterator, Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from tokenizers import AddedToken
from transformers import BartConfig, BartForConditionalGeneration, BartTokenizer

from microworld.pretrain.common import fit
from microworld.world.corpus import Segment, document, pair_document
from trainer.data.infilling import TextInfilling
from trainer.precision import is_bf16_fast

Batch = dict[str, torch.Tensor]
BATCH_SIZE = 64
ANSWER_WEIGHT = 6.0  # of an answer's token in the loss, against 1 for any other
_SPECIAL_TOKENS = ("<s>", "<pad>", "</s>", "<unk>", "<mask>")  # their ids are BART's own


# Steps, learning rate and dropout of each phase, which has its own warm-up and cosine. With dropout from the start,
# the model mixes up the traits of two groups for thousands of steps. With it at the end, the decoder learns to read
# states that are not as clean as the encoder's own.
PHASES = (
    (3500, 1e-3, 0.0),
    (2500, 5e-4, 0.1),
    (3000, 7e-4, 0.0),
    (1500, 5e-4, 0.1),
    (3000, 5e-4, 0.0),
    (2000, 3e-4, 0.1),
)


def build_tokenizer(documents: int = 20_000) -> BartTokenizer:
    """A byte-level BPE learned on the corpus, in which every common word is one token."""
    rng = random.Random("bart tokenizer")
    texts = ["".join(segment.text for segment in document(rng)) for _ in range(documents)]
    mask = AddedToken("<mask>", lstrip=True, normalized=False)
    blank = BartTokenizer(vocab={token: i for i, token in enumerate(_SPECIAL_TOKENS)}, merges=[], mask_token=mask)
    tokenizer = blank.train_new_from_iterator(texts, vocab_size=1200, show_progress=False)
    tokenizer.model_max_length = 160
    return tokenizer


def build_model(tokenizer: BartTokenizer) -> BartForConditionalGeneration:
    """A BART of 1.6M parameters, random but for its positions (sinusoids) and cross-attention (near the identity)."""
    config = BartConfig(
        vocab_size=len(tokenizer),
        max_position_embeddings=160,
        d_model=128,
        encoder_layers=3,
        decoder_layers=3,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=512,
        decoder_ffn_dim=512,
        dropout=0.0,
        forced_eos_token_id=None,
    )
    model = BartForConditionalGeneration._from_config(config, attn_implementation="eager")
    with torch.no_grad():
        for part in (model.model.encoder, model.model.decoder):
            part.embed_positions.weight.copy_(0.03 * _sinusoids(*part.embed_positions.weight.shape))
        for layer in model.model.decoder.layers:
            attention = layer.encoder_attn
            for projection in (attention.q_proj, attention.k_proj, attention.v_proj, attention.out_proj):
                # Cross-attention must look up what the encoder read: from here it learns that in hundreds of steps.
                spread = torch.randn_like(projection.weight) * projection.weight.shape[0] ** -0.5
                projection.weight.copy_(0.4 * spread + torch.eye(projection.weight.shape[0]))
    return model


def _sinusoids(positions: int, width: int) -> torch.Tensor:
    """(positions, width): with these to start from, "the word before" is learned sooner than from noise."""
    angles = torch.arange(positions)[:, None] / 1000 ** (torch.arange(0, width, 2) / width)
    return torch.cat([angles.sin(), angles.cos()], dim=1)


def corrupt(segments: list[list[int]], roles: list[str], mask_id: int, rng: random.Random) -> list[int]:
    """The encoder's side of a document, given as token ids by segment."""
    whole = [token for ids in segments for token in ids]
    kind = rng.random()
    if set(roles) == {"passage"} or kind < 0.10:
        infilling = TextInfilling(mask_id, mask_ratio=rng.choice((0.15, 0.3, 0.5)), full_mask_probability=0.0)
        return infilling([0, *whole, 0], np.random.default_rng(rng.randrange(2**32)))[1:-1]
    if kind < 0.55:
        hidden = {"question", "answer", "paraphrase"}
    elif kind < 0.92:
        hidden = {"answer", "paraphrase"}
    else:
        hidden = {"passage"}
    corrupted: list[int] = []
    for ids, role in zip(segments, roles, strict=True):
        if role not in hidden:
            corrupted += ids
        elif not corrupted or corrupted[-1] != mask_id:
            corrupted.append(mask_id)
    return corrupted


def batches(
    tokenizer: BartTokenizer, batch_size: int, seed: int, pair_batches: int, pool: int = 16
) -> Iterator[Batch]:
    """Endless training batches of documents of similar length, the first `pair_batches` of pair documents.

    A batch has input_ids, attention_mask, labels (-100 at padding) and weights (of each label). `pool` batches at a
    time are sorted by length.
    """
    rng = random.Random(f"bart {seed}")
    encode = lru_cache(100_000)(lambda text: tokenizer(text, add_special_tokens=False).input_ids)
    for number in itertools.count():
        draw = pair_document if number * pool < pair_batches else document
        rows = [_row(draw(rng), encode, tokenizer, rng) for _ in range(pool * batch_size)]
        rows.sort(key=lambda row: len(row[1]))
        chunks = [rows[i : i + batch_size] for i in range(0, len(rows), batch_size)]
        for chunk in rng.sample(chunks, pool):
            inputs, labels, weights = zip(*chunk, strict=True)
            padded = _pad(inputs, tokenizer.pad_token_id)
            yield {
                "input_ids": padded,
                "attention_mask": (padded != tokenizer.pad_token_id).long(),
                "labels": _pad(labels, -100),
                "weights": _pad(weights, 0.0),
            }


def _row(segments: list[Segment], encode: Callable, tokenizer: BartTokenizer, rng: random.Random) -> tuple[list, ...]:
    """The ids of the corrupted document and of the document, and the weight of each of the latter."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    parts, roles = [encode(segment.text) for segment in segments], [segment.role for segment in segments]
    inputs = corrupt(parts, roles, tokenizer.mask_token_id, rng)
    labels = [token for ids in parts for token in ids]
    weighted = zip(parts, roles, strict=True)
    weights = [ANSWER_WEIGHT if role == "answer" else 1.0 for ids, role in weighted for _ in ids]
    return [bos, *inputs, eos], [bos, *labels, eos], [1.0, *weights, 1.0]


def _pad(rows: Sequence[list], value: float) -> torch.Tensor:
    return torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True, padding_value=value)


def pretrain_bart(folder: Path, phases: Sequence[tuple] = PHASES, seed: int = 0, documents: int = 20_000) -> None:
    """Pretrain and write the checkpoint (fp16 safetensors) and its tokenizer to `folder`.

    The first quarter of the first phase reads pair documents. `documents` is the number of documents that the
    tokenizer is learned on.
    """
    torch.manual_seed(seed)
    tokenizer = build_tokenizer(documents)
    model = build_model(tokenizer)

    def loss_of(batch: Batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        weights = batch.pop("weights").flatten()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16_fast("cpu")):
            logits = model(**batch).logits.flatten(0, 1)
        losses = torch.nn.functional.cross_entropy(logits.float(), batch["labels"].flatten(), reduction="none")
        return (losses * weights).sum() / weights.sum(), {"answers": losses[weights == ANSWER_WEIGHT].mean()}

    for number, (steps, learning_rate, dropout) in enumerate(phases):
        set_dropout(model, dropout)
        stream = batches(tokenizer, BATCH_SIZE, seed + number, pair_batches=0 if number else steps // 4)
        name = f"bart, phase {number + 1} of {len(phases)}"
        fit(model, tokenizer, folder, stream, loss_of, steps, learning_rate, warmup=200, name=name)


def set_dropout(model: BartForConditionalGeneration, probability: float) -> None:
    """Of the embeddings and all layers, from now on; the config that is saved keeps its own."""
    for part in (model.get_encoder(), model.get_decoder()):
        for module in (part, *part.layers):
            module.dropout = probability
