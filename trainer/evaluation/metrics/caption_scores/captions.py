"""The COCO caption metrics as `pycocoevalcap` gives them, with intervals; a reason for each that cannot be had."""

import contextlib
import io
import shutil
import subprocess
from collections.abc import Sequence
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

from .interval import mean_estimate, resampled
from .ptb_tokenizer import tokenize

METRICS = ("BLEU", "METEOR", "ROUGE-L", "CIDEr", "SPICE")
TOKENIZERS = {"java": "PTB (Java)", "python": "PTB (Python)"}
SPICE_JARS = ("stanford-corenlp-3.6.0.jar", "stanford-corenlp-3.6.0-models.jar")


def caption_scores(
    predictions: Sequence[str],
    references: Sequence[Sequence[str]],
    metrics: Sequence[str] | None = None,
    tokenizer: str | None = None,
    seed: int = 0,
) -> dict[str, Any]:
    """BLEU-1..4, METEOR, ROUGE-L, CIDEr and SPICE of one caption an image against the image's reference captions.

    Args:
        predictions: one caption an image.
        references: the reference captions of each image.
        metrics: some of METRICS, all of which must then be had; by default every one that can be.
        tokenizer: "java", the official program, or "python", which needs none; by default "java" where there is Java.
        seed: of the bootstrap, which resamples images.

    Returns:
        {"scores": {name: {"value", "n", "low", "high"}}, "not_computed": {name: why}, "tokenizer": its name}.

    Raises:
        ValueError: nothing to score, an image without references, or a metric or tokenizer that cannot be had.
    """
    _check(predictions, references)
    wanted, missing = list(metrics or METRICS), _missing(len(predictions))
    for name in wanted:
        if name not in METRICS:
            raise ValueError(f"metric '{name}' is not known: use {', '.join(METRICS)}.")
        if metrics and name in missing:
            raise ValueError(f"{name} cannot be computed: {missing[name]}")
    tokenizer = tokenizer or ("java" if shutil.which("java") else "python")
    lines = iter(_tokenized([*predictions, *(text for texts in references for text in texts)], tokenizer))
    said = {i: [next(lines)] for i in range(len(predictions))}
    meant = {i: [next(lines) for _ in texts] for i, texts in enumerate(references)}
    scores: dict[str, dict] = {}
    for name in wanted:
        if name not in missing:
            try:
                with contextlib.redirect_stdout(io.StringIO()):  # pycocoevalcap prints
                    scores |= _MEASURES[name](meant, said, seed)
            except (subprocess.CalledProcessError, OSError) as error:
                missing[name] = f"its Java program failed: {error}"
                if metrics:
                    raise ValueError(f"{name} cannot be computed: {missing[name]}") from error
    return {
        "scores": scores,
        "not_computed": {name: missing[name] for name in wanted if name in missing},
        "tokenizer": TOKENIZERS[tokenizer],
    }


