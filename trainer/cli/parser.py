"""The parser of a subcommand, which also reads a YAML file of options."""

import argparse
import difflib
import json
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from trainer.arguments import ConfigLoader

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
