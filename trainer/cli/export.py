"""`vlkd export`: write a model for ONNX Runtime or OpenVINO."""

import argparse
from pathlib import Path
from typing import Any

from trainer.inference.backends import write_export
from trainer.models import load_vlkd


def add_command(commands: Any) -> None:
    parser = commands.add_parser("export")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
    parser.add_argument("--output", required=True, metavar="DIR", help="new folder for the export")
    parser.add_argument("--format", choices=("onnx", "openvino"), default="onnx", help="runtime of the export")
    parser.add_argument("--precision", choices=("fp32", "int8"), default="fp32", help="int8: with 8-bit weights")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Export, and print the files.

    Raises:
        ValueError: the model cannot be loaded, or the folder is not empty.
    """
    folder = Path(args.output)
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise ValueError(f"--output {folder} exists. Give a new folder.")
    folder.parent.mkdir(parents=True, exist_ok=True)
    model, processor = load_vlkd(args.model, "--model")
    write_export(model, processor, folder, args.precision, args.format)
    for file in sorted(folder.iterdir()):
        if file.suffix in (".onnx", ".data", ".xml", ".bin"):
            print(f"{file.stat().st_size / 1e6:10,.1f} MB  {file}")
    return 0
