"""`python -m microworld.pretrain [clip|bart|measure]`: train the microworld's CLIP and BART, and measure them.

They are measured on the validation split: text QA by type, retrieval, and what linear maps read from image tokens.
"""

import argparse
import time
from pathlib import Path

import torch
from transformers import BartForConditionalGeneration, CLIPModel

from microworld.pretrain.bart import pretrain_bart
from microworld.pretrain.clip import pretrain_clip
from microworld.pretrain.measure import measure_bart, measure_clip


def report(folder: Path, seconds: dict[str, float]) -> str:
    """The text of README.md in the folder of both models."""
    figures = measure_bart(folder / "bart") | measure_clip(folder / "clip", folder / "bart")
    command = f"python -m microworld.pretrain measure --output_dir {folder}"
    lines = ["# The microworld's CLIP and BART\n", f"Printed by `{command}` on the validation split.\n"]
    for name, kind in (("clip", CLIPModel), ("bart", BartForConditionalGeneration)):
        parameters = sum(p.numel() for p in kind.from_pretrained(folder / name).parameters())
        size = (folder / name / "model.safetensors").stat().st_size
        cost = f", pretrained in {seconds[name] / 60:.0f} minutes on one CPU core" if name in seconds else ""
        lines.append(f"- `{name}`: {parameters:,} parameters, {size / 1e6:.1f} MB in fp16{cost}")
    lines += ["", "Linear R² is the share of a trait's variance that a linear map of one image token explains.", ""]
    lines += ["| figure | value | 95% interval | n |", "| --- | ---: | ---: | ---: |"]
    return "\n".join([*lines, *(f"| {name} | {text} |" for name, text in figures.items())]) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", nargs="?", choices=("all", "clip", "bart", "measure"), default="all")
    parser.add_argument("--output_dir", type=Path, default=Path("outputs/teachers"), help="folder to write to")
    args = parser.parse_args()
    what, folder = args.what, args.output_dir
    torch.set_num_threads(1)  # models this small gain nothing from a second thread: run `clip` and `bart` side by side
    seconds = {}
    for name, pretrain in (("clip", pretrain_clip), ("bart", pretrain_bart)):
        if what in ("all", name):
            start = time.time()
            pretrain(folder / name)
            seconds[name] = time.time() - start
    if what in ("all", "measure"):
        text = report(folder, seconds)
        print(text)
        (folder / "README.md").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
