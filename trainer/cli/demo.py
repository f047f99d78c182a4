"""`vlkd demo`: a web page that captions images, answers questions about them, and compares texts with them."""

import argparse
import os
import pkgutil
from pathlib import Path
from typing import Any

from PIL import Image

from trainer.cli.images import find_images
from trainer.inference.demo_page import launch
from trainer.models import load_vlkd
from trainer.precision import fastest_dtype, find_device

MICROWORLD = "microworld.dataset:load"
EXAMPLES = 10  # of the microworld


def add_command(commands: Any) -> None:
    parser = commands.add_parser("demo")
    parser.add_argument("--model", required=True, metavar="DIR", help="folder or Hub name of a VLKD checkpoint")
    parser.add_argument("--examples", metavar="FOLDER", help="example images; the microworld's model has its own")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0: the whole network")
    parser.add_argument("--port", type=int, help="port to listen on; if unset, the first free one from 7860 on")
    parser.add_argument("--share", action="store_true", help="make a public link for a week, through Gradio's servers")
    parser.set_defaults(run=run)


def run(args: argparse.Namespace) -> int:
    """Serve the page until Ctrl-C.

    Raises:
        ValueError: the model cannot be loaded, the folder has no images, or the port is in use.
    """
    examples = find_examples(args.examples, args.model)
    device = find_device("auto")
    model, processor = load_vlkd(args.model, "--model", device, fastest_dtype(device))
    name = Path(args.model).name if os.path.isabs(args.model) else args.model  # visitors see no path of this machine
    server = {"server_name": args.host, "server_port": args.port, "share": args.share}
    try:
        page = launch(model.eval(), processor, name, examples, **server, quiet=True, prevent_thread_lock=True)
    except OSError as error:
        if "Cannot find empty port" not in str(error):
            raise
        where = f"--host {args.host} --port {args.port or '7860 to 7959'}"
        raise ValueError(f"{where}: cannot listen there; the port may be in use. Choose another.") from error
    print(f"{page.local_url} (Ctrl-C ends the page)", flush=True)
    page.block_thread()
    return 0


def find_examples(folder: str | None, model: str) -> list[Path] | list[Image.Image]:
    """The images of a folder. Without one, test images of the microworld for a model that was trained on it.

    Raises:
        ValueError: `folder` has no images.
    """
    if folder is not None:
        found = find_images(folder)[0] if os.path.isdir(folder) else []
        if not found:
            raise ValueError(f"--examples {folder}: no images found; give a folder of images.")
        return found
    recipe = Path(model, "train.yaml")
    if not recipe.is_file() or MICROWORLD not in recipe.read_text(encoding="utf-8"):
        return []
    try:
        load = pkgutil.resolve_name(MICROWORLD)
    except ImportError:  # without the extra "microworld"
        return []
    return load("test", size=EXAMPLES)["image"][:]
