"""The `vlkd` command.

COMMANDS lists the subcommands. Only the module of the subcommand that is called is imported. It has a function
`add_command(commands)`, which adds the parser and sets `run=`, a function of the parsed arguments that returns the
exit code.
"""

import argparse
import codecs
import io
import os
import sys
import traceback
from importlib import import_module
from typing import NamedTuple

from trainer.cli.env import installed_version
from trainer.environment import set_defaults
from trainer.extras import missing_extra


class Command(NamedTuple):
    module: str  # in trainer.cli
    extra: str | None  # the optional dependencies it needs; `caption`, `ask` and `demo` for adapters only
    help: str


COMMANDS = {
    "train": Command("train", "train", "join CLIP and BART, or train a VLKD model further"),
    "cache": Command("cache", "train", "fill the feature cache of a training run"),
    "caption": Command("caption", "train", "write a caption for each image"),
    "ask": Command("ask", "train", "answer a question about each image"),
    "export": Command("export", "onnx", "write a model for ONNX Runtime or OpenVINO"),
    "embed": Command("embed", "search", "make an index of images for vlkd search"),
    "search": Command("search", "search", "find the images of an index that match a text or an image"),
    "demo": Command("demo", "train", "open a web page that captions images and answers questions about them"),
    "push": Command("push", "train", "upload a trained model to the Hub, with a model card"),
    "evaluate": Command("evaluate", "eval", "evaluate a model on a task"),
    "score": Command("score", "eval", "compute the official metrics of result files"),
    "estimate": Command("estimate", "train", "estimate the cost of a training run"),
    "report": Command("report", "train", "print a metrics.json, or write it into a document"),
    "env": Command("env", None, "print versions and devices, for bug reports"),
}
PACKAGES = ("trainer", "modeling_vlkd", "microworld")
ERRORS = "vlkd.escape"  # the name of our error handler for characters that the console cannot show


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand.

    Returns:
        The exit code of the command; 2 after an error that the user can fix, which is one line on stderr (with
        VLKD_TRACEBACK=1 below its traceback); 130 after Ctrl-C; 141 if the reader of stdout has closed it.
    """
    set_defaults()
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors=ERRORS)
    argv = sys.argv[1:] if argv is None else argv
    try:
        parser = _parser(argv)
        if not argv:
            parser.print_help()
            return 2
        args = parser.parse_args(argv)
        code = args.run(args)
        sys.stdout.flush()
        return code
    except KeyboardInterrupt:
        print("vlkd: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # as after `| head -1`; Python flushes stdout once more when it exits
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141
    except ImportError as error:
        message = missing_extra(error, f"vlkd {argv[0]}", COMMANDS[argv[0]].extra)
        if message is None:
            raise
        return _fail(message)
    except (ValueError, OSError, FloatingPointError) as error:
        show_traceback = os.environ.get("VLKD_TRACEBACK", "0") not in ("", "0")
        if show_traceback:
            traceback.print_exc()
        hint = "" if show_traceback or _is_ours(error) else " (VLKD_TRACEBACK=1 shows the traceback.)"
        return _fail(f"{error}{hint}")


def _parser(argv: list[str]) -> argparse.ArgumentParser:
    """The parser with the subcommand that is called; with all subcommands and no options, if none is."""
    parser = argparse.ArgumentParser(
        prog="vlkd",
        description="Train and use VLKD models: image captions, visual question answering, text-image embeddings.",
        epilog="`vlkd COMMAND --help` lists the options. VLKD_TRACEBACK=1 shows the traceback of an error.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"vlkd {installed_version('vlkd')}")
    options = {"dest": "command", "metavar": "COMMAND", "required": True}
    if argv and argv[0] in COMMANDS:
        from trainer.cli.parser import CommandParser  # imports transformers, which `vlkd --help` does not need

        commands = parser.add_subparsers(**options, parser_class=CommandParser)
        import_module(f"trainer.cli.{COMMANDS[argv[0]].module}").add_command(commands)
    else:
        commands = parser.add_subparsers(**options)
        for name, command in COMMANDS.items():
            commands.add_parser(name, help=command.help)
    return parser


def _fail(message: str) -> int:
    print(f"vlkd: error: {message}", file=sys.stderr)
    return 2


def _is_ours(error: BaseException) -> bool:
    """Whether code of this project raised the error, with a message written for the user."""
    *_, (frame, _) = traceback.walk_tb(error.__traceback__)
    package = frame.f_globals.get("__package__") or ""
    return {package.partition(".")[0], type(error).__module__.partition(".")[0]} & set(PACKAGES) != set()


def _escape(error: UnicodeError) -> tuple[str | bytes, int]:
    """Bytes of a file name that are not UTF-8 are written unchanged; other characters as \\xe9 or \\u2603."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeError:
        return codecs.backslashreplace_errors(error)


codecs.register_error(ERRORS, _escape)
