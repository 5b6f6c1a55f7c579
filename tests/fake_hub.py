"""A model hub on this machine, as much of one as `huggingface_hub` asks for:
facts of a model, its files, and errors.
"""

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote

REVISION = "0123456789abcdef0123456789abcdef01234567"
LARGE = (".safetensors", ".bin", ".pt")
"""Files that a hub keeps in its large storage, with their SHA-256."""


@dataclass
class FakeRepository:
    """A model.   files: by their names.   refused: `gated` or `private`.
    cut: files of which half is sent.   lies: SHA-256 that it tells, by file.
    """

    files: dict[str, bytes]
    revision: str = REVISION
    licence: str | None = None
    refused: str = ""
    cut: set[str] = field(default_factory=set)
    lies: dict[str, str] = field(default_factory=dict)


@dataclass
class FakeHub:
    """url: where it listens.   asked: every path that somebody asked for.
    status: an HTTP error for everything, or 0.
    """

    url: str
    models: dict[str, FakeRepository]
    asked: list[str] = field(default_factory=list)
    status: int = 0

    def fetched(self) -> set[str]:
        """Names of the files whose content was sent."""
        found = (path.partition("/resolve/")[2] for path in self.asked if path.startswith("GET"))
        return {name.partition("/")[2] for name in found if name}


def files_of(folder: Path) -> dict[str, bytes]:
    """The files of a folder, as a repository has them."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


@contextmanager
def served(models: dict[str, FakeRepository]) -> Iterator[FakeHub]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    hub = FakeHub(f"http://127.0.0.1:{server.server_address[1]}", models)
    server.hub = hub  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: object) -> None: ...

    def do_HEAD(self) -> None:
        self._answer()

    def do_GET(self) -> None:
        self._answer()

    @property
    def hub(self) -> FakeHub:
        hub = self.server.hub  # type: ignore[attr-defined]
        assert isinstance(hub, FakeHub)
        return hub

    def _answer(self) -> None:
        path = unquote(self.path.partition("?")[0])
        self.hub.asked.append(f"{self.command} {path}")
        if self.hub.status:
            self._send(self.hub.status, b"{}")
            return
        parts = path.strip("/").split("/")
        is_api = parts[:2] == ["api", "models"]
        parts = parts[2:] if is_api else parts
        model = self.hub.models.get("/".join(parts[:2]))
        if model is None or model.refused == "private":
            self._send(401, b"{}", {"X-Error-Code": "RepoNotFound"})
            return
        rest = parts[2:]
        revision = rest[1] if len(rest) > 1 else "main"
        if revision not in ("main", model.revision):
            self._send(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
        elif model.refused == "gated" and not is_api:
            self._send(403, b"{}", {"X-Error-Code": "GatedRepo"})
        elif is_api:
            found = _tree(model) if rest[:1] == ["tree"] else _facts("/".join(parts[:2]), model)
            self._send(200, json.dumps(found).encode())
        else:
            self._send_file(model, "/".join(rest[2:]))

    def _send_file(self, model: FakeRepository, name: str) -> None:
        content = model.files.get(name)
        if content is None:
            self._send(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            return
        etag = hashlib.sha256(content).hexdigest()
        head = {"ETag": f'"{etag}"', "X-Repo-Commit": model.revision}
        if name.endswith(LARGE):
            head["X-Linked-Etag"] = f'"{etag}"'
            head["X-Linked-Size"] = str(len(content))
        self._send(200, content, head, name in model.cut)

    def _send(
        self, status: int, content: bytes, head: dict[str, str] | None = None, is_cut: bool = False
    ) -> None:
        self.send_response(status)
        for name, value in (head or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(content[: len(content) // 2] if is_cut else content)
        if is_cut:
            self.close_connection = True


def _large(name: str, model: FakeRepository) -> dict[str, object]:
    if not name.endswith(LARGE):
        return {}
    content = model.files[name]
    sha256 = model.lies.get(name, hashlib.sha256(content).hexdigest())
    return {"lfs": {"sha256": sha256, "oid": sha256, "size": len(content), "pointerSize": 130}}


def _facts(name: str, model: FakeRepository) -> dict[str, object]:
    siblings = [
        {"rfilename": each, "size": len(content), "blobId": "b" * 40, **_large(each, model)}
        for each, content in model.files.items()
    ]
    card = {} if model.licence is None else {"license": model.licence}
    return {
        "_id": "1",
        "id": name,
        "modelId": name,
        "sha": model.revision,
        "private": False,
        "gated": "manual" if model.refused == "gated" else False,
        "tags": [],
        "downloads": 0,
        "likes": 0,
        "siblings": siblings,
        "cardData": card,
    }


def _tree(model: FakeRepository) -> list[dict[str, object]]:
    return [
        {"type": "file", "path": name, "size": len(content), "oid": "b" * 40, **_large(name, model)}
        for name, content in model.files.items()
    ]
