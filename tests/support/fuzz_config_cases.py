"""One spoilt config through whatever reads it: config, processor, the commands' loader, `vlkd train`'s parser."""

import contextlib
import io
import random
import shutil
from pathlib import Path

import yaml
from fuzz import Failure, refusal
from fuzz_configs import spoilt_json, spoilt_yaml

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDProcessor
from trainer.cli.parser import CommandParser
from trainer.cli.train import add_command, read_arguments
from trainer.models import load_vlkd

ROOT = Path(__file__).parents[2]
FILES = ("config.json", "processor_config.json", "generation_config.json", "tokenizer.json", "tokenizer_config.json")
# A file that is missing or no JSON is an OSError, as everywhere in transformers; both name the folder.
KINDS = (ValueError, OSError)


class Cases:
    """Called with a case's number and a folder for it, returns "right" or "refused", and of what."""

    def __init__(self):
        recipe = (ROOT / "hub_configs" / "microworld" / "train.yaml").read_text(encoding="utf-8")
        self.recipe = {**yaml.safe_load(recipe), "dataset_probabilities": [1.0], "seed": 3, "fsdp": ""}
        self.recipe |= {"use_peft": True, "lora_r": 4}
        self.model: Path | None = None
        self.commands = CommandParser().add_subparsers(parser_class=CommandParser)
        add_command(self.commands)

    def __call__(self, number: int, folder: Path) -> str:
        rng = random.Random(number)
        return self.as_recipe(rng, folder) if number % 4 == 0 else self.as_model(rng, folder)

    # ---- a model's folder

    def as_model(self, rng: random.Random, folder: Path) -> str:
        """Loaded as `vlkd caption`, transformers' Auto classes and our own load it."""
        if self.model is None or self.model.parent != folder:
            self.model = write_model(folder / "sound")
        name = rng.choice((*FILES, "config.json"))
        data, story = spoilt_json((self.model / name).read_bytes(), rng)
        spoilt = folder / "spoilt"
        shutil.copytree(self.model, spoilt, copy_function=link)
        (spoilt / name).unlink()
        (spoilt / name).write_bytes(data)
        try:
            return f"{name} {self.load(spoilt, rng)}"
        except Failure as failure:
            raise Failure(f"{name}: {story}: {failure}") from failure
        finally:
            shutil.rmtree(spoilt)

    def load(self, spoilt: Path, rng: random.Random) -> str:
        named = (str(spoilt),)
        refusal(lambda: VLKDConfig.from_pretrained(spoilt), *named, kinds=KINDS)
        refusal(lambda: VLKDProcessor.from_pretrained(spoilt), *named, kinds=KINDS)
        loaded, message = refusal(lambda: load_vlkd(str(spoilt), "--model"), f"--model: '{spoilt}'")
        if loaded is None:
            if "\n" in message:
                raise Failure(f"more than one line: {message!r}")
            return "refused"
        return "right"

    # ---- a recipe

    def as_recipe(self, rng: random.Random, folder: Path) -> str:
        """Through `vlkd train`'s parser, up to where a model would be loaded."""
        data, story = spoilt_yaml({**self.recipe, "output_dir": str(folder / "out")}, rng)
        file = folder / "train.yaml"
        file.write_bytes(data)
        try:
            found, refused = refusal(lambda: self.parse(file), str(file), *self.recipe, "key", "unexpected")
        except Failure as failure:
            raise Failure(f"train.yaml: {story}: {failure}") from failure
        return f"train.yaml {'refused' if found is None else 'right'}"

    def parse(self, file: Path) -> tuple:
        with contextlib.redirect_stdout(io.StringIO()):
            return read_arguments(self.commands.choices["train"].parse_args(["--config", str(file)]))


def write_model(folder: Path) -> Path:
    teachers = [str(ROOT / "microworld" / "teachers" / name) for name in ("clip", "bart")]
    VLKDForConditionalGeneration.from_vision_text_pretrained(*teachers).save_pretrained(folder)
    VLKDProcessor.from_vision_text_pretrained(*teachers).save_pretrained(folder)
    return folder


def link(source: str, target: str) -> None:
    Path(target).hardlink_to(source)
