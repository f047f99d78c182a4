"""`vlkd push`."""

import argparse
import sys
from pathlib import Path
from typing import Any

from trainer.hub.repository import METRICS, push_folder


def add_command(commands: Any) -> None:
    parser = commands.add_parser("push", help="upload a trained model with its code and a model card")
    parser.add_argument("folder", metavar="DIR", help="folder of the model, as `vlkd train` leaves it")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub; it is made if there is none")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; it is made if there is none")
    parser.add_argument("--metrics", metavar="FILE", help="figures for the card; metrics.json in DIR if unset")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Push, and print what was pushed."""
    beside = Path(args.folder, METRICS)
    metrics = args.metrics or (beside if beside.is_file() else None)
    print(f"figures: {metrics or 'none'}", file=sys.stderr)
    commit = push_folder(args.folder, args.repo_id, metrics, private=args.private, revision=args.revision)
    print(commit.commit_url)
    return 0
