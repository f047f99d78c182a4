"""`python -m microworld.pretrain [clip|bart|measure]`: train the two teachers, measure them, and write both to disk.

The teachers set the ceiling of all that VLKD can reach here, so they are measured first, on scenes of the validation
split: text question answering by type, retrieval, and what a linear probe reads from each image token.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import BartForConditionalGeneration, CLIPModel

from microworld.pretrain.bart import pretrain_bart
from microworld.pretrain.clip import pretrain_clip
from microworld.pretrain.measure import measure_bart, measure_clip

TEACHERS = Path(__file__).parents[1] / "teachers"


def report(seconds: dict[str, float]) -> str:
    """The text of `teachers/README.md`."""
    figures = measure_bart(TEACHERS / "bart") | measure_clip(TEACHERS / "clip", TEACHERS / "bart")
    lines = ["# The two teachers\n", "Printed by `python -m microworld.pretrain measure` on the validation split.\n"]
    for name, kind in (("clip", CLIPModel), ("bart", BartForConditionalGeneration)):
        parameters = sum(p.numel() for p in kind.from_pretrained(TEACHERS / name).parameters())
        size = (TEACHERS / name / "model.safetensors").stat().st_size
        cost = f", pretrained in {seconds[name] / 60:.0f} minutes on one CPU core" if name in seconds else ""
        lines.append(f"- `{name}`: {parameters:,} parameters, {size / 1e6:.1f} MB in fp16{cost}")
    lines += ["", "Linear R²: the share of a trait's variance that a linear map of a group's token explains."]
    lines += ["", "| figure | value | 95% interval | n |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {text} |" for name, text in figures.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "clip", "bart", "measure"), default="all")
    what = parser.parse_args().what
    torch.set_num_threads(1)  # models this small gain nothing from a second thread: run `clip` and `bart` side by side
    seconds = {}
    for name, pretrain in (("clip", pretrain_clip), ("bart", pretrain_bart)):
        if what in ("all", name):
            start = time.time()
            pretrain(TEACHERS / name)
            seconds[name] = time.time() - start
    if what in ("all", "measure"):
        text = report(seconds)
        print(text)
        (TEACHERS / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
