"""
Serves a VLKD model over HTTP: captions and answers as JSON. Requests that wait at the same time share one `generate`.

    python examples/serve.py --model demo_output/model
    curl -F image=@photo.jpg http://127.0.0.1:8000/
    curl -F image=@photo.jpg -F 'question=what is in the picture?' http://127.0.0.1:8000/
"""

import argparse
import asyncio
from collections.abc import AsyncIterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from typing import Annotated

import torch
import uvicorn
from fastapi import FastAPI, Form, HTTPException, UploadFile
from PIL import Image
from transformers import PreTrainedModel

from modeling_vlkd.image_loading_vlkd import read_image
from modeling_vlkd.processing_vlkd import first_sentence_of
from trainer.cli.devices import add_device_options, read_device_options
from trainer.image_loader import min_jpeg_side
from trainer.inference.backends import load_for_inference
from vlkd import VLKDProcessor

MAX_UPLOAD = 16 * 2**20  # bytes of a request
MAX_PIXELS = 25_000_000  # of an image, before Pillow warns; it refuses twice as many
MAX_LETTERS = 1000  # of a question
READERS = 2  # images that are decoded at a time


@torch.inference_mode()
def generate(
    model: PreTrainedModel, processor: VLKDProcessor, max_new_tokens: int, batch: Sequence[tuple[torch.Tensor, str]]
) -> list[str | Exception]:
    """The text for each pair of pixel values and prompt. If a batch fails, each pair gets its own text or error."""
    pixel_values, prompts = zip(*batch, strict=True)
    try:
        inputs = processor.encode_prompts(list(prompts), len(prompts)).to(model.device)
        pixels = torch.cat(pixel_values).to(model.device, model.dtype)
        ids = model.generate(**inputs, pixel_values=pixels, max_new_tokens=max_new_tokens)
        return processor.post_process_generation(ids, inputs["input_ids"])
    except Exception as error:
        if len(batch) == 1:
            return [error]
    return [text for one in batch for text in generate(model, processor, max_new_tokens, [one])]


def build_app(model: PreTrainedModel, processor: VLKDProcessor, max_batch: int, max_new_tokens: int) -> FastAPI:
    """The application: one endpoint, and one task that runs the model on the requests that wait."""
    waiting: asyncio.Queue[tuple[tuple[torch.Tensor, str], asyncio.Future]] = asyncio.Queue()
    readers = ThreadPoolExecutor(READERS)
    min_side = min_jpeg_side(processor)

    async def answer_batches() -> None:
        while True:
            batch = [await waiting.get()]
            while len(batch) < max_batch and not waiting.empty():
                batch.append(waiting.get_nowait())
            inputs, futures = zip(*batch, strict=True)
            texts = await asyncio.to_thread(generate, model, processor, max_new_tokens, inputs)
            for future, text in zip(futures, texts, strict=True):
                if not future.done():  # else the client has left
                    future.set_exception(text) if isinstance(text, Exception) else future.set_result(text)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(answer_batches())
        yield
        task.cancel()

    def read(data: bytes) -> torch.Tensor:
        try:
            image = read_image(data, min_side=min_side)
        except ValueError as error:
            raise HTTPException(400, f"The image cannot be read: {error.__cause__}.") from error
        return processor.image_processor(image, return_tensors="pt")["pixel_values"]

    def build_prompt(question: str | None) -> str:
        if question and len(question) > MAX_LETTERS:  # a long one would keep the tokenizer busy
            raise HTTPException(400, f"The question has {len(question)} characters; {MAX_LETTERS} are allowed.")
        try:
            prompt = processor.build_vqa_prompt(question) if question else processor.build_prompt()
            tokens = processor.encode_prompts(prompt, 1)["input_ids"].shape[1]
        except ValueError as error:
            raise HTTPException(400, f"The question cannot be used: {error}") from error
        if tokens > (limit := processor.tokenizer.model_max_length - max_new_tokens):
            raise HTTPException(400, f"The question has {tokens} tokens with its prompt; {limit} are allowed.")
        return prompt

    app = FastAPI(title="VLKD", lifespan=lifespan, max_body_size=MAX_UPLOAD)

    @app.post("/")
    async def describe(image: UploadFile, question: Annotated[str | None, Form()] = None) -> dict[str, str]:
        """Caption the image, or answer the question about it."""
        prompt, loop = build_prompt(question), asyncio.get_running_loop()
        pixels = await loop.run_in_executor(readers, read, await image.read())
        future = loop.create_future()
        waiting.put_nowait(((pixels, prompt), future))
        text = await future
        return {"answer": first_sentence_of(text)} if question else {"caption": text}

    return app


def refuse_eps(*file: object) -> Image.Image:
    """Opens EPS files in place of Pillow, which would run them in Ghostscript."""
    raise ValueError("it is an EPS file; send JPEG or PNG")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="Hub name or folder of a VLKD model")
    parser.add_argument("--host", default="127.0.0.1", help="0.0.0.0 accepts requests from other machines")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--max_batch", type=int, default=16, help="maximum number of images in one `generate`")
    parser.add_argument("--max_connections", type=int, default=128, help="more get the status 503")
    parser.add_argument("--max_new_tokens", type=int, default=40, help="maximum number of generated tokens")
    add_device_options(parser)
    args = parser.parse_args()
    model, processor = load_for_inference(args.model, "--model", *read_device_options(args), args.backend)
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS
    Image.init()
    Image.register_open("EPS", refuse_eps, Image.OPEN["EPS"][1])
    app = build_app(model.eval(), processor, args.max_batch, args.max_new_tokens)
    uvicorn.run(app, host=args.host, port=args.port, limit_concurrency=args.max_connections)


if __name__ == "__main__":
    main()
