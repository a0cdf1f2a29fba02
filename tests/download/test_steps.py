"""Downloads: mirrors, resuming, the hub, what is refused, what is verified."""

import json
import sys

import pytest
from download_web import (
    CLASSES,
    HPARAMS,
    PACS_DOMAINS,
    fails,
    left_in,
    parquet,
)
from helpers import make_image_folder

from domainbed import datasets
from domainbed.download import fetch, layout, steps
from domainbed.download.cards import CARDS, Mirror
from domainbed.lib.errors import InputError
from domainbed.scripts.download import main

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
    steps.obtain("PACS", tmp_path / "d", "gdrive")
    assert [path for path, _ in pacs_on_drive.requests] == ["/drive?id=X"]


def test_without_network_every_mirror_says_so(tmp_path, capsys):
    for name, card in CARDS.items():
        sentence = fails(["--data_dir", tmp_path / "d", "--dataset", name], capsys)
        assert sentence.count("tests use no network") == len(card.mirrors)


def test_a_cut_file_is_resumed_within_the_call(web, tmp_path):
    web.files["/f"] = bytes(range(256)) * 40
    web.cut_at = [1000, 2000]
    got = fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert got.read_bytes() == web.files["/f"]
    ranges = [wanted for _, wanted in web.requests]
    assert ranges == [None, "bytes=1000-", "bytes=3000-"]
    assert left_in(tmp_path) == ["f"]


def test_a_cut_file_is_resumed_by_the_next_call(web, tmp_path):
    web.files["/f"] = bytes(range(256)) * 40
    web.cut_at = [1000, 0]  # the second connection brings nothing: that call ends
    with pytest.raises(ConnectionError, match="cut at 1000 of 10240 bytes"):
        fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert "f" not in left_in(tmp_path)
    fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == web.files["/f"]
    assert web.requests[-1] == ("/f", "bytes=1000-")
    fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert len(web.requests) == 3  # what is whole is not asked for


@pytest.mark.parametrize("etag", ['"2"', ""])
def test_a_file_that_changed_is_not_glued_together(web, tmp_path, etag):
    web.files["/f"] = b"a" * 5000
    web.etag = '"1"' if etag else ""
    web.cut_at = [1000, 0]
    with pytest.raises(ConnectionError):
        fetch.fetch(f"{web.url}/f", tmp_path / "f")
    web.files["/f"], web.etag = b"b" * 4000, etag
    fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"b" * 4000


def test_a_file_that_shrank_below_the_part_starts_anew(web, tmp_path):
    web.etag = ""
    web.files["/f"] = b"a" * 5000
    web.cut_at = [1000, 0]
    with pytest.raises(ConnectionError):
        fetch.fetch(f"{web.url}/f", tmp_path / "f")
    web.files["/f"] = b"b" * 10
    fetch.fetch(f"{web.url}/f", tmp_path / "f")
    assert (tmp_path / "f").read_bytes() == b"b" * 10


def test_downloads_survive_an_interruption_and_the_place_stays_empty(
    pacs_on_drive, use, tmp_path, monkeypatch
):
    data = tmp_path / "data"

    def interrupted(*args):
        raise KeyboardInterrupt

    use("PACS", arrange=interrupted)
    with pytest.raises(KeyboardInterrupt):
        steps.obtain("PACS", data, "gdrive")
    assert {*left_in(data)} <= {"PACS.download", "PACS.lock"}
    use("PACS", arrange=layout.arrange)
    pacs_on_drive.files.clear()  # nothing is asked for again
    assert steps.obtain("PACS", data, "gdrive") == data / "PACS"
    assert len(pacs_on_drive.requests) == 1


def test_what_a_killed_attempt_left_does_not_matter(pacs_on_drive, tmp_path):
    litter = tmp_path / "data" / "PACS.part" / "raw" / "photo"
    litter.mkdir(parents=True)
    steps.obtain("PACS", tmp_path / "data", "gdrive")
    assert left_in(tmp_path / "data" / "PACS") == sorted(PACS_DOMAINS)


