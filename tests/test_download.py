"""Downloads: mirrors, resuming, refusals, layouts, all from a server in a thread."""

import io
import json
import socket
import stat
import sys
import tarfile
import threading
import warnings
import zipfile
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from conftest import make_image_folder

from domainbed import datasets, download, download_fetch, download_layout
from domainbed.download_cards import CARDS, Card, Mirror
from domainbed.lib.errors import InputError
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
    monkeypatch.setattr(download_fetch, "DRIVE", f"{server.web.url}/drive?id=")
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


# Mirrors, fetching


def test_second_mirror_when_the_first_fails(pacs_on_drive, tmp_path, capsys):
    data = tmp_path / "data"
    main(["--data_dir", str(data), "--dataset", "PACS", "--verify"])
    out = capsys.readouterr().out
    assert "hub's none/pacs: HTTP 404" in out
    assert "as many pictures as published: art_painting 4, cartoon 4" in out
    assert left_in(data) in (["PACS"], ["PACS", "PACS.lock"])
    dataset = datasets.PACS(data, [0], HPARAMS)
    assert dataset.class_names == CLASSES
    assert [len(environment) for environment in dataset] == [4, 4, 4, 4]


def test_all_mirrors_failing_is_one_sentence_with_every_reason(
    web, use, tmp_path, capsys
):
    web.files["/drive?id=X"] = b"no archive at all"
    use(
        "PACS",
        mirrors=(
            Mirror("hf", "none/pacs"),
            Mirror("url", f"{web.url}/gone", ("a.zip",)),
            Mirror("gdrive", "X", ("PACS.zip",)),
        ),
    )
    sentence = fails(["--data_dir", tmp_path / "d", "--dataset", "PACS"], capsys)
    assert "hub's none/pacs: HTTP 404" in sentence
    assert f"{web.url}/gone: HTTP 404" in sentence
    assert "Drive's X: PACS.zip is no zip, tar or parquet file" in sentence
    assert "--source FILE" in sentence
    assert left_in(tmp_path / "d") in ([], ["PACS.lock"])


def test_source_chooses_among_the_mirrors(pacs_on_drive, tmp_path):
    download.obtain("PACS", tmp_path / "d", "gdrive")
    assert [path for path, _ in pacs_on_drive.requests] == ["/drive?id=X"]


def test_without_network_every_mirror_says_so(tmp_path, capsys):
    for name, card in CARDS.items():
        sentence = fails(["--data_dir", tmp_path / "d", "--dataset", name], capsys)
        assert sentence.count("tests use no network") == len(card.mirrors)


def test_a_cut_file_is_resumed_within_the_call(web, tmp_path):
    web.files["/f"] = bytes(range(256)) * 40
    web.cut_at = [1000, 2000]
    got = download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert got.read_bytes() == web.files["/f"]
    ranges = [wanted for _, wanted in web.requests]
    assert ranges == [None, "bytes=1000-", "bytes=3000-"]
    assert left_in(tmp_path) == ["f"]


def test_a_cut_file_is_resumed_by_the_next_call(web, tmp_path):
    web.files["/f"] = bytes(range(256)) * 40
    web.cut_at = [1000, 0]  # the second connection brings nothing: that call ends
    with pytest.raises(ConnectionError, match="cut at 1000 of 10240 bytes"):
        download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert "f" not in left_in(tmp_path)
    download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == web.files["/f"]
    assert web.requests[-1] == ("/f", "bytes=1000-")
    download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert len(web.requests) == 3  # what is whole is not asked for


@pytest.mark.parametrize("etag", ['"2"', ""])
def test_a_file_that_changed_is_not_glued_together(web, tmp_path, etag):
    web.files["/f"] = b"a" * 5000
    web.etag = '"1"' if etag else ""
    web.cut_at = [1000, 0]
    with pytest.raises(ConnectionError):
        download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    web.files["/f"], web.etag = b"b" * 4000, etag
    download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"b" * 4000


def test_a_file_that_shrank_below_the_part_starts_anew(web, tmp_path):
    web.etag = ""
    web.files["/f"] = b"a" * 5000
    web.cut_at = [1000, 0]
    with pytest.raises(ConnectionError):
        download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    web.files["/f"] = b"b" * 10
    download_fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"b" * 10


