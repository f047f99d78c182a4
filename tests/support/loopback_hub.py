"""A Hub on this machine, over real HTTP: the calls by which `huggingface_hub` and `datasets` push, load and stream.

A process that uses it needs `Hub.environment()` before it imports huggingface_hub. Repositories are models by their
names, datasets by `datasets/NAME`, and Spaces by `spaces/NAME`. Large files stay on disk, and are served as the Hub
serves them: by a redirect.
"""

import base64
import hashlib
import json
import re
import sys
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from pathlib import Path
from urllib.parse import parse_qs, unquote, urlsplit

import yaml

TOKEN = "hf_loopback"
USER = "user"
REPO_ID = re.compile(r"[\w.-]+/[\w.-]+")
LARGE = (".safetensors", ".bin", ".pt", ".pth", ".tar", ".parquet")
PIECE = 1 << 20

Content = bytes | Path  # a large file is read from disk each time it is served


@dataclass
class Repo:
    """Commits are whole trees: {path: content}."""

    private: bool = False
    branches: dict[str, str] = field(default_factory=dict)
    commits: dict[str, dict[str, Content]] = field(default_factory=dict)
    messages: dict[str, str] = field(default_factory=dict)

    def commit(self, branch: str, message: str, tree: dict[str, Content]) -> str:
        sha = hashlib.sha1(f"{len(self.commits)} {message}".encode()).hexdigest()
        self.commits[sha], self.messages[sha], self.branches[branch] = tree, message, sha
        return sha

    def resolve(self, revision: str) -> str | None:
        revision = self.branches.get(revision, revision)
        return revision if revision in self.commits else None


class Hub(ThreadingHTTPServer):
    """Repositories by name, and large files by their hash.

    `web` holds files of other servers by their URL, for clients whose `http_proxy` is this server. `sent` counts the
    bytes of all answers, `fetched` lists the files they came from, and `unknown` the requests without a route.
    """

    daemon_threads = True

    def __init__(self):
        super().__init__(("127.0.0.1", 0), Handler)
        self.repos: dict[str, Repo] = {}
        self.blobs: dict[str, Path] = {}
        self.web: dict[str, Path] = {}
        self.sent = 0
        self.fetched: list[Path] = []
        self.unknown: list[str] = []
        self.uploads = tempfile.TemporaryDirectory()
        self.lock = threading.Lock()
        self.url = f"http://127.0.0.1:{self.server_address[1]}"
        self.cdn = f"http://localhost:{self.server_address[1]}"  # another host to a client: it follows no HEAD there

    def handle_error(self, request, client_address) -> None:
        if not isinstance(sys.exception(), ConnectionError):  # a client that was killed
            super().handle_error(request, client_address)

    def create(self, name: str, private: bool = False) -> Repo:
        repo = self.repos[name] = Repo(private)
        repo.commit("main", "initial commit", {".gitattributes": b"*.safetensors filter=lfs\n"})
        return repo

    def add_folder(self, name: str, folder: Path) -> None:
        """A repository with the files of a folder, which must stay there."""
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        repo = self.create(name)
        tree = repo.commits[repo.branches["main"]] | {path.relative_to(folder).as_posix(): path for path in files}
        self.blobs |= {hash_of(path): path for path in files if path.name.endswith(LARGE)}
        repo.commit("main", "Add files", tree)

    def files(self, name: str, revision: str = "main") -> dict[str, bytes]:
        """{path: content} of one revision, without what the Hub itself puts there."""
        repo = self.repos[name]
        tree = repo.commits[repo.resolve(revision)]
        return {path: read(content) for path, content in tree.items() if path != ".gitattributes"}

    def environment(self, home: str, token: str = TOKEN) -> dict[str, str]:
        """Environment variables of a client, whose caches lie under `home`."""
        return {
            "HF_ENDPOINT": self.url,
            "HF_HUB_DISABLE_XET": "1",
            "HF_TOKEN": token,
            "HF_HOME": home,
            "HF_HUB_OFFLINE": "0",
            "HF_HUB_DISABLE_PROGRESS_BARS": "1",
            "no_proxy": "127.0.0.1,localhost",
        }


