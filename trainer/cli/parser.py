"""The parser of a subcommand, which also reads a YAML file of options."""

import argparse
import difflib
import json
import re
from dataclasses import fields
from pathlib import Path
from typing import Any

import yaml
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from trainer.config_loader import ConfigLoader

NULL = "tag:yaml.org,2002:null"
ROOT = Path(__file__).parents[2]
RECIPES = (ROOT / "hub_configs", ROOT / "vlkd" / "recipes")  # in a checkout; in an installed package
# The options of transformers' TrainingArguments that `--help` shows; `--help_all` shows all of them.
COMMON = {
    *("output_dir", "learning_rate", "num_train_epochs", "max_steps", "per_device_train_batch_size", "seed"),
    *("gradient_accumulation_steps", "activation_checkpointing", "optim", "weight_decay", "lr_scheduler_type"),
    *("warmup_steps", "logging_steps", "eval_strategy", "eval_steps", "save_strategy", "save_steps", "report_to"),
    *("resume_from_checkpoint", "dataloader_num_workers", "push_to_hub", "hub_model_id", "use_cpu"),
}


class CommandParser(HfArgumentParser):
    """Parser of one subcommand. Invalid options raise a ValueError, which `main` prints.

    A parser made from dataclasses also takes `--config`, a flat YAML file of the same options or the name of a recipe.
    Flags override the file.
    """

    def __init__(self, dataclass_types: Any = None, **kwargs: Any):
        super().__init__(dataclass_types, **kwargs, allow_abbrev=False)
        self._config, self._config_flags = "", []  # the file and its options as flags
        for action in self._actions:
            if action.type is string_to_bool:
                # `--bf16` alone means true, also where the default is neither true nor false.
                action.type, action.nargs, action.const = as_bool, "?", True
            # The parser also accepts --max-steps, and --no_bf16 for --bf16 false; the help shows one spelling.
            action.option_strings = [flag for flag in action.option_strings if "-" not in flag[2:]]
            if action.option_strings[:1] == [f"--no_{action.dest}"]:
                action.help = argparse.SUPPRESS
        if self.dataclass_types:
            self.usage = "%(prog)s [--config FILE] [--option VALUE ...]"
            self._hide_inherited()
            for action in self._actions:  # transformers' text says that its Trainer does not read it
                if action.dest == "resume_from_checkpoint":
                    action.help = "true: resume from the newest complete checkpoint in output_dir; or its folder"
            self.add_argument("--help_all", action=HelpAll, nargs=0, help="show the options of TrainingArguments too")
            self.add_argument(
                "--config", metavar="FILE", help="YAML file of options, one `key: value` per line, or name of a recipe"
            )

    def format_help(self) -> str:
        return re.sub(r"\s+\(default:\s+None\)", "", super().format_help())

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

    def _hide_inherited(self) -> None:
        """Hide the options that a dataclass inherits, except the common ones."""
        inherited = {
            f.name for kind in self.dataclass_types for f in fields(kind) if f.name not in kind.__annotations__
        }
        hidden = inherited - COMMON | {"label_names", "remove_unused_columns", "logging_nan_inf_filter"}
        self.hidden_help = {action: action.help for action in self._actions if action.dest in hidden}
        for action in self.hidden_help:
            action.help = argparse.SUPPRESS

    def _with_config(self, args: list[str] | None) -> list[str]:
        """`args`, preceded by the options of the file that their `--config` names."""
        config = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
        config.error = self.error
        config.add_argument("--config")
        file, flags = config.parse_known_args(args)
        if not file.config:
            return flags
        self._config = find_config(file.config)
        self._config_flags = flags_of_config(self._config)
        return [*self._config_flags, *flags, f"--config={self._config}"]

    def _describe(self, unknown: list[str]) -> str:
        keys = [word.lstrip("-").partition("=")[0] for word in unknown if word.startswith("--")]
        if not keys:
            return f"unexpected {' '.join(unknown)}; options are written --key value."
        origin = f" in {self._config}" if unknown[0] in self._config_flags else ""
        known = [action.dest for action in self._actions if action.option_strings]
        near = difflib.get_close_matches(keys[0].replace("-", "_"), known)
        help_flag = "--help_all" if self.dataclass_types else "--help"
        remedy = f"Did you mean {' or '.join(near)}?" if near else f"`{self.prog} {help_flag}` lists the keys."
        return f"unknown key '{keys[0]}'{origin}. {remedy}"


class HelpAll(argparse.Action):
    """`--help_all`: print the help with all options, and exit."""

    def __call__(self, parser: CommandParser, *args: Any) -> None:
        for action, text in parser.hidden_help.items():
            action.help = text
        parser.print_help()
        parser.exit()


def as_bool(text: str) -> bool:
    """`string_to_bool`, and YAML's words on and off."""
    return string_to_bool({"on": "true", "off": "false"}.get(text.lower(), text))


def utf8(text: str) -> str:
    """The type of a text. Python keeps bytes that are not UTF-8 in a form that tokenizers refuse."""
    try:
        text.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8") from None
    return text


def find_config(name: str) -> str:
    """The path of a YAML file, or of the recipe with this name.

    Raises:
        ValueError: there is neither.
    """
    if Path(name).is_file():
        return name
    recipes = {file.parent.name: file for folder in RECIPES for file in sorted(folder.glob("*/train.yaml"))}
    if name not in recipes:
        raise ValueError(f"--config {name} does not exist; give a YAML file or a recipe: {', '.join(recipes)}.")
    return str(recipes[name])


def flags_of_config(path: str) -> list[str]:
    """The `key: value` lines of a flat YAML file as `--key=value` flags; null leaves a key at its default.

    The type of the option reads a value, not YAML: `no`, `off`, a date or `1e-5` are passed as they are written.
    Values inside a mapping (`dataset_kwargs`) have YAML's types.

    Raises:
        ValueError: the file cannot be read, or is not a flat mapping.
    """
    try:
        with open(path, encoding="utf-8") as file:
            config = yaml.compose(file, Loader=ConfigLoader)
        if not isinstance(config, yaml.MappingNode):
            raise ValueError(f"--config {path} has no `key: value` lines.")
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
