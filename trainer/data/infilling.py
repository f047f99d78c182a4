"""BART's text infilling: random spans are each replaced by one `<mask>`; the decoder writes the whole text."""

from dataclasses import dataclass

import numpy as np

SPAN_LENGTH = 3.0  # mean of BART's Poisson distribution
# Random streams of `seeded_rng`, one for each purpose. The numbers decide what is drawn: don't change them.
CAPTIONS, SHARDS, BUFFER, SOURCES, REPLACEMENTS, ORDER = 0, 2, 3, 4, 5, 6


@dataclass(frozen=True)
class TextInfilling:
    """Corrupts lists of token ids.

    Args:
        mask_token_id: the id that replaces a span.
        mask_ratio: ρ, the mean share of a text's tokens that spans cover.
        full_mask_probability: p, the probability that one `<mask>` replaces the whole text, as in the prompt for a
            caption.

    Raises:
        ValueError: a ratio or probability is outside [0, 1].
    """

    mask_token_id: int
    mask_ratio: float
    full_mask_probability: float

    def __post_init__(self):
        for name in ("mask_ratio", "full_mask_probability"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be between 0 and 1.")

    def __call__(self, ids: list[int], rng: np.random.Generator) -> list[int]:
        """Corrupt `ids`. The first and the last token are special (`<s>`, `</s>`) and stay in place."""
        first, *tokens, last = ids
        if rng.random() < self.full_mask_probability:
            return [first, self.mask_token_id, last]
        spans = draw_spans(len(tokens), self.mask_ratio, rng)
        return [first, *mask_spans(tokens, spans, self.mask_token_id, rng), last]


def draw_spans(num_tokens: int, mask_ratio: float, rng: np.random.Generator) -> list[int]:
    """Draw span lengths from Poisson(3) until they cover `mask_ratio` of the tokens; the last one is cut to fit.

    The number of covered tokens is `mask_ratio * num_tokens` rounded up or down at random, so that its mean is exact
    for short texts too. A length of 0 is kept: it becomes a `<mask>` that hides nothing, as in BART.
    """
    left = int(mask_ratio * num_tokens + rng.random())
    spans = []
    while left > 0:
        spans.append(min(int(rng.poisson(SPAN_LENGTH)), left))
        left -= spans[-1]
    return spans


def mask_spans(tokens: list[int], spans: list[int], mask_token_id: int, rng: np.random.Generator) -> list[int]:
    """Place the spans among the other tokens in a uniformly random order, and write each as one mask."""
    pieces = np.array(spans + [-1] * (len(tokens) - sum(spans)))  # -1: a token that stays
    rng.shuffle(pieces)
    corrupted, position = [], 0
    for piece in pieces.tolist():
        corrupted.append(tokens[position] if piece < 0 else mask_token_id)
        position += 1 if piece < 0 else piece
    return corrupted


def seeded_rng(seed: int, stream: int, epoch: int, index: int) -> np.random.Generator:
    """A generator that depends on its arguments alone, not on the number of processes or workers."""
    return np.random.default_rng((seed, stream, epoch, index))
