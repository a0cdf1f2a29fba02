"""What runs share that fork from one process: the same numbers, read once."""

import json
import os
from pathlib import Path

from helpers import lines

from domainbed import training
from domainbed.features import entries
from domainbed.inputs import RunInputs
from domainbed.launchers import forks
from domainbed.lib import once
from domainbed.scripts import train

SMALL = json.dumps({"clip_backbone": "emoji", "batch_size": 4})


def flags(pacs, folder, **more):
    own = {"dataset": "PACS", "data_dir": pacs, "algorithm": "LFA", "hparams": SMALL}
    own |= {"steps": 3, "num_workers": 0, "output_dir": folder} | more
    return [word for name, value in own.items() for word in (f"--{name}", str(value))]


def test_a_run_finds_what_was_read_before_it_and_the_same_numbers(
    pacs, tmp_path, monkeypatch
):
    train.main(flags(pacs, tmp_path / "alone"))
    monkeypatch.setattr(once, "MADE", None)
    once.remember()
    with monkeypatch.context() as patch:
        patch.setattr("torch.cuda.is_available", None)  # a fork could not use it then
        RunInputs(train.parse_args(flags(pacs, tmp_path / "any", seed=3))).share()

    def looked(*args):
        raise AssertionError("it looks at the images again")

    monkeypatch.setattr("domainbed.datasets.pictures", looked)
    monkeypatch.setattr(entries, "digest", looked)
    for i in range(2):
        train.main(flags(pacs, tmp_path / str(i)))
        assert lines(tmp_path / str(i)) == lines(tmp_path / "alone")


def test_a_launch_sees_the_images_as_they_were_the_next_one_as_they_are(
    pacs, tmp_path, monkeypatch
):
    args = train.parse_args(flags(pacs, tmp_path / "run"))

    def key():
        run = training.Run(args)
        return run.about["dataset"], entries.digest_files(run.dataset[0], False)

    monkeypatch.setattr(once, "MADE", None)
    once.remember()
    before = key()
    first = Path(training.Run(args).dataset[0].samples[0][0])
    os.utime(first, (1, 1))
    first.with_name("new.png").write_bytes(first.read_bytes())
    assert key() == before
    monkeypatch.setattr(once, "MADE", None)
    now = key()
    assert now[0] != before[0] and now[1] != before[1]


def test_one_run_of_each_dataset_and_algorithm_is_read_for(monkeypatch):
    kinds = [(d, a) for d in ("PACS", "VLCS") for a in ("LFA", "ERM")]
    commands = [
        " ".join([*forks.TRAIN, "--algorithm", a, "--dataset", d, "--seed", str(seed)])
        for seed in range(3)
        for d, a in kinds
    ]
    assert forks.of_each_kind(commands) == commands[:4]
    monkeypatch.setattr(forks, "LONGEST", 2 * len(commands[0]) + 3)
    assert forks.of_each_kind(commands) == commands[:2]
