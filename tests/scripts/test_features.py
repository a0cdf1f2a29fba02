"""`features`: what is stored, whether it is right, and what can go."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
from filelock import FileLock
from helpers import make_image_folder

from domainbed import training
from domainbed.algorithms_probe import Head2Toe
from domainbed.backbones import CLIPBackbone
from domainbed.features.entries import entries
from domainbed.scripts import train
from domainbed.scripts.features import main

EMOJI = ["--hparams", "clip_backbone=emoji"]


@pytest.fixture
def built(pacs, capsys):
    """A data folder with a tiny PACS and its four entries."""
    main(["build", "--data_dir", str(pacs), "--dataset", "PACS", *EMOJI])
    capsys.readouterr()
    return pacs


@pytest.fixture
def fails(capsys):
    """What is printed by a command that exits with that status."""

    def run(status, *argv):
        with pytest.raises(SystemExit) as exited:
            main([*argv])
        assert exited.value.code == status
        return "".join(capsys.readouterr())

    return run


def entry_of(data, environment):
    (found,) = (
        entry
        for entry in entries(data / "features")
        if Path(entry.facts["folder"]).name == environment
    )
    return found


def make_partial(entry, rows):
    entry.path.rename(entry.part)
    (entry.part / "rows").write_text(str(rows))


def partial_with(data, rows):
    (found,) = (e for e in entries(data / "features") if not e.whole and e.done == rows)
    return found


def lines_by_environment(text):
    """The lines that name an environment of PACS, by its name."""
    return {
        line.split("PACS/")[1].split()[0].strip(":"): line
        for line in text.splitlines()
        if "PACS/" in line
    }


def test_a_run_reads_what_was_built(pacs, capsys, monkeypatch):
    main(["build", "--data_dir", str(pacs), "--dataset", "PACS", *EMOJI])
    *lines, total = capsys.readouterr().out.splitlines()
    assert [line.split(": ")[0] for line in lines] == [
        "PACS/art_painting",
        "PACS/cartoon",
        "PACS/photo",
        "PACS/sketch",
    ]
    assert "10 images, 8 x 128 float16, 0.0 MB in " in lines[0]
    assert total.startswith("4 environments, ")

    def refuse(self, x):
        raise AssertionError("computed again")

    monkeypatch.setattr(CLIPBackbone, "encode_image_layers", refuse)
    flags = ["--data_dir", str(pacs), "--dataset", "PACS", "--algorithm", "LFA"]
    assert len(training.Run(train.parse_args([*flags, *EMOJI])).stored) == 4
    main(["build", "--data_dir", str(pacs), "--dataset", "PACS", *EMOJI])
    vectors = ["--algorithm", "ERM", "--hparams", "clip_backbone=emoji"]
    vectors.append("input=features")
    main(["build", "--data_dir", str(pacs), "--dataset", "PACS", *vectors])
    assert capsys.readouterr().out.splitlines() == [*lines, total] * 2


def test_head2toe_trains_from_its_pooled_taps(pacs, tmp_path, capsys, monkeypatch):
    of = ["--data_dir", str(pacs), "--dataset", "PACS", "--algorithm", "Head2Toe"]
    main(["build", *of, *EMOJI])
    said = capsys.readouterr()
    assert "features of 40 images, 7,552 float16 each, take 0.6 MB in " in said.err
    assert said.out.count("10 images, 7552 float16, 0.2 MB in ") == 4
    main(["build", *of, *EMOJI, "h2t_target=128", "h2t_frac=0.5"])  # the same taps
    assert len(entries(pacs / "features")) == 4
    main(["build", *of, *EMOJI, "h2t_target=256"])
    kinds = [entry.facts["layers"] for entry in entries(pacs / "features")]
    assert sorted(kinds) == 4 * ["taps 128"] + 4 * ["taps 256"]
    main(["verify", *of, *EMOJI])
    main(["list", "--data_dir", str(pacs)])
    said = capsys.readouterr().out
    assert said.count(": whole\n") == 8
    assert said.count(" float16  10      7552 ") == 4

    def refuse(self, x):
        raise AssertionError("computed again")

    run = ["--steps", "6", "--test_envs", "0", "--num_workers", "0", *EMOJI]
    run += ["batch_size=4", "h2t_select_steps=3"]
    images = [*of, "--no_feature_store", "--output_dir", str(tmp_path / "images")]
    train.main([*images, *run])
    monkeypatch.setattr(Head2Toe, "tap", refuse)
    train.main([*of, "--output_dir", str(tmp_path / "stored"), *run])
    losses = [
        json.loads((tmp_path / name / "results.jsonl").read_text().splitlines()[-1])
        for name in ("images", "stored")
    ]
    assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-2)


def test_a_tower_that_trains_has_no_stored_taps(pacs, fails):
    of = ["--data_dir", str(pacs), "--dataset", "PACS", "--algorithm", "Head2Toe"]
    said = fails(2, "build", *of, *EMOJI, "h2t_finetune=true")
    assert "Head2Toe on PACS stores no features" in said
    assert not (pacs / "features").exists()


def test_build_goes_where_and_how_it_is_told(pacs, tmp_path):
    store = tmp_path / "other"
    hparams = ["--hparams", "clip_backbone=emoji", "feature_dtype=float32"]
    flags = ["--data_dir", str(pacs), "--feature_dir", str(store), *hparams]
    main(["build", "--dataset", "PACS", *flags])
    assert {entry.facts["dtype"] for entry in entries(store)} == {"float32"}
    assert not (pacs / "features").exists()


@pytest.mark.parametrize(
    "flags",
    [
        ["--dataset", "PACS", "--algorithm", "ERM"],
        ["--dataset", "Debug28"],
        ["--dataset", "PACS", *EMOJI, "clip_transform=false"],
    ],
)
def test_what_stores_no_features_says_so(pacs, fails, flags):
    said = fails(2, "build", "--data_dir", str(pacs), *flags)
    assert "stores no features" in said
    assert not (pacs / "features").exists()


@pytest.mark.parametrize("command", ["list", "verify", "prune"])
def test_a_store_that_is_not_there_is_named(tmp_path, fails, command):
    said = fails(2, command, "--feature_dir", str(tmp_path / "typo"))
    assert f"there are no stored features at {tmp_path / 'typo'}" in said
    assert not (tmp_path / "typo").exists()


def test_list_says_what_every_entry_is(built, capsys):
    make_partial(entry_of(built, "photo"), 4)
    make_partial(entry_of(built, "sketch"), 7)
    (entry_of(built, "cartoon").path / "facts.json").write_text("")
    (built / "features" / "notes").mkdir()
    with FileLock(partial_with(built, 7).claim.lock):
        main(["list", "--data_dir", str(built)])
    head, *lines, total = capsys.readouterr().out.splitlines()
    assert head.split()[:2] == ["key", "images"]
    assert len(lines) == 4
    by_name = lines_by_environment("\n".join(lines))
    assert by_name["art_painting"].endswith("0.0 days ago  whole")
    assert " float16  10      8 x 128  0.0 MB " in by_name["art_painting"]
    assert by_name["photo"].endswith("  partial, 4 done")
    assert by_name["sketch"].endswith("  being written, 7 done")
    (damaged,) = (line for line in lines if "PACS" not in line)
    assert "damaged: facts.json: " in damaged
    assert total.startswith("4 entries, 0.1 MB in ")


def test_hostile_names_stay_on_their_line(tmp_path, capsys):
    names = ["a\nb", 'it\'s "c"', "\x1b[31mred", os.fsdecode(b"\xff{}%s")]
    make_image_folder(tmp_path / "set", names, ["1\n2", "$(x)"], n=1)
    dataset = ["--dataset", f"ImageFolder:{tmp_path / 'set'}"]
    main(["build", "--feature_dir", str(tmp_path / "store"), *dataset, *EMOJI])
    built = capsys.readouterr().out
    main(["list", "--feature_dir", str(tmp_path / "store")])
    listed = capsys.readouterr().out
    main(["verify", "--feature_dir", str(tmp_path / "store"), *dataset, *EMOJI])
    verified = capsys.readouterr().out
    assert [text.count("\n") for text in (built, listed, verified)] == [5, 6, 4]
    for text in (built, listed, verified):
        assert "\x1b" not in text
        text.encode()  # no half characters
        assert r"set/a\nb" in text
    classes = {tuple(e.facts["classes"]) for e in entries(tmp_path / "store")}
    assert classes == {("$(x)", "1\n2")}


def test_verify_finds_nothing_wrong_with_what_was_built(built, capsys):
    make_partial(entry_of(built, "sketch"), 3)
    main(["verify", "--data_dir", str(built)])
    by_name = lines_by_environment(capsys.readouterr().out)
    assert by_name.pop("sketch").endswith(": partial, not checked")
    assert len(by_name) == 3
    assert all(line.endswith(": whole") for line in by_name.values())


def test_verify_names_what_is_wrong(built, fails):
    photo = entry_of(built, "photo")
    z = np.lib.format.open_memmap(photo.path / "z.npy", "r+")
    z[9, 7, 127] = np.nan
    z.flush()
    os.utime(next((built / "PACS" / "cartoon").glob("*/*.png")), (1, 1))
    by_name = lines_by_environment(fails(1, "verify", "--data_dir", str(built)))
    assert "images from 0 to 9 are not finite" in by_name["photo"]
    assert by_name["cartoon"].endswith(": its images have changed")
    assert by_name["sketch"].endswith(": whole")


def test_verify_computes_images_again(built, fails, capsys):
    flags = ["--data_dir", str(built), "--dataset", "PACS", *EMOJI]
    main(["verify", *flags])
    assert capsys.readouterr().out.count(": whole") == 4
    photo, sketch = entry_of(built, "photo"), entry_of(built, "sketch")
    z = np.lib.format.open_memmap(photo.path / "z.npy", "r+")
    z[[4, 5]] = z[[5, 4]]
    z.flush()
    y = np.load(sketch.path / "y.npy")
    np.save(sketch.path / "y.npy", y[::-1])
    main(["verify", "--data_dir", str(built)])  # nothing that the files alone tell
    capsys.readouterr()
    by_name = lines_by_environment(fails(1, "verify", *flags))
    for name in ("photo", "sketch"):
        assert "not what the backbone makes of its images" in by_name[name]
    assert by_name["cartoon"].endswith(": whole")


def test_an_environment_without_images_is_refused(tmp_path, fails):
    make_image_folder(tmp_path / "set", ["full"], ["1", "2"])
    make_image_folder(tmp_path / "set", ["empty"], ["1", "2"], n=0)
    flags = ["--dataset", f"ImageFolder:{tmp_path / 'set'}", *EMOJI]
    flags += ["--feature_dir", str(tmp_path / "store")]
    assert "'empty' in " in fails(2, "build", *flags)


def test_strict_entries_outlive_a_change_of_time(pacs, capsys):
    flags = ["--data_dir", str(pacs), "--dataset", "PACS", *EMOJI]
    strict = [*flags, "--strict_fingerprint"]
    main(["build", *strict])
    for image in (pacs / "PACS").glob("*/*/*.png"):
        os.utime(image, (1, 1))
    main(["verify", *strict])
    assert capsys.readouterr().out.count(": whole") == 4
    run = training.Run(train.parse_args([*strict, "--algorithm", "LFA"]))
    assert {items.z.filename.parent for items in run.stored} == {
        entry.path for entry in entries(pacs / "features")
    }


def test_verify_misses_a_datasets_entries(built, fails):
    os.utime(next((built / "PACS" / "cartoon").glob("*/*.png")), (1, 1))
    make_partial(entry_of(built, "photo"), 3)
    flags = ["--data_dir", str(built), "--dataset", "PACS", *EMOJI]
    lines = fails(1, "verify", *flags).splitlines()
    assert sum(line.endswith("cartoon: its images have changed") for line in lines) == 1
    assert sum(line.endswith("cartoon: not stored") for line in lines) == 1
    assert sum(line.endswith("photo: not stored") for line in lines) == 1


def spoil_some(built):
    """Whole but stale, partial, damaged, being written: one environment each."""
    os.utime(next((built / "PACS" / "cartoon").glob("*/*.png")), (1, 1))
    make_partial(entry_of(built, "photo"), 4)
    damaged = entry_of(built, "sketch")
    (damaged.path / "y.npy").unlink()
    make_partial(entry_of(built, "art_painting"), 7)
    return partial_with(built, 7)


def test_prune_removes_what_no_run_can_read(built, capsys):
    writing = spoil_some(built)
    foreign = built / "features" / "0123456789abcdef0"
    foreign.mkdir()
    with FileLock(writing.claim.lock):
        main(["prune", "--data_dir", str(built), "--skip_confirmation"])
    by_name = lines_by_environment(said := capsys.readouterr().out)
    assert by_name["cartoon"].endswith("its images have changed")
    assert by_name["photo"].endswith(": partial")
    assert "damaged: y.npy: " in by_name["sketch"]
    assert "art_painting" not in by_name
    assert "About to remove 3 of 4 entries, " in said
    assert [e.path for e in entries(built / "features")] == [writing.path]
    assert foreign.exists()
    main(["prune", "--data_dir", str(built), "--skip_confirmation"])
    assert not entries(built / "features")


def test_prune_asks_first(built, fails, capsys, monkeypatch):
    spoil_some(built)
    monkeypatch.setattr("builtins.input", lambda prompt: "n")
    assert "Nevermind!" in fails(0, "prune", "--data_dir", str(built))
    assert len(entries(built / "features")) == 4
    monkeypatch.setattr("builtins.input", lambda prompt: "y")
    main(["prune", "--data_dir", str(built)])
    assert not entries(built / "features")


def test_prune_leaves_what_is_written_since_it_asked(built, capsys, monkeypatch):
    writing = spoil_some(built)
    lock = FileLock(writing.claim.lock)
    monkeypatch.setattr("builtins.input", lambda prompt: lock.acquire() and "y")
    main(["prune", "--data_dir", str(built)])
    lock.release()
    assert f"{writing.key} stays: a process writes it now" in capsys.readouterr().out
    assert [e.path for e in entries(built / "features")] == [writing.path]


def test_prune_counts_days_from_the_last_read(built, capsys):
    long_ago = time.time() - 10 * 86_400
    for entry in entries(built / "features"):
        for file in entry.path.iterdir():
            os.utime(file, (long_ago, long_ago))
    entry_of(built, "photo").touch()
    prune = ["prune", "--data_dir", str(built), "--skip_confirmation", "--older_than"]
    main([*prune, "11"])
    assert len(entries(built / "features")) == 4
    capsys.readouterr()
    main([*prune, "9.5"])
    assert capsys.readouterr().out.count("last read 10.0 days ago") == 3
    assert [e.key for e in entries(built / "features")] == [
        entry_of(built, "photo").key
    ]


def test_a_run_that_reads_an_entry_keeps_it(built):
    long_ago = time.time() - 10 * 86_400
    for entry in entries(built / "features"):
        for file in entry.path.iterdir():
            os.utime(file, (long_ago, long_ago))
    flags = ["--data_dir", str(built), "--dataset", "PACS", "--algorithm", "LFA"]
    assert training.Run(train.parse_args([*flags, *EMOJI])).stored
    main(["prune", "--data_dir", str(built), "--skip_confirmation", "--older_than=9"])
    assert len(entries(built / "features")) == 4


def test_images_that_are_gone_make_an_entry_stale(built, capsys):
    (built / "PACS").rename(built / "moved")
    main(["prune", "--data_dir", str(built), "--skip_confirmation"])
    assert capsys.readouterr().out.count(": its images are gone") == 4
    assert not entries(built / "features")


@pytest.mark.parametrize("left", ["nothing", "an empty folder"])
def test_images_on_a_disk_that_is_not_mounted_keep_their_entries(
    built, tmp_path, left, capsys
):
    store = ["--feature_dir", str((built / "features").rename(tmp_path / "store"))]
    away = built.rename(tmp_path / "away")
    if left == "an empty folder":
        built.mkdir()
    main(["prune", *store, "--skip_confirmation"])
    assert "About to remove 0 of 4 entries" in capsys.readouterr().out
    assert len(entries(tmp_path / "store")) == 4
    main(["verify", *store])
    (away / "PACS" / "photo" / "dog" / "0.png").unlink()
    away.rename(built) if left == "nothing" else (away / "PACS").rename(built / "PACS")
    main(["prune", *store, "--skip_confirmation"])
    assert capsys.readouterr().out.count("its images have changed") == 1


def test_moved_images_that_are_known_by_content_keep_their_entries(
    pacs, tmp_path, monkeypatch, capsys
):
    store = str(tmp_path / "store")
    flags = ["--dataset", "PACS", *EMOJI, "--feature_dir", store]
    flags += ["--strict_fingerprint", "--num_workers", "0"]
    main(["build", "--data_dir", str(pacs), *flags])
    before = sorted(entry.key for entry in entries(Path(store)))
    moved = pacs.rename(tmp_path / "moved")
    monkeypatch.setattr("domainbed.features.store.extract", None)  # not again
    main(["build", "--data_dir", str(moved), *flags])
    assert sorted(entry.key for entry in entries(Path(store))) == before
    main(["prune", "--feature_dir", store, "--skip_confirmation"])
    assert "About to remove 0 of 4 entries" in capsys.readouterr().out
    folders = [Path(entry.facts["folder"]) for entry in entries(Path(store))]
    assert {folder.parent for folder in folders} == {moved / "PACS"}


def test_days_cannot_be_negative(built, fails):
    said = fails(2, "prune", "--data_dir", str(built), "--older_than=-1")
    assert "--older_than is -1.0; it must be at least 0" in said


def test_an_entry_of_another_version_is_damaged(built, capsys):
    entry = entry_of(built, "photo")
    facts = {name: v for name, v in entry.facts.items() if name != "classes"}
    (entry.path / "facts.json").write_text(json.dumps(facts))
    main(["list", "--data_dir", str(built)])
    assert "facts.json is not what this version writes" in capsys.readouterr().out


def test_without_docstrings_it_works(built):
    words = [sys.executable, "-OO", "-m", "domainbed.scripts.features", "list"]
    ended = subprocess.run(
        [*words, "--data_dir", str(built)], capture_output=True, text=True
    )
    assert ended.stdout.count("PACS/") == 4, ended.stderr
