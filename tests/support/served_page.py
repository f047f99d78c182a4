"""The page of `vlkd demo` in a test: its port, and what it should answer."""

import math
import socket
import subprocess
import time
from pathlib import Path

import torch
from gradio_client import Client, handle_file
from PIL import Image

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor


def free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return server.getsockname()[1]


def wait_for(port: int, process: subprocess.Popen, seconds: float = 120) -> None:
    """Wait until a process listens on a port."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert process.poll() is None, f"the process ended with code {process.returncode}"
        with socket.socket() as client:
            if client.connect_ex(("127.0.0.1", port)) == 0:
                return
        time.sleep(0.2)
    raise TimeoutError(f"nothing listens on port {port}")


def caption_of(client: Client, file: Path) -> str:
    return client.predict(handle_file(file), api_name="/caption")["label"]


@torch.no_grad()
def written(
    model: VLKDForConditionalGeneration, processor: VLKDProcessor, image: Image.Image, question: str | None = None
) -> tuple[str, float]:
    """The caption or answer, and its confidence, from one forward pass over the finished text."""
    prompt = processor.build_prompt() if question is None else processor.build_vqa_prompt(question)
    inputs = processor(images=image, text=prompt)
    ids = model.generate(**inputs, max_new_tokens=40)
    start = len(model.decoder_prompt_ids(inputs["input_ids"])[0])
    text = processor.post_process_generation(ids, inputs["input_ids"], first_sentence=question is not None)[0]
    count, so_far = 0, ""  # tokens until the decoded text has all of `text`
    while not so_far.strip().startswith(text):
        count += 1
        so_far = processor.tokenizer.decode(ids[0, start : start + count], skip_special_tokens=True)
    log_probs = model(**inputs, decoder_input_ids=ids[:, :-1]).logits[0].log_softmax(-1)
    chosen = [log_probs[at - 1, ids[0, at]].item() for at in range(start, start + max(1, count))]
    return text, math.exp(sum(chosen) / len(chosen))
