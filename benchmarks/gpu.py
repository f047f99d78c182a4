"""All measurements on a GPU in one command: captioning beside other models, and training live and cached.

    python benchmarks/gpu.py --into benchmarks/README.md
    python benchmarks/gpu.py --small       # checks the command on a CPU, in minutes

Each part is a command of its own, which is printed first.
"""

import argparse
import shlex
import subprocess
import sys
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parents[1]
PEAK = {
    "H100 PCIe": 756e12,
    "H100": 989e12,
    "H200": 989e12,
    "A100": 312e12,
    "L40S": 362e12,
    "4090": 165e12,
}  # dense bf16, from data sheets
PEERS = ["VLKD ViT-B/16 + BART-base", "VLKD ViT-L/14 + BART-large", "GIT-base", "BLIP-base", "Florence-2-base"]
LARGE = "vlkd-vit-large-patch14-bart-large"


def commands(small: bool) -> list[list[str]]:
    """The benchmarks with their options."""
    if small:
        captions = ["--models", *PEERS[:1], "GIT-base", "--batches", "1", "2", "--rounds", "1"]
        training = ["--models", "microworld", "--batch", "8", "--steps", "2", "--workers", "1"]
    else:
        captions = ["--models", *PEERS, "--batches", "1", "64", "--device", "cuda", "--dtype", "bfloat16"]
        training = ["--models", LARGE, "--batch", "128", "--steps", "20"]
        peak = next((value for name, value in PEAK.items() if name in torch.cuda.get_device_name()), None)
        training += [] if peak is None else ["--device_flops", str(peak)]
    return [
        ["captioning.py", *captions, "--name", "captioning-gpu"],
        ["throughput.py", *training, "--name", "throughput-gpu"],
    ]


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    options.add_argument("--small", action="store_true", help="tiny sizes, also on a CPU")
    options.add_argument("--into", metavar="FILE.md", help="write the tables between their marks in the file")
    args = options.parse_args()
    if not args.small and not torch.cuda.is_available():
        options.error("PyTorch finds no CUDA device; --small checks the command on a CPU.")
    for name, *words in commands(args.small):
        words += [] if args.into is None else ["--into", str(Path(args.into).resolve())]
        print("python benchmarks/" + shlex.join([name, *words]), flush=True)
        subprocess.run([sys.executable, f"benchmarks/{name}", *words], check=True, cwd=ROOT)


if __name__ == "__main__":
    main()
