"""`python -m microworld.pretrain [clip|bart|measure]`: train the microworld's CLIP and BART, and measure them.

They are measured on the validation split: text QA by type, retrieval, and what linear maps read from image tokens.
"""

import argparse
from pathlib import Path

import torch
from transformers import BartForConditionalGeneration, CLIPModel

from microworld.pretrain.bart import pretrain_bart
from microworld.pretrain.clip import pretrain_clip
from microworld.pretrain.measure import measure_bart, measure_clip
from trainer.evaluation.metrics_file import how_measured, measurement_environment


def report(folder: Path) -> str:
    """The text of README.md in the folder of both models."""
    figures = measure_bart(folder / "bart") | measure_clip(folder / "clip", folder / "bart")
    measured = {"command": f"python -m microworld.pretrain measure --output_dir {folder}", **measurement_environment()}
    lines = ["# The microworld's CLIP and BART\n", "docs/method.md has their pretraining, its cost and the machine."]
    lines += [f"The figures are those of the validation split. {how_measured(measured)}\n"]
    for name, kind in (("clip", CLIPModel), ("bart", BartForConditionalGeneration)):
        parameters = kind.from_pretrained(folder / name).num_parameters()
        megabytes = (folder / name / "model.safetensors").stat().st_size / 1e6
        lines.append(f"- `{name}`: {parameters:,} parameters, {megabytes:.1f} MB in fp16")
    lines += ["", "Linear R² is the share of a trait's variance that a linear map of one image token explains.", ""]
    lines += ["| figure | value | 95% interval | n |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {text} |" for name, text in figures.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "clip", "bart", "measure"), default="all")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/teachers"), help="folder to write to")
    args = parser.parse_args()
    torch.set_num_threads(1)  # models this small gain nothing from a second thread: run `clip` and `bart` side by side
    for name, pretrain in (("clip", pretrain_clip), ("bart", pretrain_bart)):
        if args.what in ("all", name):
            pretrain(args.output_dir / name)
    if args.what in ("all", "measure"):
        text = report(args.output_dir)
        print(text)
        (args.output_dir / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
