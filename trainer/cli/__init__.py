"""The `vlkd` command.

A subcommand is a module with `add_command(commands)`, which adds its parser and sets `run=`, a function of the parsed
arguments that returns the exit code. To add one, name its module in COMMANDS.
"""

import argparse
import codecs
import io
import os
import sys
import traceback

from trainer import environment  # noqa: F401 - before torch and tqdm are imported

# isort: split
from trainer.cli import cache, caption, estimate, evaluate, push, report, score, train
from trainer.cli.parser import CommandParser
from trainer.data.rows import DataError

COMMANDS = (train, cache, caption, push, evaluate, score, estimate, report)
PACKAGES = ("trainer", "modeling_vlkd", "microworld")
ERRORS = "vlkd.escape"  # how a character that the console cannot show is written


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The command's exit code; 2 after an error that the user can fix, which is one line on stderr (with `--debug` or
        VLKD_DEBUG=1 below its traceback); 130 after Ctrl-C; 141 if the reader of stdout has gone.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
    argv = sys.argv[1:] if argv is None else argv
    debug = "--debug" in argv or os.environ.get("VLKD_DEBUG", "0") not in ("", "0")
    try:
        args = _parser().parse_args([word for word in argv if word != "--debug"])
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("vlkd: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as after `| head -1`; Python flushes stdout once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except (ValueError, OSError, FloatingPointError) as error:
        if debug:
            traceback.print_exc()
        hint = "" if debug or _is_ours(error) else " (--debug shows the traceback.)"
        print(f"vlkd: error: {error}{hint}", file=sys.stderr)
        return 2


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vlkd",
        description="Train and use VLKD models: image captions, visual question answering, text-image embeddings.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "--debug",
        action="store_true",
        default=argparse.SUPPRESS,
        help="show the traceback of errors, as VLKD_DEBUG=1 does",
    )
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    for module in COMMANDS:
        module.add_command(commands)
    return parser


def _is_ours(error: BaseException) -> bool:
    """Whether code of this project raised it, with a message written for the user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__package__") or ""
    return isinstance(error, DataError) or package.partition(".")[0] in PACKAGES


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file name that are not UTF-8 are written as they are; other characters as \\xe9 or \\u2603."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error(ERRORS, _escape)
