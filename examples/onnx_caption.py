"""Caption an image with an export, without PyTorch and transformers: a model for ports to other languages.

    vlkd export --model demo_output/model --output my_export
    pip install numpy onnxruntime pillow tokenizers
    python examples/onnx_caption.py my_export photo.png
    python examples/onnx_caption.py my_export photo.png "Question: how many cars are there? Answer: <mask>"

docs/export.md explains the five programs.
"""

import json
import re
import sys
from pathlib import Path

import numpy as np
import onnxruntime
from PIL import Image, ImageOps
from tokenizers import Tokenizer

PROGRAMS = ("image_encoder", "image_projection", "text_encoder", "memory_projection", "decoder")
MAX_NEW_TOKENS = 40


def preprocess(image: Image.Image, settings: dict) -> np.ndarray:
    """Pixel values, (1, 3, size, size): the shorter side is scaled to `size`, and the middle is cropped."""
    image, size = ImageOps.exif_transpose(image), settings["crop_size"]["height"]
    if image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    scale = settings["size"]["shortest_edge"] / min(image.size)
    width, height = (int(side * scale) for side in image.size)
    image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    pixels = np.asarray(image.crop((left, top, left + size, top + size)), dtype=np.float32) / 255
    pixels = (pixels - np.array(settings["image_mean"])) / np.array(settings["image_std"])
    return pixels.transpose(2, 0, 1)[None].astype(np.float32)


def main(folder: str, image: str, prompt: str = "<mask>") -> str:
    """The text that the model writes for the mask of the prompt."""
    files = Path(folder)
    sessions = {name: onnxruntime.InferenceSession(files / f"{name}.onnx") for name in PROGRAMS}
    settings = json.loads((files / "processor_config.json").read_text())["image_processor"]
    ids = json.loads((files / "generation_config.json").read_text())
    tokenizer = Tokenizer.from_file(str(files / "tokenizer.json"))

    def run(program: str, **inputs: np.ndarray) -> list[np.ndarray]:
        return sessions[program].run(None, inputs)

    # What the decoder attends to: the image tokens, then the prompt.
    (image_features,) = run("image_encoder", pixel_values=preprocess(Image.open(image), settings))
    (image_states,) = run("image_projection", image_features=image_features)
    prompt_ids = tokenizer.encode(prompt).ids
    input_ids = np.array([prompt_ids])
    text_states, _ = run("text_encoder", input_ids=input_ids, attention_mask=np.ones_like(input_ids))
    memory = np.concatenate([image_states, text_states], axis=1)
    cross = run("memory_projection", memory=memory)
    constant = {f"cross.{number}": states for number, states in enumerate(cross)}
    constant["memory_mask"] = np.ones(memory.shape[:2], dtype=np.int64)

    # The decoder starts with the part of the prompt before the mask, and takes the most probable token at each step.
    past = [np.zeros_like(states[:, :, :0]) for states in cross]
    before = prompt_ids[: prompt_ids.index(tokenizer.token_to_id("<mask>"))]
    tokens, written = [ids["decoder_start_token_id"], *before], []
    while len(written) < MAX_NEW_TOKENS:
        keys_and_values = {f"past.{number}": states for number, states in enumerate(past)}
        logits, *new = run("decoder", decoder_input_ids=np.array([tokens]), **keys_and_values, **constant)
        past = [np.concatenate(pair, axis=2) for pair in zip(past, new, strict=True)]
        tokens = [int(logits[0, -1].argmax())]
        if tokens[0] == ids["eos_token_id"]:
            break
        written += tokens
    text = tokenizer.decode(written).strip()
    return text if prompt == "<mask>" else re.split(r"[.!?](?:\s|$)", text)[0]  # of an answer, the first sentence


if __name__ == "__main__":
    if len(sys.argv) not in (3, 4) or "<mask>" not in [*sys.argv[3:], "<mask>"][0]:
        sys.exit(__doc__)
    print(main(*sys.argv[1:]))