def test_downloads_survive_an_interruption_and_the_place_stays_empty(
    pacs_on_drive, use, tmp_path, monkeypatch
):
    data = tmp_path / "data"

    def interrupted(*args):
        raise KeyboardInterrupt

    use("PACS", arrange=interrupted)
    with pytest.raises(KeyboardInterrupt):
        download.obtain("PACS", data, "gdrive")
    assert {*left_in(data)} <= {"PACS.download", "PACS.lock"}
    use("PACS", arrange=download_layout.arrange)
    pacs_on_drive.files.clear()  # nothing is asked for again
    assert download.obtain("PACS", data, "gdrive") == data / "PACS"
    assert len(pacs_on_drive.requests) == 1


def test_what_a_killed_attempt_left_does_not_matter(pacs_on_drive, tmp_path):
    litter = tmp_path / "data" / "PACS.part" / "raw" / "photo"
    litter.mkdir(parents=True)
    download.obtain("PACS", tmp_path / "data", "gdrive")
    assert left_in(tmp_path / "data" / "PACS") == sorted(PACS_DOMAINS)


def test_a_damaged_archive_is_fetched_anew_by_the_next_call(pacs_on_drive, tmp_path):
    whole = pacs_on_drive.files["/drive?id=X"]
    broken = bytearray(whole)
    broken[whole.index(b"\x89PNG") + 50] ^= 255  # the picture's checksum fails
    pacs_on_drive.files["/drive?id=X"] = bytes(broken)
    with pytest.raises(InputError, match=r"PACS\.zip is damaged"):
        download.obtain("PACS", tmp_path / "data", "gdrive")
    pacs_on_drive.files["/drive?id=X"] = whole
    download.obtain("PACS", tmp_path / "data", "gdrive")


def test_drive_asks_before_it_sends_a_large_file(pacs_on_drive, tmp_path):
    pacs_on_drive.html["/drive?id=X"] = (
        '<form id="download-form" action="/sent" method="get">'
        '<input type="hidden" name="id" value="X"/>'
        '<input type="hidden" name="uuid" value="a b"/></form>'
    )
    pacs_on_drive.files["/sent?id=X&uuid=a+b"] = pacs_on_drive.files["/drive?id=X"]
    download.obtain("PACS", tmp_path / "data", "gdrive")
    pacs_on_drive.html["/drive?id=X"] = "<p>Quota exceeded</p>"
    with pytest.raises(InputError, match="a web page came instead of the file"):
        download.obtain("PACS", tmp_path / "again", "gdrive")


