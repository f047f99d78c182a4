"""`vlkd score`: the official metrics of result files."""

import argparse
import json
import shlex
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from trainer.evaluation import scoring
from trainer.evaluation.metrics_file import SCHEMA, checkout_commit, terminal_table

DECIMALS = 6  # the official figures, to their last digit


def add_command(commands: Any) -> None:
    """Add `vlkd score` with a parser for each kind of result."""
    score = commands.add_parser("score")
    kinds = score.add_subparsers(dest="kind", metavar="KIND", required=True)

    vqa = kinds.add_parser("vqa", help="accuracy of answers about images: VQA, OK-VQA")
    vqa.add_argument("--questions", metavar="FILE", help="the official questions; compared with the annotations")
    vqa.add_argument("--annotations", required=True, metavar="FILE", help="the official annotations")
    vqa.add_argument("--results", required=True, metavar="FILE", help='[{"question_id": …, "answer": …}, …]')
    vqa.add_argument("--style", default="vqa", choices=scoring.STYLES, help="whose files they are")
    vqa.set_defaults(score=_vqa)

    captions = kinds.add_parser("captions", help="BLEU, METEOR, ROUGE-L, CIDEr, SPICE")
    captions.add_argument("--references", required=True, metavar="FILE", help="COCO's captions file")
    captions.add_argument("--results", required=True, metavar="FILE", help='[{"image_id": …, "caption": …}, …]')
    captions.add_argument("--metrics", nargs="+", metavar="NAME", help="only these; all that can be had, if unset")
    captions.add_argument("--tokenizer", choices=("java", "python"), help="java where there is Java, if unset")
    captions.set_defaults(score=_captions)

    retrieval = kinds.add_parser("retrieval", help="R@1, R@5, R@10 between images and texts")
    retrieval.add_argument(
        "--embeddings", required=True, metavar="FILE", help=".npz of image_embeds, text_embeds and image_of_text"
    )
    retrieval.set_defaults(score=_retrieval)

    text_qa = kinds.add_parser("text-qa", help="exact match and token F1 of answers")
    text_qa.add_argument("--references", required=True, metavar="FILE", help='{"id": "answer" or ["answer", …], …}')
    text_qa.add_argument("--results", required=True, metavar="FILE", help='{"id": "answer", …}')
    text_qa.set_defaults(score=_text_qa)

    for kind in kinds.choices.values():
        kind.add_argument("--seed", type=int, default=0, help="of the bootstrap")
        kind.add_argument("--json", action="store_true", help="print one JSON object and nothing else")
    score.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the figures: a table, or with --json a metrics.json. 0, also where a metric cannot be had and is named.

    Raises:
        ValueError: a file that is not in its format, ids that do not fit, a metric asked for that cannot be had.
    """
    report = args.score(args)
    condition = Path(args.embeddings if args.kind == "retrieval" else args.results).stem
    figures = [
        {
            "metric": figure["metric"],
            "row": figure["row"],
            "condition": condition,
            "n": figure["n"],
            **{key: round(figure[key], DECIMALS) for key in ("value", "low", "high")},
        }
        for figure in report.pop("figures")
    ]
    if args.json:
        head = {"schema": SCHEMA, "command": _command(args), "commit": checkout_commit(), "split": "the whole file"}
        print(json.dumps(head | report | {"seed": args.seed, "figures": figures}, ensure_ascii=False))
        return 0
    if figures:
        print(terminal_table(figures))
    for name, why in report.get("not_computed", {}).items():
        print(f"{name} is not computed: {why}")
    if "tokenizer" in report:
        print(f"Tokenizer: {report['tokenizer']}.")
    return 0


def _vqa(args: argparse.Namespace) -> dict[str, Any]:
    figures = scoring.score_vqa(args.annotations, args.results, args.questions, args.style, args.seed)
    return {"dataset": Path(args.annotations).name, "style": args.style, "figures": figures}


def _captions(args: argparse.Namespace) -> dict[str, Any]:
    report = scoring.caption_report(args.references, args.results, args.metrics, args.tokenizer, args.seed)
    return {"dataset": Path(args.references).name, **report}


def _retrieval(args: argparse.Namespace) -> dict[str, Any]:
    names = ("image_embeds", "text_embeds", "image_of_text")
    try:
        with np.load(args.embeddings) as arrays:
            figures = scoring.score_retrieval(*(arrays[name] for name in names), args.seed)
    except (OSError, KeyError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"--embeddings {args.embeddings} is no .npz of {', '.join(names)}, as `numpy.savez` writes it: {error}"
        ) from error
    except ValueError as error:
        raise ValueError(f"--embeddings {args.embeddings}: {error}") from error
    return {"dataset": Path(args.embeddings).name, "figures": figures}


def _text_qa(args: argparse.Namespace) -> dict[str, Any]:
    predictions, references = scoring.text_qa_pairs(args.references, args.results)
    return {
        "dataset": Path(args.references).name,
        "figures": scoring.score_text_qa(predictions, references, args.seed),
    }


def _command(args: argparse.Namespace) -> str:
    words = ["vlkd", "score", args.kind]
    for name, value in vars(args).items():
        if name not in ("command", "kind", "json", "run", "score") and value is not None:
            words += [f"--{name}", *map(str, value if isinstance(value, list) else [value])]
    return shlex.join(words)