def test_a_damaged_archive_is_fetched_anew_by_the_next_call(pacs_on_drive, tmp_path):
    whole = pacs_on_drive.files["/drive?id=X"]
    broken = bytearray(whole)
    broken[whole.index(b"\x89PNG") + 50] ^= 255  # the picture's checksum fails
    pacs_on_drive.files["/drive?id=X"] = bytes(broken)
    with pytest.raises(InputError, match=r"PACS\.zip is damaged"):
        steps.obtain("PACS", tmp_path / "data", "gdrive")
    pacs_on_drive.files["/drive?id=X"] = whole
    steps.obtain("PACS", tmp_path / "data", "gdrive")


def test_drive_asks_before_it_sends_a_large_file(pacs_on_drive, tmp_path):
    pacs_on_drive.html["/drive?id=X"] = (
        '<form id="download-form" action="/sent" method="get">'
        '<input type="hidden" name="id" value="X"/>'
        '<input type="hidden" name="uuid" value="a b"/></form>'
    )
    pacs_on_drive.files["/sent?id=X&uuid=a+b"] = pacs_on_drive.files["/drive?id=X"]
    steps.obtain("PACS", tmp_path / "data", "gdrive")
    pacs_on_drive.html["/drive?id=X"] = "<p>Quota exceeded</p>"
    with pytest.raises(InputError, match="a web page came instead of the file"):
        steps.obtain("PACS", tmp_path / "again", "gdrive")


def test_a_page_of_drives_cannot_lead_to_a_local_file(pacs_on_drive, tmp_path):
    secret = tmp_path / "secret"
    secret.write_text("secret")
    pacs_on_drive.html["/drive?id=X"] = (
        f'<form action="{secret.as_uri()}"><input type="hidden" name="id" value="X"/>'
    )
    with pytest.raises(InputError, match="a web page came instead of the file"):
        steps.obtain("PACS", tmp_path / "data", "gdrive")


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
    steps.obtain("OfficeHome", tmp_path / "d")
    _, agrees = steps.verify("OfficeHome", tmp_path / "d")
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
    folder = steps.obtain("DomainNet", tmp_path / "d", str(tmp_path / "x.parquet"))
    assert [p.relative_to(folder).as_posix() for p in sorted(folder.rglob("*.*"))] == [
        f"{domain}/axe/{domain}_1.jpg" for domain in domains
    ]


@pytest.mark.parametrize("domain", ["../out", "/out", "a/b", ".."])
def test_a_parquet_row_cannot_leave_the_folder(tmp_path, domain):
    row = {"image": {"bytes": b"x", "path": None}, "domain": domain, "label": "dog"}
    (tmp_path / "x.parquet").write_bytes(parquet([row], {}))
    with pytest.raises(InputError, match="is refused"):
        steps.obtain("PACS", tmp_path / "d", str(tmp_path / "x.parquet"))
    assert not (tmp_path / "out").exists()


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
        steps.obtain("PACS", tmp_path)
    assert web.requests == []


@pytest.mark.parametrize("name", ["MNIST", "RotatedMNIST"])
def test_mnist_is_torchvisions_to_fetch(name, tmp_path, monkeypatch, capsys):
    asked = []

    def fetch(root, download):
        asked.append((root, download))

    monkeypatch.setattr("torchvision.datasets.MNIST", fetch)
    main(["--data_dir", str(tmp_path), "--dataset", name])
    assert asked == [(tmp_path, True)]
    assert f"MNIST is at {tmp_path}" in capsys.readouterr().out


def test_a_failed_mnist_says_why(tmp_path, capsys):
    options = ["--data_dir", str(tmp_path), "--dataset", "MNIST"]
    assert "MNIST could not be downloaded" in fails(options, capsys)