def _check(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> None:
    if len(predictions) == 0 or len(predictions) != len(references):
        raise ValueError(f"{len(predictions)} captions and the references of {len(references)} images: give one each.")
    for i, texts in enumerate(references):
        if isinstance(texts, str) or not texts:
            raise ValueError(f"references[{i}] is {texts!r}: give a list of at least one caption.")


def _missing(n: int) -> dict[str, str]:
    """Why a metric cannot be had here, by its name."""
    missing = {}
    if n < 2:
        missing["CIDEr"] = "its word weights come from the references of the other images: score at least two images."
    if not shutil.which("java"):
        missing |= dict.fromkeys(("METEOR", "SPICE"), "it is a Java program: install Java (a `java` on the PATH).")
    elif not all((Path(pycocoevalcap.__path__[0], "spice", "lib") / jar).is_file() for jar in SPICE_JARS):
        missing["SPICE"] = (
            "its CoreNLP 3.6.0 models are not here: `python -m pycocoevalcap.spice.get_stanford_models` fetches them."
        )
    return missing


def _tokenized(captions: Sequence[str], tokenizer: str) -> list[str]:
    # A line break of any kind inside a caption would shift every caption after it in the Java program's output.
    lines = [" ".join(caption.split()) for caption in captions]
    if tokenizer not in TOKENIZERS:
        raise ValueError(f"tokenizer '{tokenizer}' is not known: use {' or '.join(TOKENIZERS)}.")
    if tokenizer == "python":
        return [tokenize(line) for line in lines]
    if not shutil.which("java"):
        raise ValueError("tokenizer 'java' needs a `java` on the PATH: install Java, or take 'python'.")
    try:
        found = PTBTokenizer().tokenize({i: [{"caption": line}] for i, line in enumerate(lines)})
    except OSError as error:
        raise ValueError(f"tokenizer 'java' writes into its own folder and cannot: {error}; take 'python'.") from error
    if len(found) != len(lines):
        raise ValueError(f"tokenizer 'java' gave {len(found)} lines for {len(lines)} captions: take 'python'.")
    return [found[i][0] for i in range(len(lines))]


def _bleu(meant: dict, said: dict, seed: int) -> dict[str, dict]:
    scorer = BleuScorer(n=4)
    for i, (caption,) in said.items():
        scorer += (caption, meant[i])
    values, _ = scorer.compute_score(option="closest")
    lengths = np.array([count["testlen"] for count in scorer.ctest])
    closest = [min((abs(r - c["testlen"]), r) for r in c["reflen"])[1] for c in scorer.ctest]
    estimates = {}
    for n, value in enumerate(values, start=1):
        counts = [np.array([c[kind][k] for c in scorer.ctest]) for k in range(n) for kind in ("correct", "guess")]
        low, high = resampled([lengths, np.array(closest), *counts], _corpus_bleu, seed)
        estimates[f"BLEU-{n}"] = {"value": float(value), "n": len(said), "low": low, "high": high}
    return estimates


def _corpus_bleu(lengths: np.ndarray, closest: np.ndarray, *counts: np.ndarray, axis: int) -> np.ndarray:
    """BLEU from the images' lengths and n-gram counts (right, written, for each n), summed over `axis`."""
    length, reference, *sums = (part.sum(axis) for part in (lengths, closest, *counts))
    right, written = np.array(sums[::2]), np.array(sums[1::2])
    bleu = ((right + 1e-15) / (written + 1e-9)).prod(0) ** (1 / len(right))
    return bleu * np.exp(np.minimum(0, 1 - reference / np.maximum(length, 1e-15)))


def _meteor(meant: dict, said: dict, seed: int) -> dict[str, dict]:
    """METEOR's corpus score is no mean of the images' scores: its interval is theirs, moved to the corpus score."""
    try:
        value, each = Meteor().compute_score(meant, said)
    except ValueError as error:  # it read no number: the program ended
        raise OSError(f"it ended early, perhaps for want of the 2 GB of memory it asks for ({error})") from error
    mean = mean_estimate(each, seed=seed)
    ends = {end: mean[end] - mean["value"] + value for end in ("low", "high")}
    return {"METEOR": {"value": value, "n": len(each)} | ends}


def _rouge(meant: dict, said: dict, seed: int) -> dict[str, dict]:
    return {"ROUGE-L": mean_estimate(Rouge().compute_score(meant, said)[1], seed=seed)}


def _cider(meant: dict, said: dict, seed: int) -> dict[str, dict]:
    """The bootstrap keeps the word weights of the whole set."""
    return {"CIDEr": mean_estimate(Cider().compute_score(meant, said)[1], seed=seed)}


def _spice(meant: dict, said: dict, seed: int) -> dict[str, dict]:
    return {"SPICE": mean_estimate([score["All"]["f"] for score in Spice().compute_score(meant, said)[1]], seed=seed)}


_MEASURES = dict(zip(METRICS, (_bleu, _meteor, _rouge, _cider, _spice), strict=True))
