"""Inference with a small model: a folder of photos, questions about images, and the first caption from the shell.

    python benchmarks/inference.py --model demo_output/model

With a model as small as the microworld's, reading and preprocessing photos takes most of the time. The folder and the
questions are measured in one process, after imports; the shell's command includes them.
"""

import argparse
import io
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

from measure import parser, report, save_photos
from transformers import pipeline

from trainer.cli import main as vlkd

QUESTIONS = [f"how many {thing} are there?" for thing in ("dogs", "cats", "cars", "trees", "bees")] * 2


def timed(run: Callable[[], Any]) -> float:
    """The seconds of a call, after one call that warms up."""
    run()
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def caption(model: str, folder: Path, backend: str) -> None:
    """`vlkd caption` in this process.

    Raises:
        RuntimeError: it failed.
    """
    with redirect_stdout(io.StringIO()):
        if vlkd(["caption", str(folder), "--model", model, "--backend", backend, "--device", "cpu"]):
            raise RuntimeError("vlkd caption failed")


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--model", default="demo_output/model")
    options.add_argument("--backends", nargs="+", default=["torch", "onnx", "onnx-int8"])
    options.add_argument("--photos", type=int, default=300)
    options.add_argument("--size", type=int, nargs=2, default=(1600, 1200), help="width and height of the photos")
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlkd-benchmark-") as folder:
        report("inference", measure(args, Path(folder)), args.into)


def measure(args: argparse.Namespace, folder: Path) -> list[dict[str, Any]]:
    save_photos(folder / "photos", args.photos, tuple(args.size))
    rows = []
    for backend in args.backends:
        seconds = timed(lambda backend=backend: caption(args.model, folder / "photos", backend))
        rows.append({"run": f"`vlkd caption`, {args.photos} photos, {backend}", "images": args.photos, "s": seconds})
    answer = pipeline("visual-question-answering", model=args.model, device="cpu")
    images = [str(folder / "photos" / f"{number}.jpg") for number in range(min(20, args.photos))]
    for questions in (QUESTIONS[:1], QUESTIONS):
        seconds = timed(lambda questions=questions: [answer(image, questions) for image in images])
        rows.append({"run": f"pipeline, {len(questions)} questions an image", "images": len(images), "s": seconds})
    command = [sys.executable, "-m", "trainer.cli", "caption", images[0], "--model", args.model]
    first = timed(lambda: subprocess.run(command, check=True, stdout=subprocess.DEVNULL))
    rows.append({"run": "`vlkd caption one.jpg` from the shell", "images": 1, "s": first})
    for row in rows:
        row["images/s"] = row["images"] / row["s"]
    return rows


if __name__ == "__main__":
    main()
