"""examples/serve.py: a real server with 50 concurrent clients, its limits and its memory; and how it makes batches."""

import asyncio
import io
import os
import re
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import psutil
import pytest
import serve
import torch
from PIL import Image

ROOT = Path(__file__).parents[2]
CLIENTS, NEW_TOKENS = 50, 8
QUESTIONS = [None, "how many?", "what color is the circle?", "two dogs or one cat?", ""]


@pytest.fixture(scope="module")
def server(vlkd_dir) -> Iterator[tuple[str, psutil.Process]]:
    """The address and the process of a server of the tiny model."""
    command = [sys.executable, str(ROOT / "examples" / "serve.py"), "--model", vlkd_dir, "--port", "0"]
    command += ["--max_new_tokens", str(NEW_TOKENS), "--max_connections", str(CLIENTS + 14), "--dtype", "float32"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL) as process:
        lines = []
        for line in process.stderr:
            lines.append(line.decode())
            if found := re.search(r"running on (http://[\d.:]+)", lines[-1]):
                break
        else:
            pytest.fail("".join(lines))
        threading.Thread(target=process.stderr.read, daemon=True).start()
        yield found[1], psutil.Process(process.pid)
        process.terminate()
    assert process.returncode in (0, -15)


def photo(number: int) -> bytes:
    """A PNG of noise, another for each number."""
    pixels = torch.randint(0, 256, (40, 48, 3), generator=torch.Generator().manual_seed(number), dtype=torch.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels.numpy()).save(file, "PNG")
    return file.getvalue()


@torch.no_grad()
def alone(model, processor, data: bytes, question: str | None) -> dict[str, str]:
    """The response for one image, by the model without a batch."""
    text = processor.build_vqa_prompt(question) if question else None
    inputs = processor(images=Image.open(io.BytesIO(data)), text=text)
    ids = model.generate(**inputs, max_new_tokens=NEW_TOKENS)
    (found,) = processor.post_process_generation(ids, inputs["input_ids"], first_sentence=bool(question))
    return {"answer" if question else "caption": found}


def post(client: httpx.Client, data: bytes, question: str | None = None) -> httpx.Response:
    return client.post("/", files={"image": data}, data={} if question is None else {"question": question})


def test_concurrent_clients_get_their_own_answers(server, model, processor):
    """One client in ten sends what is not an image. The rest each get what the model says alone."""
    jobs = [(photo(number), QUESTIONS[number % 5]) for number in range(CLIENTS)]
    expected = [alone(model, processor, *job) for job in jobs]
    assert len({str(response) for response in expected}) > CLIENTS / 2
    barrier = threading.Barrier(CLIENTS)

    def ask(number: int) -> None:
        data, question = jobs[number]
        broken = number % 10 == 3
        with httpx.Client(base_url=server[0], timeout=60, trust_env=False) as client:
            barrier.wait()
            response = post(client, data[:60] if broken else data, question)
        if broken:
            assert response.status_code == 400
            assert response.json()["detail"].startswith("The image cannot be read: ")
        else:
            assert response.status_code == 200 and response.json() == expected[number]

    with ThreadPoolExecutor(CLIENTS) as pool:
        list(pool.map(ask, range(CLIENTS)))


def test_limits(server):
    """Large uploads, long questions and connections above the limit are refused, and the server goes on."""
    address, port = server[0], int(server[0].rpartition(":")[2])
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        assert post(client, bytes(serve.MAX_UPLOAD)).status_code == 413
        response = post(client, photo(0), "what is it? " * 20)
        assert response.status_code == 400 and "question" in response.json()["detail"]
        response = post(client, photo(0), "a" * 1001)
        assert response.status_code == 400 and "has 1001 characters; 1000 are allowed" in response.json()["detail"]
        response = client.post("/", data={"question": "what is it?"})
        assert response.status_code == 422 and "image" in response.text
        file = io.BytesIO()
        Image.new("1", (8000, 8000)).save(file, "PNG")  # 64 megapixels in a few kB
        response = post(client, file.getvalue())
        assert response.status_code == 400 and "exceeds limit" in response.json()["detail"]
        file = io.BytesIO()
        Image.new("RGB", (40, 40)).save(file, "EPS")
        response = post(client, file.getvalue())
        assert response.status_code == 400 and "it is an EPS file" in response.json()["detail"]
    others = [socket.create_connection(("127.0.0.1", port)) for _ in range(CLIENTS + 14)]
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        assert post(client, photo(0)).status_code == 503
    for connection in others:
        connection.close()
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client:
        assert post(client, photo(0)).status_code == 200


def test_memory_does_not_grow(server):
    address, process = server
    with httpx.Client(base_url=address, timeout=60, trust_env=False) as client, ThreadPoolExecutor(8) as pool:
        sizes = []
        for _ in range(3):
            responses = pool.map(lambda number: post(client, photo(number)).status_code, range(100))
            assert set(responses) == {200}
            sizes.append(process.memory_info().rss)
    assert sizes[2] - sizes[1] < 10 * 2**20


@pytest.mark.parametrize("limit", [16, 1])
def test_requests_that_wait_share_a_call(limit, model, processor, monkeypatch):
    """50 requests take few calls of the model, of `max_batch` images at most. Without memory for more than `limit`
    images, each request of a failed batch is done alone, with the same results."""
    jobs = [(photo(number), QUESTIONS[number % 5]) for number in range(CLIENTS)]
    expected = [alone(model, processor, *job) for job in jobs]
    sizes, generate = [], model.generate

    def counted(**inputs):
        sizes.append(len(inputs["pixel_values"]))
        if sizes[-1] > limit:
            raise torch.OutOfMemoryError
        return generate(**inputs)

    monkeypatch.setattr(model, "generate", counted)
    app = serve.build_app(model, processor, 16, NEW_TOKENS)

    async def ask_all() -> list[httpx.Response]:
        transport = httpx.ASGITransport(app)
        async with (
            app.router.lifespan_context(app),
            httpx.AsyncClient(transport=transport, base_url="http://v") as client,
        ):
            return await asyncio.gather(*(post(client, *job) for job in jobs))

    responses = asyncio.run(ask_all())
    assert [response.json() for response in responses] == expected
    assert max(sizes) <= 16 and sum(size for size in sizes if size <= limit) == CLIENTS
    assert len(sizes) < CLIENTS / 2 if limit == 16 else max(sizes) > 1
