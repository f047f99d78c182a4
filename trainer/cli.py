"""The `vlkd` command.

A subcommand is a module with `add_command(commands)`, which adds its parser and sets `run=`, a function of the parsed
arguments that returns the exit code. To add one, name its module in COMMANDS.
"""

import argparse
import difflib
import json
import sys
from typing import Any

from trainer import environment  # noqa: F401 - before torch and tqdm are imported

# isort: split
import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from trainer import ask, cache, estimate, evaluate, hub, score, train
from trainer.evaluation import report

COMMANDS = (train, cache, ask, hub, evaluate, score, estimate, report)


class CommandParser(HfArgumentParser):
    """Parser of one subcommand: what is wrong with its options is a ValueError, which `main` prints.

    One made from dataclasses also takes `--config FILE`, a flat YAML file of the same options. Flags win over it.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any):
        super().__init__(dataclass_types, **kwargs, allow_abbrev=False)
        self._config, self._config_flags = "", []  # the file and its options as flags
        for action in self._actions:
            if action.type is string_to_bool:  # `--bf16` means true, also where the default is neither true nor false
                action.nargs, action.const = "?", True
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


def flags_of_config(path: str) -> list[str]:
    """`key: value` lines of a flat YAML file as `--key=value` flags; null leaves a key at its default.

    Raises:
        ValueError: the file cannot be read, or is no flat mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.safe_load(file)
    except (OSError, UnicodeDecodeError, RecursionError, yaml.YAMLError) as error:
        raise ValueError(f"--config {path} cannot be read: {' '.join(str(error).split())}") from error
    if not isinstance(config, dict):
        raise ValueError(f"--config {path} holds no `key: value` lines.")
    flags = []
    for key, value in config.items():
        if isinstance(value, list):
            flags += [f"--{key}", *map(str, value)]
        elif value is not None:
            flags.append(f"--{key}={value if isinstance(value, str) else json.dumps(value)}")
    return flags


def main(argv: list[str] | None = None) -> int:
    """Run a subcommand; the exit code is 0, or 2 with one line on stderr for what the user can mend."""
    parser = argparse.ArgumentParser(prog="vlkd", description="CLIP's eyes for BART.", allow_abbrev=False)
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=CommandParser)
    for module in COMMANDS:
        module.add_command(commands)
    try:
        args = parser.parse_args(argv)
        return args.run(args)
    except (ValueError, OSError, FloatingPointError) as error:
        print(f"vlkd: error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
