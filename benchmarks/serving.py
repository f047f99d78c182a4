"""The server of examples/serve.py: images per second and waiting times, by the number of clients.

    python benchmarks/serving.py --model demo_output/model

Each client sends its next photo when it has the caption of the last one. Clients and server share the machine.
"""

import socket
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

import httpx
from measure import ROOT, parser, report, resident_bytes, save_photos

WAITS = 8  # of the first connection, for the server's start: 0, 0.5, 1, 2, ... seconds


def measure(url: str, photos: list[bytes], clients: int) -> dict[str, Any]:
    """Send each photo once."""

    def send(photo: bytes) -> float:
        start = time.perf_counter()
        client.post(url, files={"image": photo}).raise_for_status()
        return time.perf_counter() - start

    limits = httpx.Limits(max_connections=clients)
    transport = httpx.HTTPTransport(retries=WAITS, limits=limits)
    with httpx.Client(transport=transport, timeout=300) as client, ThreadPoolExecutor(clients) as pool:
        send(photos[0])
        start = time.perf_counter()
        seconds = list(pool.map(send, photos))
        speed = len(photos) / (time.perf_counter() - start)
    return {"clients": clients, "images/s": speed, "ms, median": 1e3 * median(seconds), "ms, most": 1e3 * max(seconds)}


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--model", default="demo_output/model")
    options.add_argument("--photos", type=int, default=300)
    options.add_argument("--size", type=int, nargs=2, default=(640, 480), help="width and height of the photos")
    options.add_argument("--clients", type=int, nargs="+", default=[1, 8, 50])
    options.add_argument("--max_batches", type=int, nargs="+", default=[1, 16], help="--max_batch of the server")
    args = options.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="vlkd-benchmark-"))
    save_photos(folder / "photos", args.photos, tuple(args.size))
    photos = [file.read_bytes() for file in sorted((folder / "photos").glob("*.jpg"))]
    rows = []
    for batch in args.max_batches:
        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        command = [sys.executable, str(ROOT / "examples" / "serve.py"), "--model", args.model, "--port", str(port)]
        command += ["--max_batch", str(batch), "--device", "cpu"]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:
            for clients in args.clients:
                row = measure(f"http://127.0.0.1:{port}/", photos, clients)
                rows.append({"max_batch": batch, **row, "RAM, MB": resident_bytes(server.pid) / 1e6})
            server.terminate()
    report("serving", rows, args.into)


if __name__ == "__main__":
    main()
