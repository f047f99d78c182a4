"""`vlkd env`: versions and devices, as Markdown for bug reports."""

import argparse
import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = (
    *("torch", "transformers", "huggingface_hub", "pillow", "accelerate", "datasets", "peft", "torchdata"),
    *("evaluate", "pycocoevalcap", "scipy", "onnxruntime", "openvino", "gradio", "faiss-cpu"),
)


def add_command(commands: Any) -> None:
    commands.add_parser("env").set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Print the environment."""
    from trainer.precision import fastest_dtype, find_device  # imports torch, which `vlkd --version` does not need

    device = find_device()
    lines = {
        "vlkd": installed_version("vlkd"),
        "Platform": platform.platform(),
        "Python": platform.python_version(),
        **{name: installed_version(name) for name in PACKAGES},
        "Device": device.type,
        "Precision chosen by --dtype auto": str(fastest_dtype(device)).removeprefix("torch."),
    }
    print("\n".join(f"- {name}: {value}" for name, value in lines.items()))
    return 0


def installed_version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