@contextmanager
def running_hub() -> Iterator[Hub]:
    """A Hub that answers until the block ends."""
    with Hub() as hub:
        threading.Thread(target=hub.serve_forever, daemon=True).start()
        yield hub
        hub.shutdown()
        hub.uploads.cleanup()


def read(content: Content) -> bytes:
    return content.read_bytes() if isinstance(content, Path) else content


def size_of(content: Content) -> int:
    return content.stat().st_size if isinstance(content, Path) else len(content)


@cache
def hash_of(content: Content) -> str:
    """SHA-256; that of a file, which must not change, is computed once."""
    with content.open("rb") if isinstance(content, Path) else BytesIO(content) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


class Refusal(Exception):
    """An HTTP error, with the header by which the client tells a missing file from a missing repository."""

    def __init__(self, status: int, code: str):
        super().__init__(code)
        self.status, self.code = status, code


def check_card(text: str) -> list[str]:
    """What the Hub would refuse in a card's metadata."""
    parts = text.split("---\n")
    data = yaml.safe_load(parts[1]) if len(parts) > 2 else {}
    errors = []
    for key in ("base_model", "datasets", "models"):
        values = data.get(key, [])
        for value in [values] if isinstance(values, str) else values:
            if not REPO_ID.fullmatch(value):
                errors.append(f'"{key}" with value "{value}" is not valid. Use an id from https://hf.co.')
    for model in data.get("model-index", []):
        for result in model["results"]:
            needed = (result["task"]["type"], result["dataset"]["type"], result["dataset"]["name"])
            if not all(needed) or not all(metric["type"] and "value" in metric for metric in result["metrics"]):
                errors.append('"model-index" lacks a task, dataset or metric.')
    return errors


