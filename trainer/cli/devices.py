"""--device, --dtype and --backend of the commands that run a model."""

import argparse

import torch

from trainer.inference.backends import is_export
from trainer.precision import DTYPES, find_device, read_dtype

DEVICES = ("auto", "cpu", "cuda", "mps")
BACKENDS = ("torch", "onnx", "onnx-int8")


def add_device_options(parser: argparse.ArgumentParser) -> None:
    """Add --device and --dtype, which `read_device_options` reads, and --backend."""
    parser.add_argument(
        "--backend",
        choices=BACKENDS,
        help="torch (the default); onnx: ONNX Runtime, often faster on a CPU; onnx-int8: faster, with rounded weights",
    )
    parser.add_argument("--device", choices=DEVICES, default="auto", help="auto: the GPU, if there is one")
    parser.add_argument(
        "--dtype", choices=DTYPES, default="auto", help="auto: bfloat16 where the device is fast at it, else float32"
    )


def read_device_options(args: argparse.Namespace) -> tuple[torch.device, torch.dtype]:
    """The chosen device and dtype. With `auto`, a model as small as the microworld's may be faster in float32.

    Raises:
        ValueError: PyTorch does not find the device, or the backend or export does not support the device or dtype.
    """
    on_cpu = args.device in ("auto", "cpu") and args.dtype in ("auto", "float32")
    own = "runs on the CPU, with its own dtype; omit --device and --dtype"
    if args.backend not in (None, "torch"):
        if not on_cpu:
            raise ValueError(f"--backend {args.backend} {own}.")
        return torch.device("cpu"), torch.float32
    if not on_cpu and args.model and is_export(args.model):
        raise ValueError(f"'{args.model}' is an export; it {own}.")
    device = find_device(args.device)
    return device, read_dtype(args.dtype, device)
