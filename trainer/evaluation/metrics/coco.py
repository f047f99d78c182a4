"""The COCO caption metrics, computed by `pycocoevalcap`, with bootstrap intervals."""

import contextlib
import io
import shutil
import subprocess
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pycocoevalcap
from pycocoevalcap.bleu.bleu_scorer import BleuScorer
from pycocoevalcap.cider.cider import Cider
from pycocoevalcap.meteor.meteor import Meteor
from pycocoevalcap.rouge.rouge import Rouge
from pycocoevalcap.spice.spice import Spice
from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

from .bootstrap import bootstrap_interval, mean_estimate
from .ptb_tokenizer import tokenize

TOKENIZERS = {"java": "PTB (Java)", "python": "PTB (Python)"}
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def caption_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """BLEU-1 to BLEU-4, METEOR, ROUGE-L, CIDEr and SPICE of one caption per image.

    Args:
        predictions: one caption per image.
        references: the reference captions of each image.
        metrics: names from METRICS, each of which must be available; None computes all that are available.
        tokenizer: "java", the official program, or "python"; None is "java" if Java is installed, else "python".
        seed: of the bootstrap, which resamples images.

    Returns:
        {"scores": {name: {"value", "n", "low", "high"}}, "not_computed": {name: reason}, "tokenizer": its name}.

    Raises:
        ValueError: nothing to score, an image without references, or an unavailable metric or tokenizer.
    """
    if len(predictions) == 0 or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} captions for {len(references)} images; give one per image.")
    for i, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"references[{i}] is {texts!r}; give a list of at least one caption.")
    wanted, missing = list(metrics or METRICS), _missing(len(predictions))
    for name in wanted:
        if name not in METRICS:
            raise ValueError(f"Unknown metric '{name}'; choose from {', '.join(METRICS)}.")
        if metrics and name in missing:
            raise ValueError(f"{name} cannot be computed: {missing[name]}")
    tokenizer = tokenizer or ("java" if shutil.which("java") else "python")
    lines = iter(_tokenized([*predictions, *(text for texts in references for text in texts)], tokenizer))
    predicted = {i: [next(lines)] for i in range(len(predictions))}
    expected = {i: [next(lines) for _ in texts] for i, texts in enumerate(references)}
    scores: dict[str, dict] = {}
    for name in wanted:
        if name not in missing:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap prints
                    scores |= METRICS[name](expected, predicted, seed)
            except (subprocess.CalledProcessError, OSError) as error:
                missing[name] = f"its Java program failed: {error}"
                if metrics:
                    raise ValueError(f"{name} cannot be computed: {missing[name]}") from error
    return {
        "scores": scores,
        "not_computed": {name: missing[name] for name in wanted if name in missing},
        "tokenizer": TOKENIZERS[tokenizer],
    }


def _missing(images: int) -> dict[str, str]:
    """The unavailable metrics for this number of images on this machine, each with the reason."""
    missing = {}
    if images < 2:
        missing["CIDEr"] = "it weights words by the references of the other images; score at least two images."
    if not shutil.which("java"):
        missing |= dict.fromkeys(("METEOR", "SPICE"), "it is a Java program; install Java.")
    elif not all((Path(pycocoevalcap.__path__[0], "spice", "lib") / jar).is_file() for jar in SPICE_JARS):
        missing["SPICE"] = (
            "its CoreNLP models are missing; run `python -m pycocoevalcap.spice.get_stanford_models` to download them."
        )
    return missing


def _tokenized(captions: Sequence[str], tokenizer: str) -> list[str]:
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"Unknown tokenizer '{tokenizer}'; choose from {', '.join(TOKENIZERS)}.")
    # A line break inside a caption would shift all following captions in the Java program's output.
    lines = [" ".join(caption.split()) for caption in captions]
    if tokenizer == "python":
        return [tokenize(line) for line in lines]
    if not shutil.which("java"):
        raise ValueError("tokenizer='java' requires Java; install it or use tokenizer='python'.")
    try:
        found = PTBTokenizer().tokenize({i: [{"caption": line}] for i, line in enumerate(lines)})
    except OSError as error:
        raise ValueError(
            f"tokenizer='java' cannot write to its own folder: {error}; use tokenizer='python'."
        ) from error
    if len(found) != len(lines):
        raise ValueError(
            f"tokenizer='java' returned {len(found)} lines for {len(lines)} captions; use tokenizer='python'."
        )
    return [found[i][0] for i in range(len(lines))]


def _bleu(expected: dict, predicted: dict, seed: int) -> dict[str, dict]:
    scorer = BleuScorer(n=4)
    for i, (caption,) in predicted.items():
        scorer += (caption, expected[i])
    values, _ = scorer.compute_score(option="closest")
    lengths = np.array([count["testlen"] for count in scorer.ctest])
    closest = np.array([min((abs(r - c["testlen"]), r) for r in c["reflen"])[1] for c in scorer.ctest])
    estimates = {}
    for n, value in enumerate(values, start=1):
        counts = [np.array([c[key][k] for c in scorer.ctest]) for k in range(n) for key in ("correct", "guess")]
        low, high = bootstrap_interval([lengths, closest, *counts], _corpus_bleu, seed)
        estimates[f"BLEU-{n}"] = {"value": float(value), "n": len(predicted), "low": low, "high": high}
    return estimates


def _corpus_bleu(lengths: np.ndarray, closest: np.ndarray, *counts: np.ndarray, axis: int) -> np.ndarray:
    """BLEU from the images' lengths and n-gram counts (correct and total for each n), summed over `axis`."""
    length, reference, *sums = (part.sum(axis) for part in (lengths, closest, *counts))
    correct, total = np.array(sums[::2]), np.array(sums[1::2])
    bleu = ((correct + 1e-15) / (total + 1e-9)).prod(0) ** (1 / len(correct))
    return bleu * np.exp(np.minimum(0, 1 - reference / np.maximum(length, 1e-15)))


def _meteor(expected: dict, predicted: dict, seed: int) -> dict[str, dict]:
    """METEOR's corpus score is not the mean over images, so the mean's interval is shifted to the corpus score."""
    try:
        value, each = Meteor().compute_score(expected, predicted)
    except ValueError as error:  # pycocoevalcap read no number, because the program ended
        raise OSError(f"it ended early, perhaps for lack of the 2 GB of memory that it needs ({error})") from error
    mean = mean_estimate(each, seed=seed)
    ends = {end: mean[end] - mean["value"] + value for end in ("low", "high")}
    return {"METEOR": {"value": value, "n": len(each)} | ends}


def _rouge(expected: dict, predicted: dict, seed: int) -> dict[str, dict]:
    return {"ROUGE-L": mean_estimate(Rouge().compute_score(expected, predicted)[1], seed=seed)}


def _cider(expected: dict, predicted: dict, seed: int) -> dict[str, dict]:
    """All resamples use the word weights of the whole set."""
    return {"CIDEr": mean_estimate(Cider().compute_score(expected, predicted)[1], seed=seed)}


def _spice(expected: dict, predicted: dict, seed: int) -> dict[str, dict]:
    scores = Spice().compute_score(expected, predicted)[1]
    return {"SPICE": mean_estimate([score["All"]["f"] for score in scores], seed=seed)}


METRICS: dict[str, Callable] = {
    "BLEU": _bleu,
    "METEOR": _meteor,
    "ROUGE-L": _rouge,
    "CIDEr": _cider,
    "SPICE": _spice,
}