def test_a_page_of_drives_cannot_lead_to_a_local_file(pacs_on_drive, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    pacs_on_drive.html["/drive?id=X"] = (
        f'<form action="{secret.as_uri()}"><input type="hidden" name="id" value="X"/>'
    )
    with pytest.raises(InputError, match="a web page came instead of the file"):
        download.obtain("PACS", tmp_path / "data", "gdrive")


# The hub's parquet


def test_the_hubs_parquet_becomes_folders(web, use, tmp_path):
    picture = next(make_image_folder(tmp_path / "m", ["d"], ["c"], 1).rglob("*.png"))
    image = {"bytes": picture.read_bytes(), "path": None}
    named = {"bytes": picture.read_bytes(), "path": "some/kettle_1.png"}
    domains = ["Art", "Clipart", "Product", "Real World"]
    rows = [
        {"image": i, "domain": domain, "label": label}
        for domain in domains
        for label in (0, 1)
        for i in (image, named, named)
    ]
    content = parquet(rows, {"label": ["Bed", "Kettle"]})
    listing = [{"path": "README.md"}, {"path": "data/train-0.parquet"}]
    at = "flwrlabs/office-home"
    tree = f"/api/datasets/{at}/tree/main?recursive=true"
    web.files[tree] = json.dumps(listing).encode()
    web.files[f"/datasets/{at}/resolve/main/data/train-0.parquet"] = content
    use("OfficeHome", counts=dict.fromkeys(domains, 6))
    download.obtain("OfficeHome", tmp_path / "d")
    _, agrees = download.verify("OfficeHome", tmp_path / "d")
    assert agrees
    dataset = datasets.OfficeHome(tmp_path / "d", [0], HPARAMS)
    assert dataset.class_names == ["Bed", "Kettle"]
    assert left_in(tmp_path / "d" / "office_home" / "Real World" / "Bed") == [
        "data-train-0-000018.png",
        "kettle_1-data-train-0-000020.png",
        "kettle_1.png",
    ]


def test_numbered_domains_and_stored_paths_of_the_hubs_domain_net(use, tmp_path):
    domains = list(CARDS["DomainNet"].counts)
    rows = [
        {
            "image": {"bytes": b"\xff\xd8", "path": None},
            "domain": number,
            "category": "axe",
            "image_path": f"{domain}/axe/{domain}_1.jpg",
        }
        for number, domain in enumerate(domains)
    ]
    (tmp_path / "x.parquet").write_bytes(parquet(rows, {"domain": domains}))
    folder = download.obtain("DomainNet", tmp_path / "d", str(tmp_path / "x.parquet"))
    assert [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.*"))] == [
        f"{domain}/axe/{domain}_1.jpg" for domain in domains
    ]


@pytest.mark.parametrize("domain", ["../out", "/out", "a/b", ".."])
def test_a_parquet_row_cannot_leave_the_folder(tmp_path, domain):
    row = {"image": {"bytes": b"x", "path": None}, "domain": domain, "label": "dog"}
    (tmp_path / "x.parquet").write_bytes(parquet([row], {}))
    with pytest.raises(InputError, match="is refused"):
        download.obtain("PACS", tmp_path / "d", str(tmp_path / "x.parquet"))
    assert not (tmp_path / "out").exists()


# Archives


@pytest.mark.parametrize(
    "name",
    ["../evil.jpg", "photo/../../evil.jpg", "/evil.jpg", "C:\\evil.jpg", "..\\e.jpg"],
)
@pytest.mark.parametrize("kind", ["zip", "tar"])
def test_an_archive_cannot_write_outside_the_folder(tmp_path, capsys, name, kind):
    archive = tmp_path / f"a.{kind}"
    if kind == "zip":
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr(name, b"x")
    else:
        archive.write_bytes(tarred({name: b"x"}))
    before = sorted(tmp_path.rglob("*"))
    argv = ["--data_dir", tmp_path / "d", "--dataset", "PACS", "--source", archive]
    assert "points out of the folder" in fails(argv, capsys)
    made = {p.name for p in tmp_path.rglob("*") if p not in before}
    assert made <= {"d", "PACS.lock"}


@pytest.mark.parametrize(
    "bad",
    [
        member("photo/link", tarfile.SYMTYPE, "/etc/passwd"),
        member("photo/hard", tarfile.LNKTYPE, "photo/dog/1.jpg"),
        member("photo/null", tarfile.CHRTYPE),
        member("photo/disk", tarfile.BLKTYPE),
        member("photo/pipe", tarfile.FIFOTYPE),
    ],
    ids=lambda info: info.name,
)
def test_links_and_devices_in_a_tar_are_refused(tmp_path, capsys, bad):
    archive = tmp_path / "a.tar.gz"
    archive.write_bytes(tarred({"photo/dog/1.jpg": b"x"}, bad))
    argv = ["--data_dir", tmp_path / "d", "--dataset", "PACS", "--source", archive]
    assert "is a link or a device" in fails(argv, capsys)
    assert left_in(tmp_path / "d") in ([], ["PACS.lock"])


def test_links_in_a_zip_are_refused(tmp_path, capsys):
    archive = tmp_path / "a.zip"
    link = zipfile.ZipInfo("photo/link")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(archive, "w") as file:
        file.writestr(link, "/etc/passwd")
    argv = ["--data_dir", tmp_path / "d", "--dataset", "PACS", "--source", archive]
    assert "is a link or a device" in fails(argv, capsys)


def test_a_local_archive_is_left_as_it_is(tmp_path, pacs_zip, capsys):
    archive = tmp_path / "mine.zip"
    archive.write_bytes(pacs_zip)
    argv = ["--data_dir", tmp_path / "d", "--dataset", "PACS", "--source", archive]
    main([str(arg) for arg in argv])
    assert archive.read_bytes() == pacs_zip
    assert len(datasets.PACS(tmp_path / "d", [0], HPARAMS)) == 4
    main([str(arg) for arg in argv])
    assert "already" in capsys.readouterr().out


def test_an_archive_without_the_domains_names_them(tmp_path, capsys):
    make_image_folder(tmp_path / "made", ["photo", "sketch"], CLASSES, n=1)
    archive = tmp_path / "a.zip"
    archive.write_bytes(zipped(tmp_path / "made"))
    argv = ["--data_dir", tmp_path / "d", "--dataset", "PACS", "--source", archive]
    assert "holds no folder 'art_painting', 'cartoon'" in fails(argv, capsys)
    assert left_in(tmp_path / "d") in ([], ["PACS.lock"])


# VLCS, DomainNet, TerraIncognita


def test_vlcs_from_its_tar(tmp_path):
    domains = list(CARDS["VLCS"].counts)
    (tmp_path / "VLCS.tar.gz").write_bytes(
        tarred({f"VLCS/{domain}/bird/1.jpg": b"x" for domain in domains})
    )
    folder = download.obtain("VLCS", tmp_path, str(tmp_path / "VLCS.tar.gz"))
    assert left_in(folder) == domains


def domain_net(web) -> Mirror:
    """Each domain's zip with three pictures, of which the lists name two."""
    for domain in CARDS["DomainNet"].counts:
        memory = io.BytesIO()
        with zipfile.ZipFile(memory, "w") as archive:
            for i in range(3):
                archive.writestr(f"{domain}/axe/{domain}_{i}.jpg", b"x")
        where = "/groundtruth/" if domain in ("clipart", "painting") else "/"
        web.files[f"{where}{domain}.zip"] = memory.getvalue()
        for i, part in enumerate(("train", "test")):
            line = f"{domain}/axe/{domain}_{i}.jpg {i}\n"
            web.files[f"/domainnet/txt/{domain}_{part}.txt"] = line.encode()
    return replace(CARDS["DomainNet"].mirrors[-1], at=web.url)


def test_domain_net_keeps_what_the_authors_lists_name(web, use, tmp_path):
    counts = dict.fromkeys(CARDS["DomainNet"].counts, 2)
    use("DomainNet", mirrors=(domain_net(web),), counts=counts)
    download.obtain("DomainNet", tmp_path)
    assert download.verify("DomainNet", tmp_path)[1]


def test_domain_net_from_local_files_without_listed_duplicates(web, use, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    domain_net(web)
    for path, content in web.files.items():
        if path.endswith(".zip"):
            (files / path.split("/")[-1]).write_bytes(content)
    duplicates = "real/axe/real_0.jpg\nreal/axe/real_1.jpg\n../../x\n"
    (files / "domain_net_duplicates.txt").write_text(duplicates)
    download.obtain("DomainNet", tmp_path / "d", str(files))
    use("DomainNet", counts={**dict.fromkeys(CARDS["DomainNet"].counts, 3), "real": 1})
    assert download.verify("DomainNet", tmp_path / "d")[1]


def terra() -> dict:
    """Annotations of six pictures, one of them with two animals of two classes."""
    return {
        "categories": [{"id": i, "name": n} for i, n in enumerate(["bird", "fox"])]
        + [{"id": 30, "name": "empty"}, {"id": 5, "name": "dog"}],
        "images": [
            {"id": "a", "file_name": "a.jpg", "location": 38},
            {"id": "b", "file_name": "b.jpg", "location": "46"},
            {"id": "c", "file_name": "c.jpg", "location": 100},
            {"id": "d", "file_name": "d.jpg", "location": 43},
            {"id": "e", "file_name": "e.jpg", "location": 7},
            {"id": "f", "file_name": "f.jpg", "location": 38},
        ],
        "annotations": [
            {"image_id": "a", "category_id": 0},
            {"image_id": "a", "category_id": 0},  # two birds
            {"image_id": "a", "category_id": 5},  # and a dog
            {"image_id": "b", "category_id": 30},
            {"image_id": "c", "category_id": 5},
            {"image_id": "d", "category_id": 0},
            {"image_id": "e", "category_id": 0},  # a place that is not taken
            {"image_id": "f", "category_id": 1},  # a class that is not taken
        ],
    }


def test_terra_incognita_is_made_from_pictures_and_annotations(
    web, use, tmp_path, capsys
):
    data = terra()
    halves = {  # the splits' files share the classes
        "train_annotations": {**data, "annotations": data["annotations"][:4]},
        "cis_val_annotations": {**data, "annotations": data["annotations"][4:]},
    }
    web.files["/eccv_18_annotations.tar.gz"] = tarred(
        {
            f"eccv_18_annotation_files/{name}.json": json.dumps(half).encode()
            for name, half in halves.items()
        }
    )
    web.files["/eccv_18_all_images_sm.tar.gz"] = tarred(
        {f"eccv_18_all_images_sm/{name}.jpg": name.encode() for name in "abcdef"}
    )
    mirror = replace(CARDS["TerraIncognita"].mirrors[0], at=web.url)
    use("TerraIncognita", mirrors=(mirror,))
    argv = ["--data_dir", str(tmp_path), "--dataset", "TerraIncognita", "--verify"]
    main(argv)
    folder = tmp_path / "terra_incognita"
    assert [
        p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.jpg"))
    ] == [
        "location_100/dog/c.jpg",
        "location_38/bird/a.jpg",
        "location_38/dog/a.jpg",
        "location_43/bird/d.jpg",
        "location_46/empty/b.jpg",
    ]
    err = capsys.readouterr().err  # other counts than published only warn
    assert "warning: TerraIncognita" in err
    assert "location_38 has 2 (published: 9736)" in err


class Counted(list):
    """A list that counts how many of its items are ever looked at."""

    looks = 0

    def __iter__(self):
        for item in super().__iter__():
            self.looks += 1
            yield item


def test_terra_incognitas_conversion_looks_at_each_annotation_once():
    n = 500
    data = {
        "categories": Counted([{"id": 0, "name": "bird"}]),
        "images": Counted(
            {"id": i, "file_name": f"{i}.jpg", "location": 38} for i in range(n)
        ),
        "annotations": Counted({"image_id": i, "category_id": 0} for i in range(n)),
    }
    assert len(list(download_layout.terra_pictures(data))) == n
    assert [rows.looks for rows in data.values()] == [1, n, n]


def test_terra_incognita_warns_of_pictures_that_are_lacking(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.json").write_text(json.dumps(terra()))
    (raw / "a.jpg").write_bytes(b"a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        download_layout.arrange_terra_incognita(raw, tmp_path / "to", [])
    assert "lacks 3 annotated pictures" in str(caught[0].message)


# Wrong input, verification


def test_verify_names_the_domain_that_differs(pacs_on_drive, tmp_path, capsys):
    argv = ["--data_dir", tmp_path / "d", "--dataset", "PACS", "--verify"]
    main([str(arg) for arg in argv])
    next((tmp_path / "d" / "PACS" / "cartoon").rglob("*.png")).unlink()
    sentence = fails(argv, capsys)
    assert "cartoon has 3 (published: 4)" in sentence
    assert "photo" not in sentence


def test_cards_have_the_published_numbers():
    totals = {name: sum(card.counts.values()) for name, card in CARDS.items()}
    assert totals == {
        "VLCS": 10729,
        "PACS": 9991,
        "OfficeHome": 15588,
        "TerraIncognita": 24330,
        "DomainNet": 586575,
    }
    for name, card in CARDS.items():
        assert list(card.counts) == sorted(card.counts)  # as the environments' order
        assert len(card.counts) == datasets.num_environments(name)


@pytest.mark.parametrize(
    ("options", "says"),
    [
        (["--dataset", "PACSS"], "Unknown dataset to download 'PACSS'"),
        (["--dataset", "Debug28"], "Unknown dataset to download 'Debug28'"),
        (["--dataset", "PACS", "--source", "gdriev"], "Did you mean 'gdrive'?"),
        (["--dataset", "PACS", "--source", "no/file.zip"], "nor is there a file"),
        (["--dataset", "VLCS", "--source", "hf"], "no hf mirror, only: gdrive"),
        (["--dataset", "PACS", "VLCS", "--source", "a.zip"], "one at a time"),
        (["--dataset", "PACS", "Nope"], "Unknown dataset"),
    ],
)
def test_wrong_input_is_one_sentence_and_makes_nothing(tmp_path, capsys, options, says):
    assert says in fails(["--data_dir", tmp_path / "d", *options], capsys)
    assert left_in(tmp_path) == []


def test_a_data_dir_that_cannot_be_written_to(tmp_path, pacs_zip, capsys):
    (tmp_path / "a.zip").write_bytes(pacs_zip)
    source = ["--dataset", "PACS", "--source", tmp_path / "a.zip"]
    argv = ["--data_dir", tmp_path / "a.zip" / "d", *source]
    assert "cannot write to --data_dir" in fails(argv, capsys)


def test_a_missing_pyarrow_names_the_extra_before_anything_is_fetched(
    web, use, tmp_path, monkeypatch
):
    monkeypatch.setitem(sys.modules, "pyarrow.parquet", None)
    use("PACS", mirrors=CARDS["PACS"].mirrors[:1])
    with pytest.raises(InputError, match=r"pip install domainbed-lfa\[download\]"):
        download.obtain("PACS", tmp_path)
    assert web.requests == []
