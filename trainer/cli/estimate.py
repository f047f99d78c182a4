"""`vlkd estimate`: estimate the cost of a training run."""

import argparse
import json
from typing import Any

from trainer.cli.train import ARGUMENTS
from trainer.cost.estimate import CAPTION_TOKENS, CC3M, estimate


def add_command(commands: Any) -> None:
    parser = commands.add_parser("estimate", dataclass_types=ARGUMENTS)
    parser.usage = "%(prog)s --device_flops X [--config FILE] [--option VALUE ...]"
    group = parser.add_argument_group("estimate")
    group.add_argument(
        "--device_flops", type=float, required=True, metavar="X", help="peak FLOP/s of the device, e.g. 989e12"
    )
    group.add_argument("--mfu", type=float, default=0.4, help="fraction of the peak that training achieves")
    group.add_argument(
        "--samples", type=int, default=CC3M, help="image-caption pairs; the default is the size of CC3M"
    )
    group.add_argument("--epochs", type=float, help="if unset, from max_steps, else num_train_epochs")
    group.add_argument(
        "--caption_tokens",
        type=int,
        default=CAPTION_TOKENS,
        help="tokens per caption; CC3M has 10.3 words per caption, plus <s>, </s> and words split into pieces",
    )
    group.add_argument("--json", action="store_true", help="print one JSON object, in FLOP, bytes and hours")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the estimate.

    Raises:
        ValueError: a number is out of range, or the config of a checkpoint cannot be read.
    """
    found = estimate(args)
    print(json.dumps(found, indent=1) if args.json else as_text(found))
    return 0


def as_text(found: dict[str, Any]) -> str:
    """The estimate as tables for a terminal."""
    s = found["settings"]
    lines = [
        f"{s['clip']} and {s['language_model']}: freeze {s['freeze']}, image_tokens {s['image_tokens']}, "
        f"image_projector {s['image_projector']}" + (f", lora_r {s['lora_r']}" if s["lora_r"] else "")
    ]
    lines += ["", f"{'Parameters':32}{'total':>15}{'trainable':>15}"]
    lines += [f"  {name:30}{n['total']:15,}{n['trainable']:15,}" for name, n in found["parameters"].items()]
    lines += ["", f"{'GB in training, float32':32}{sum(found['memory_bytes'].values()) / 1e9:15.2f}"]
    lines += [f"  {name:30}{size / 1e9:15.2f}" for name, size in found["memory_bytes"].items()]
    lines += ["", f"{'GFLOP per sample':32}{s['caption_tokens']:>15} tokens per caption"]
    lines += [f"  {name:30}{size / 1e9:15.3f}" for name, size in found["flops_per_sample"].items()]
    lines += ["", f"{'Feature cache, float16':32}{'kB per row':>15}{'GB in total':>15}"]
    lines += [f"  {name:30}{b['row'] / 1e3:15.1f}{b['all'] / 1e9:15.1f}" for name, b in found["cache_bytes"].items()]
    nominal = " (the size of CC3M)" if s["samples"] == CC3M else ""
    lines += ["", f"{s['samples']:,} samples{nominal} × {s['epochs']:g} epochs on one device of"]
    speed = f"{s['device_flops'] / 1e12:g} TFLOP/s × {s['mfu']:g}"
    lines += [f"{speed:32}{'EFLOP':>15}{'hours':>15}{'samples/s':>15}"]
    chosen = "live" if s["cache_image_features"] == "none" else "cached"
    for name, c in found["cost"].items():
        label = f"image features {name}" + (" (recipe)" if name == chosen else "")
        hours = f"{c['hours']:,.0f}" if c["hours"] >= 100 else f"{c['hours']:.3g}"
        columns = f"{c['flops'] / 1e18:15.4g}{hours:>15}{c['samples_per_second']:15,.0f}"
        lines.append(f"  {label:30}{columns}")
    return "\n".join(lines)