class Handler(BaseHTTPRequestHandler):
    """Routes are methods of `ROUTES`: a pattern of the path, and what answers it."""

    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *args) -> None:
        pass

    def answer(self) -> None:
        length = int(self.headers.get("Content-Length") or 0)
        if self.command != "PUT":
            self.body = self.rfile.read(length) if length else self._read_chunks()
        try:
            with self.server.lock:
                status, content, headers = self._route()
        except Refusal as refusal:
            headers = {"X-Error-Code": refusal.code, "X-Error-Message": refusal.code}
            status, content = refusal.status, json.dumps({"error": refusal.code}).encode()
        start, stop = 0, size_of(content)
        if status == 200 and (asked := re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range", ""))):
            whole, start, stop = stop, int(asked[1]), min(stop, int(asked[2] or stop) + 1)
            status, headers = 206, {**headers, "Content-Range": f"bytes {start}-{stop - 1}/{whole}"}
        self.send_response(status)
        for name, value in {"Content-Length": str(stop - start), "Accept-Ranges": "bytes", **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.server.fetched += [content] if isinstance(content, Path) else []
            self._send(content, start, stop)

    def _send(self, content: Content, start: int, stop: int) -> None:
        with content.open("rb") if isinstance(content, Path) else BytesIO(content) as file:
            file.seek(start)
            while start < stop and (piece := file.read(min(PIECE, stop - start))):
                try:
                    self.wfile.write(piece)
                except ConnectionError:  # the client has read enough
                    self.close_connection = True
                    return
                start += len(piece)
                with self.server.lock:
                    self.server.sent += len(piece)

    do_GET = do_HEAD = do_POST = do_PUT = do_DELETE = answer

    def _read_chunks(self) -> bytes:
        body = b""
        if self.headers.get("Transfer-Encoding") == "chunked":
            while size := int(self.rfile.readline(), 16):
                body += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
        return body

    def do_CONNECT(self) -> None:
        """Other servers are out of reach for a client that takes this one for its proxy."""
        self.server.unknown.append(f"CONNECT {self.path}")
        self.send_error(502)

    def _route(self) -> tuple[int, Content, dict[str, str]]:
        path = urlsplit(self.path).path
        if self.path in self.server.web:
            return 200, self.server.web[self.path], {"Content-Type": "image/jpeg"}
        for method, pattern, answer in ROUTES:
            if (match := re.fullmatch(pattern, path)) and self.command in method:
                found = answer(self, *(unquote(group) for group in match.groups() if group))
                return found if isinstance(found, tuple) else (200, json.dumps(found).encode(), {})
        self.server.unknown.append(f"{self.command} {self.path}")
        raise Refusal(404, f"no route for {self.command} {path}")

    def _repo(self, name: str, write: bool = False) -> Repo:
        authorized = self.headers.get("Authorization") == f"Bearer {TOKEN}"
        repo = self.server.repos.get(name)
        if write and not authorized:
            raise Refusal(401, "Invalid credentials")
        if repo is None or (repo.private and not authorized):
            raise Refusal(404 if authorized else 401, "RepoNotFound")
        return repo

    def _tree(self, name: str, revision: str) -> tuple[str, dict[str, Content]]:
        repo = self._repo(name)
        sha = repo.resolve(revision)
        if sha is None:
            raise Refusal(404, "RevisionNotFound")
        return sha, repo.commits[sha]

    # ---- upload

    def create_repo(self):
        if self.headers.get("Authorization") != f"Bearer {TOKEN}":
            raise Refusal(401, "Invalid credentials")
        options = json.loads(self.body)
        if options.get("type") == "space" and not options.get("sdk"):
            raise Refusal(400, "a Space needs an sdk")
        kind = {"dataset": "datasets/", "space": "spaces/"}.get(options.get("type"), "")
        name = f"{kind}{options.get('organization') or USER}/{options['name']}"
        status = 409 if name in self.server.repos else 200
        if status == 200:
            self.server.create(name, options.get("visibility") == "private")
        return status, json.dumps({"url": f"{self.server.url}/{name}", "id": name.removeprefix(kind)}).encode(), {}

    def create_branch(self, name: str, branch: str):
        repo = self._repo(name, write=True)
        if branch in repo.branches:
            raise Refusal(409, "Reference already exists")
        repo.branches[branch] = repo.branches["main"]
        return {}

    def validate_yaml(self):
        errors = check_card(json.loads(self.body)["content"])
        status = 400 if errors else 200
        return status, json.dumps({"errors": [{"message": e} for e in errors], "warnings": []}).encode(), {}

    def preupload(self, name: str, revision: str):
        if self._repo(name, write=True).resolve(revision) is None:
            raise Refusal(404, "RevisionNotFound")
        files = json.loads(self.body)["files"]
        modes = ["lfs" if file["path"].endswith(LARGE) else "regular" for file in files]
        return {
            "files": [
                {"path": file["path"], "uploadMode": mode, "shouldIgnore": False}
                for file, mode in zip(files, modes, strict=True)
            ]
        }

    def lfs_batch(self, name: str):
        self._repo(name, write=True)
        objects = []
        for item in json.loads(self.body)["objects"]:
            known = item["oid"] in self.server.blobs
            actions = {} if known else {"actions": {"upload": {"href": f"{self.server.url}/lfs/{item['oid']}"}}}
            objects.append({"oid": item["oid"], "size": item["size"], **actions})
        return {"transfer": "basic", "objects": objects}

    def put_blob(self, oid: str):
        file, left = Path(self.server.uploads.name, oid), int(self.headers["Content-Length"])
        digest = hashlib.sha256()
        with file.open("wb") as blob:
            while left and (piece := self.rfile.read(min(PIECE, left))):
                left -= blob.write(piece)
                digest.update(piece)
        if digest.hexdigest() != oid:
            raise Refusal(400, "the content has another hash")
        self.server.blobs[oid] = file
        return {}

    def commit(self, name: str, revision: str):
        repo = self._repo(name, write=True)
        lines = [json.loads(line) for line in self.body.splitlines() if line.strip()]
        tree = dict(repo.commits[repo.branches[revision]])
        for line in lines[1:]:
            value = line["value"]
            content = self.server.blobs[value["oid"]] if line["key"] == "lfsFile" else None
            tree[value["path"]] = base64.b64decode(value["content"]) if content is None else content
        sha = repo.commit(revision, lines[0]["value"]["summary"], tree)
        return {"success": True, "commitOid": sha, "commitUrl": f"{self.server.url}/{name}/commit/{sha}"}

    # ---- download

    def info(self, name: str, revision: str = "main"):
        sha, tree = self._tree(name, revision)
        files = [{"rfilename": path} for path in tree]
        private = self.server.repos[name].private
        name = name.removeprefix("datasets/").removeprefix("spaces/")
        return {"id": name, "modelId": name, "sha": sha, "private": private, "tags": [], "siblings": files}

    def tree(self, name: str, revision: str, folder: str = ""):
        _, tree = self._tree(name, revision)
        recursive = parse_qs(urlsplit(self.path).query).get("recursive", ["false"])[0].lower() == "true"
        prefix = folder and folder.strip("/") + "/"
        found = {path: content for path, content in tree.items() if path.startswith(prefix)}
        if prefix and not found:
            raise Refusal(404, "EntryNotFound")
        below = {path.removeprefix(prefix).partition("/")[0] for path in found if "/" in path.removeprefix(prefix)}
        folders = [] if recursive else [{"type": "directory", "path": prefix + name, "oid": name} for name in below]
        files = {path for path in found if recursive or "/" not in path.removeprefix(prefix)}
        return [*folders, *(describe(path, content) for path, content in found.items() if path in files)]

    def paths_info(self, name: str, revision: str):
        _, tree = self._tree(name, revision)
        form = parse_qs(self.body.decode())
        paths = form["paths"] if form else json.loads(self.body)["paths"]
        folders = [path for path in paths if any(file.startswith(f"{path}/") for file in tree)]
        entries = [{"type": "directory", "path": path, "oid": path} for path in folders]
        return entries + [describe(path, tree[path]) for path in paths if path in tree]

    def file(self, name: str, revision: str, path: str):
        sha, tree = self._tree(name, revision)
        if path not in tree:
            raise Refusal(404, "EntryNotFound")
        content = tree[path]
        headers = {"X-Repo-Commit": sha, "ETag": f'"{hash_of(content)}"'}
        if not path.endswith(LARGE) or not isinstance(content, Path):
            return 200, content, headers
        headers |= {"X-Linked-Size": str(size_of(content)), "X-Linked-ETag": headers["ETag"]}
        return 302, b"", {**headers, "Location": f"{self.server.cdn}/lfs/{hash_of(content)}"}

    def get_blob(self, oid: str):
        return 200, self.server.blobs[oid], {"ETag": f'"{oid}"'}


def describe(path: str, content: Content) -> dict:
    """A file's entry in a list of files."""
    entry = {"type": "file", "path": path, "size": size_of(content), "oid": hash_of(content)[:40]}
    large = path.endswith(LARGE) and isinstance(content, Path)
    return entry | ({"lfs": {"oid": hash_of(content), "size": size_of(content), "pointerSize": 134}} if large else {})


NAME = r"((?:datasets/|spaces/)?[^/]+/[^/]+)"
API = rf"/api/(?:models/)?{NAME}"
ROUTES = (
    (("POST",), r"/api/repos/create", Handler.create_repo),
    (("POST",), r"/api/validate-yaml", Handler.validate_yaml),
    (("POST",), rf"{API}/branch/(.+)", Handler.create_branch),
    (("POST",), rf"{API}/preupload/(.+)", Handler.preupload),
    (("POST",), rf"{API}/commit/(.+)", Handler.commit),
    (("POST",), rf"/{NAME}\.git/info/lfs/objects/batch", Handler.lfs_batch),
    (("PUT",), r"/lfs/(\w+)", Handler.put_blob),
    (("GET", "HEAD"), r"/lfs/(\w+)", Handler.get_blob),
    (("GET",), rf"{API}(?:/revision/([^/]+))?", Handler.info),
    (("GET",), rf"{API}/tree/([^/]+)(/.+)?", Handler.tree),
    (("POST",), rf"{API}/paths-info/([^/]+)", Handler.paths_info),
    (("GET", "HEAD"), rf"/{NAME}/resolve/([^/]+)/(.+)", Handler.file),
)
