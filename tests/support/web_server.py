"""A web server on loopback, whose pages misbehave on demand."""

import threading
import time
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class WebServer:
    """
    `server.add(path, page)` gives the URL of a page: its bytes, or a function that answers with the request's handler.
    """

    def __init__(self):
        self.pages: dict[str, bytes | Callable[[BaseHTTPRequestHandler], None]] = {}
        pages = self.pages

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                page = pages.get(self.path)
                if page is None:
                    self.send_error(404)
                elif callable(page):
                    page(self)
                else:
                    start(self, length=len(page))
                    self.wfile.write(page)

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.block_on_close = False

    def __enter__(self) -> "WebServer":
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.server.shutdown()
        self.server.server_close()

    def add(self, path: str, page: bytes | Callable[[BaseHTTPRequestHandler], None]) -> str:
        self.pages[path] = page
        return f"http://127.0.0.1:{self.server.server_port}{path}"


def start(handler: BaseHTTPRequestHandler, length: int | None = None, status: int = 200, **headers: str) -> None:
    handler.send_response(status)
    for name, value in {**headers, **({} if length is None else {"Content-Length": str(length)})}.items():
        handler.send_header(name, value)
    handler.end_headers()


def silence(handler: BaseHTTPRequestHandler) -> None:
    """Not a word."""
    time.sleep(30)


def drip(handler: BaseHTTPRequestHandler) -> None:
    """A byte now and then, so that no single wait is long."""
    start(handler, length=10**6)
    for _ in range(600):
        handler.wfile.write(b".")
        time.sleep(0.05)


def flood(handler: BaseHTTPRequestHandler) -> None:
    """No end, and no word of how much."""
    start(handler)
    while True:
        handler.wfile.write(b"." * 2**16)
