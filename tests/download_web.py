"""A web server in a thread, and archives as the datasets' makers publish them."""

import io
import json
import socket
import tarfile
import threading
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from helpers import make_image_folder

from domainbed.download import fetch
from domainbed.download.cards import CARDS, Card, Mirror
from domainbed.scripts.download import main

PACS_DOMAINS = tuple(CARDS["PACS"].counts)
CLASSES = ["dog", "house"]
HPARAMS = {"data_augmentation": False}
LOOK_UP = socket.getaddrinfo  # conftest.py's no_network replaces it


class Web:
    """What the server has, and how it misbehaves."""

    def __init__(self):
        self.files: dict[str, bytes] = {}
        self.html: dict[str, str] = {}
        self.cut_at: list[int] = []  # bytes after which each next answer breaks off
        self.etag = '"1"'
        self.requests: list[tuple[str, str | None]] = []  # (path, Range)


class Handler(BaseHTTPRequestHandler):
    """GET with Range and If-Range."""

    def do_GET(self):
        web = self.server.web
        path, wanted = self.path, self.headers.get("Range")
        web.requests.append((path, wanted))
        if path in web.html:
            return self.answer(200, web.html[path].encode(), {}, "text/html")
        if path not in web.files:
            return self.send_error(404)
        body = web.files[path]
        headers = {"ETag": web.etag} if web.etag else {}
        if wanted and self.headers.get("If-Range", web.etag) == web.etag:
            start = int(wanted.removeprefix("bytes=").removesuffix("-"))
            if start >= len(body):
                return self.send_error(416)
            headers["Content-Range"] = f"bytes {start}-{len(body) - 1}/{len(body)}"
            return self.answer(206, body[start:], headers)
        self.answer(200, body, headers)

    def answer(self, status, body, headers, kind="application/octet-stream"):
        cut = self.server.web.cut_at
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(body[: cut.pop(0)] if cut else body)

    def log_message(self, *args):
        pass


@pytest.fixture
def web(monkeypatch):
    """A server on this machine that the hub's, Drive's and all addresses lead to."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.web = Web()
    server.web.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, args=[0.02], daemon=True).start()
    refuse = socket.getaddrinfo
    monkeypatch.setattr(
        socket,
        "getaddrinfo",
        lambda host, *args: (LOOK_UP if host == "127.0.0.1" else refuse)(host, *args),
    )
    monkeypatch.setenv("HF_ENDPOINT", server.web.url)
    monkeypatch.setattr(fetch, "DRIVE", f"{server.web.url}/drive?id=")
    yield server.web
    server.shutdown()
    server.server_close()


@pytest.fixture
def use(monkeypatch):
    """Replaces a dataset's card, in part."""

    def change(name: str, **facts) -> Card:
        monkeypatch.setitem(CARDS, name, replace(CARDS[name], **facts))
        return CARDS[name]

    return change


def zipped(folder: Path, top: str = "") -> bytes:
    """The folder as a zip archive, under the name `top`."""
    memory = io.BytesIO()
    with zipfile.ZipFile(memory, "w") as archive:
        for path in sorted(folder.rglob("*")):
            archive.write(path, f"{top}{path.relative_to(folder).as_posix()}")
    return memory.getvalue()


def tarred(files: dict[str, bytes], *members: tarfile.TarInfo) -> bytes:
    """A tar.gz archive of the files and of further members without contents."""
    memory = io.BytesIO()
    with tarfile.open(fileobj=memory, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        for member in members:
            archive.addfile(member)
    return memory.getvalue()


def member(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def parquet(rows: list[dict], names: dict[str, list[str]]) -> bytes:
    """A file as the `datasets` library pushes it to the hub."""
    pyarrow = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    labels = {c: {"names": own, "_type": "ClassLabel"} for c, own in names.items()}
    features = {"image": {"_type": "Image"}, **labels}
    metadata = {"huggingface": json.dumps({"info": {"features": features}})}
    table = pyarrow.Table.from_pylist(rows).replace_schema_metadata(metadata)
    memory = io.BytesIO()
    pq.write_table(table, memory)
    return memory.getvalue()


@pytest.fixture
def pacs_zip(tmp_path) -> bytes:
    """PACS as upstream's archive has it: under kfold/, with litter beside."""
    make_image_folder(tmp_path / "made", list(PACS_DOMAINS), CLASSES, n=2)
    (tmp_path / "made" / "readme.txt").write_text("about")
    (tmp_path / "made" / "__MACOSX").mkdir()
    return zipped(tmp_path / "made", "kfold/")


@pytest.fixture
def pacs_on_drive(web, use, pacs_zip):
    """PACS with two mirrors: a hub that has nothing, and a Drive."""
    web.files["/drive?id=X"] = pacs_zip
    use(
        "PACS",
        mirrors=(Mirror("hf", "none/pacs"), Mirror("gdrive", "X", ("PACS.zip",))),
        counts=dict.fromkeys(PACS_DOMAINS, 4),
    )
    return web


def fails(argv: list, capsys) -> str:
    """The sentence with which the command ends, status 2."""
    with pytest.raises(SystemExit) as ended:
        main([str(arg) for arg in argv])
    assert ended.value.code == 2
    *_, last = capsys.readouterr().err.strip().splitlines()
    assert last.startswith("error: ")
    return last


def left_in(data: Path) -> list[str]:
    return sorted(p.name for p in data.iterdir()) if data.exists() else []
