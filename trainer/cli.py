"""The `vlkd` command.

A subcommand is a module with `add_command(commands)`, which adds its parser and sets `run=`, a function of the parsed
arguments that returns the exit code. To add one, name its module in COMMANDS.
"""

import argparse
import codecs
import difflib
import io
import json
import os
import sys
import traceback
from typing import Any

from trainer import environment  # noqa: F401 - before torch and tqdm are imported

# isort: split
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from trainer import ask, cache, estimate, evaluate, hub, score, train
from trainer.arguments import ConfigLoader
from trainer.data import DataError
from trainer.evaluation import report

COMMANDS = (train, cache, ask, hub, evaluate, score, estimate, report)
PACKAGES = ("trainer", "modeling_vlkd", "microworld")
ERRORS = "vlkd.escape"  # how a character that the console cannot show is written
NULL = "tag:yaml.org,2002:null"


class CommandParser(HfArgumentParser):
    """Parser of one subcommand. Invalid options raise a ValueError, which `main` prints.

    A parser made from dataclasses also takes `--config FILE`, a flat YAML file of the same options. Flags override it.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any):
        super().__init__(dataclass_types, **kwargs, allow_abbrev=False)
        self._config, self._config_flags = "", []  # the file and its options as flags
        for action in self._actions:
            if action.type is string_to_bool:
                # `--bf16` alone means true, also where the default is neither true nor false.
                action.type, action.nargs, action.const = as_bool, "?", True
        if self.dataclass_types:
            self.add_argument(
                "--config", metavar="FILE", help="YAML file of the options below, one `key: value` a line."
            )

    def parse_known_args(
        self, args: list[str] | None = None, namespace: Any = None
    ) -> tuple[argparse.Namespace, list]:
        if self.dataclass_types:
            args = self._with_config(args)
        parsed, unknown = super().parse_known_args(args, namespace)
        if unknown:
            raise ValueError(self._describe(unknown))
        return parsed, []

    def error(self, message: str) -> None:
        raise ValueError(message)

    def _with_config(self, args: list[str] | None) -> list[str]:
        """`args` with the options of the file that their `--config` names before them."""
        config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        config.error = self.error
        config.add_argument("--config")
        file, flags = config.parse_known_args(args)
        if not file.config:
            return flags
        self._config, self._config_flags = file.config, flags_of_config(file.config)
        return [*self._config_flags, *flags, f"--config={file.config}"]

    def _describe(self, unknown: list[str]) -> str:
        keys = [word.lstrip("-").partition("=")[0] for word in unknown if word.startswith("--")]
        if not keys:
            return f"unexpected {' '.join(unknown)}; options are written --key value."
        origin = f" in {self._config}" if unknown[0] in self._config_flags else ""
        near = difflib.get_close_matches(keys[0].replace("-", "_"), [action.dest for action in self._actions])
        remedy = f"Did you mean {' or '.join(near)}?" if near else f"`{self.prog} --help` lists the keys."
        return f"unknown key '{keys[0]}'{origin}. {remedy}"


def as_bool(text: str) -> bool:
    """`string_to_bool`, and YAML's two other words for it: on and off."""
    return string_to_bool({"on": "true", "off": "false"}.get(text.lower(), text))


def flags_of_config(path: str) -> list[str]:
    """The `key: value` lines of a flat YAML file as `--key=value` flags; null leaves a key at its default.

    A value is passed as the text in the file, which the option's own type then reads: `no`, `off`, a date, or `1e-5`
    are what they look like. Values inside a mapping (`dataset_kwargs`) have YAML's types.

    Raises:
        ValueError: the file cannot be read, or is no flat mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.compose(file, Loader=ConfigLoader)
        if not isinstance(config, yaml.MappingNode):
            raise ValueError(f"--config {path} holds no `key: value` lines.")
        pairs = [(str(key.value), value) for key, value in config.value]
        flags = []
        for key, value in pairs:
            if isinstance(value, yaml.SequenceNode):
                flags += [f"--{key}", *map(_as_text, value.value)]
            elif value.tag != NULL:
                flags.append(f"--{key}={_as_text(value)}")
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    return flags


def _as_text(node: yaml.Node) -> str:
    """A scalar as it is written in the file; a list or mapping as JSON."""
    if isinstance(node, yaml.ScalarNode):
        return node.value
    return json.dumps(yaml.load(yaml.serialize(node), Loader=ConfigLoader), default=str)


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

if __name__ == "__main__":
    sys.exit(main())
