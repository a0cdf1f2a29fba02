"""Archives: nothing leaves the folder; each dataset's own layout becomes ours."""

import io
import json
import stat
import tarfile
import warnings
import zipfile
from dataclasses import replace

import pytest
from download_web import (
    CLASSES,
    HPARAMS,
    fails,
    left_in,
    member,
    tarred,
    zipped,
)
from helpers import make_image_folder

from domainbed import datasets
from domainbed.download import layout, steps
from domainbed.download.cards import CARDS, Mirror
from domainbed.scripts.download import main

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
    folder = steps.obtain("VLCS", tmp_path, str(tmp_path / "VLCS.tar.gz"))
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
    steps.obtain("DomainNet", tmp_path)
    assert steps.verify("DomainNet", tmp_path)[1]


def test_domain_net_from_local_files_without_listed_duplicates(web, use, tmp_path):
    files = tmp_path / "files"
    files.mkdir()
    domain_net(web)
    for path, content in web.files.items():
        if path.endswith(".zip"):
            (files / path.split("/")[-1]).write_bytes(content)
    duplicates = "real/axe/real_0.jpg\nreal/axe/real_1.jpg\n../../x\n"
    (files / "domain_net_duplicates.txt").write_text(duplicates)
    steps.obtain("DomainNet", tmp_path / "d", str(files))
    use("DomainNet", counts={**dict.fromkeys(CARDS["DomainNet"].counts, 3), "real": 1})
    assert steps.verify("DomainNet", tmp_path / "d")[1]


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
    assert len(list(layout.terra_pictures(data))) == n
    assert [rows.looks for rows in data.values()] == [1, n, n]


def test_terra_incognita_warns_of_pictures_that_are_lacking(tmp_path):
    raw = tmp_path / "raw"
    raw.mkdir()
    (raw / "x.json").write_text(json.dumps(terra()))
    (raw / "a.jpg").write_bytes(b"a")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        layout.arrange_terra_incognita(raw, tmp_path / "to", [])
    assert "lacks 3 annotated pictures" in str(caught[0].message)
