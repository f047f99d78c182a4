"""`vlkd push`: upload a trained model to the Hub."""

import argparse
import sys
from pathlib import Path
from typing import Any

from trainer.hub.repository import METRICS, push_folder
from trainer.hub.space import check_space, push_space


def add_command(commands: Any) -> None:
    parser = commands.add_parser("push")
    parser.add_argument("folder", metavar="DIR", help="folder that `vlkd train` wrote")
    parser.add_argument("repo_id", metavar="USER/NAME", help="repository on the Hub; created if it does not exist")
    parser.add_argument("--private", action="store_true", help="make the repository private")
    parser.add_argument("--revision", metavar="BRANCH", help="branch to push to; created if it does not exist")
    parser.add_argument("--metrics", metavar="FILE", help="metrics for the card; metrics.json in DIR if unset")
    parser.add_argument("--space", metavar="USER/SPACE", help="also write a Space with the page of `vlkd demo`")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Push, and print the URL of the commit; with --space, also the Space's."""
    if args.space is not None:
        check_space(args.space)
    default = Path(args.folder, METRICS)
    metrics = args.metrics or (default if default.is_file() else None)
    print(f"metrics: {metrics or 'none'}", file=sys.stderr)
    commit = push_folder(args.folder, args.repo_id, metrics, private=args.private, revision=args.revision)
    print(commit.commit_url, flush=True)
    if args.space is not None:
        print(push_space(args.space, commit, private=args.private).commit_url)
    return 0
