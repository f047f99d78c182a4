"""`vlkd score`: the official metrics of result files."""

import argparse
import json
from pathlib import Path
from typing import Any

from trainer.evaluation import scoring
from trainer.evaluation.metrics_file import SCHEMA, checkout_commit, shell_command, terminal_table

DECIMALS = 6  # as in the official evaluations


def add_command(commands: Any) -> None:
    score = commands.add_parser("score")
    kinds = score.add_subparsers(dest="kind", metavar="KIND", required=True)

    vqa = kinds.add_parser("vqa", help="accuracy on VQA or OK-VQA")
    vqa.add_argument("--questions", metavar="FILE", help="the official questions, to check the annotations against")
    vqa.add_argument("--annotations", required=True, metavar="FILE", help="the official annotations")
    vqa.add_argument("--results", required=True, metavar="FILE", help='[{"question_id": …, "answer": …}, …]')
    vqa.add_argument("--style", default="vqa", choices=scoring.STYLES, help="the dataset of the annotations")
    vqa.set_defaults(score=_vqa)

    captions = kinds.add_parser("captions", help="BLEU, METEOR, ROUGE-L, CIDEr, SPICE")
    captions.add_argument("--references", required=True, metavar="FILE", help="captions in COCO's format")
    captions.add_argument("--results", required=True, metavar="FILE", help='[{"image_id": …, "caption": …}, …]')
    captions.add_argument("--metrics", nargs="+", metavar="NAME", help="default: all that are available")
    captions.add_argument("--tokenizer", choices=("java", "python"), help="default: java if Java is installed")
    captions.set_defaults(score=_captions)

    for kind in kinds.choices.values():
        kind.add_argument("--json", action="store_true", help="print the results as one JSON object")
    score.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the results as a table or, with --json, as the content of a metrics.json."""
    report = args.score(args)
    condition = Path(args.results).stem
    figures = [
        {"metric": result["metric"], "row": result["row"], "condition": condition, "n": result["n"]}
        | {key: round(result[key], DECIMALS) for key in ("value", "low", "high")}
        for result in report.pop("figures")
    ]
    if args.json:
        command = shell_command(["vlkd", "score", args.kind], args, ("command", "kind", "json", "run", "score"))
        head = {"schema": SCHEMA, "command": command, "commit": checkout_commit(), "split": "the whole file"}
        print(json.dumps(head | report | {"figures": figures}, ensure_ascii=False))
        return 0
    if figures:
        print(terminal_table(figures))
    for name, reason in report.get("not_computed", {}).items():
        print(f"{name} is not computed: {reason}")
    if "tokenizer" in report:
        print(f"Tokenizer: {report['tokenizer']}.")
    return 0


def _vqa(args: argparse.Namespace) -> dict[str, Any]:
    figures = scoring.score_vqa(args.annotations, args.results, args.questions, args.style)
    return {"dataset": Path(args.annotations).name, "style": args.style, "figures": figures}


def _captions(args: argparse.Namespace) -> dict[str, Any]:
    report = scoring.caption_report(args.references, args.results, args.metrics, args.tokenizer)
    return {"dataset": Path(args.references).name, **report}
