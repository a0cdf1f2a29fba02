"""Chosen runs are compared image by image, and what cannot be compared is named."""

import functools
import json
import re
import shutil

import numpy as np
import pytest
from helpers import status_of

from domainbed.runs import predictions
from domainbed.scripts import compare

run_main = functools.partial(status_of, compare.main)


def write_run(
    folder, algorithm, env, trial, right, step=5, data="d", labels=None, **more
):
    """A run whose answers to the in-split of its test domain are right or not."""
    n = len(right)
    labels = np.arange(n) % 3 if labels is None else labels
    answer = np.where(right, labels, (labels + 1) % 3)
    noted = predictions.Answers(
        env, "in", np.arange(n), labels, answer, *np.zeros((2, n))
    )
    folder.mkdir(parents=True)
    facts = {"data": data, "classes": 3}
    sizes = [n + 5] * 4
    predictions.keep(folder / predictions.NAME, [noted], sizes, facts, step, step)
    args = {"dataset": "PACS", "algorithm": algorithm, "test_envs": [env]}
    args |= {"trial_seed": trial, "hparams_seed": 0} | more
    accs = {f"env{i}_{part}_acc": 0.5 for i in range(4) for part in ("in", "out")}
    accs[f"env{env}_in_acc"] = float(np.mean(right))
    lines = [
        json.dumps(
            {"step": s, "args": args, "hparams": {}, **accs}
            | {"env0_out_acc": 0.5 + 0.1 * (s == step)}
        )
        for s in (0, step)
    ]
    (folder / "results.jsonl").write_text("\n".join(lines) + "\n")


@pytest.fixture
def sweep(tmp_path):
    r = np.random.default_rng(0)
    for algorithm, accuracy in (("ERM", 0.5), ("LFA", 0.75), ("MIRO", 0.5)):
        for env in range(1, 4):
            for trial in range(2):
                folder = tmp_path / "sweep" / f"{algorithm}{env}{trial}"
                write_run(folder, algorithm, env, trial, r.random(400) < accuracy)
    return tmp_path / "sweep"


def test_every_pair_is_compared(sweep, capsys):
    names = ("ERM", "LFA", "MIRO")
    assert run_main("--input_dir", sweep, "--algorithms", *names) == 0
    out, err = capsys.readouterr()
    assert err == ""
    titles = [line for line in out.splitlines() if line.startswith("--------")]
    assert titles[0] == (
        "-------- PACS: ERM and LFA, chosen by training-domain validation set"
    )
    assert len(titles) == 3
    first = out.split("--------")[1].splitlines()
    assert [line.split(":")[0] for line in first[1:6]] == [
        *("C", "P", "S"),
        "all, these domains and trials",
        "all, other domains and trials too",
    ]
    assert all("ERM is worse than LFA by " in line for line in first[1:6])
    assert "all, other domains and trials too: ERM and MIRO cannot be told apart" in out
    assert "3 comparisons, each on its own" in out


def test_a_run_without_predictions_is_named_and_the_rest_stands(sweep, capsys):
    (sweep / "LFA10" / predictions.NAME).unlink()
    assert run_main("--input_dir", sweep, "--algorithms", "ERM", "LFA") == 0
    out, err = capsys.readouterr()
    assert "1 chosen runs have no predictions of the step that counts" in err
    assert f"{sweep / 'LFA10'} (step 5)" in err
    assert "C: ERM is worse" in out  # by the other trial
    for file in sweep.glob(f"LFA*/{predictions.NAME}"):
        file.unlink()
    assert run_main("--input_dir", sweep, "--algorithms", "ERM", "LFA") == 2
    assert "no two runs have predictions" in capsys.readouterr().err


@pytest.mark.parametrize("other", [{"data": "other"}, {"labels": np.zeros(400, int)}])
def test_other_images_are_refused_with_both_digests(other, sweep, capsys):
    shutil.rmtree(sweep / "LFA31")
    write_run(sweep / "LFA31", "LFA", 3, 1, np.ones(400, bool), **other)
    assert run_main("--input_dir", sweep, "--algorithms", "ERM", "LFA") == 2
    err = capsys.readouterr().err
    assert (
        "ERM and LFA were tested on other images, or in another order, in test " in err
    )
    digests = err.split("trial 1: ")[1].split(".")[0].split(" and ")
    assert digests[0] != digests[1]


def test_few_shots_are_compared_by_their_number(tmp_path, capsys):
    """Of each test, at the last epoch."""
    few = {"task": "few_shot", "dataset": "EmojiDG", "source": "noto", "classes": "all"}
    for shots, n_right in ((4, 60), (16, 90)):
        for name, n in (("GDA", 50), ("LFA", n_right)):
            own = few | {"shots": shots}
            folder, right = tmp_path / f"{name}{shots}", np.arange(100) < n
            write_run(folder, name, 1, 0, right, data=str(shots), **own)
    assert run_main("--input_dir", tmp_path, "--algorithms", "GDA", "LFA") == 0
    said = capsys.readouterr().out
    titles = re.findall("-------- (.*)", said)
    assert titles == [
        f"EmojiDG, {shots} shots, all classes, from noto: GDA and LFA, chosen by last "
        "epoch"
        for shots in (4, 16)
    ]
    points = re.findall(r"fluent: GDA is worse than LFA by ([\d.]+) points", said)
    assert points == ["10.0", "40.0"]
    refused = ("--algorithms", "GDA", "LFA", "--selection", "oracle")
    assert run_main("--input_dir", tmp_path, *refused) == 2
    assert "chosen by iid or last_epoch" in capsys.readouterr().err


def test_two_sweeps_are_compared_and_may_be_moved(sweep, tmp_path, capsys):
    shutil.copytree(sweep, tmp_path / "again")
    flags = (
        "--input_dir",
        sweep,
        "--algorithms",
        "LFA",
        "--versus",
        tmp_path / "again",
    )
    assert run_main(*flags) == 0
    out = capsys.readouterr().out
    assert (
        f"LFA and LFA of {tmp_path / 'again'} cannot be told apart: 0.0 points" in out
    )


def test_another_protocol_is_told(sweep, capsys):
    for file in sweep.glob("LFA*/results.jsonl"):
        lines = map(json.loads, file.read_text().splitlines())
        held = [line["args"].update(holdout_fraction=0.1) or line for line in lines]
        file.write_text("".join(json.dumps(line) + "\n" for line in held))
    names = ("ERM", "LFA", "MIRO")
    assert run_main("--input_dir", sweep, "--algorithms", *names) == 0
    told = "Their protocols differ: held out 0.2 against 0.1."
    parts = capsys.readouterr().out.split("--------")[1:]
    assert [told in part for part in parts] == [True, False, False]
    assert "Their protocols differ: held out 0.1 against 0.2." in parts[2]


@pytest.mark.parametrize(
    "flags, sentence",
    [
        (["--algorithms", "LFA"], "--algorithms needs two names"),
        (["--algorithms", "LFA", "LFB"], "Did you mean 'LFA'?"),
        (["--algorithms", "LFA", "ERM", "--resamples", "3"], "at least 100"),
        (["--algorithms", "LFA", "ERM", "--resamples", "1" * 12], "at most 1000000"),
        (["--algorithms", "LFA", "ERM", "--selection", "lid"], "Did you mean 'iid'?"),
    ],
)
def test_what_is_wrong_is_one_sentence(flags, sentence, sweep, capsys):
    assert run_main("--input_dir", sweep, *flags) == 2
    assert sentence in capsys.readouterr().err
    assert run_main("--input_dir", sweep / "no", "--algorithms", "A", "B") == 2
    assert f"{sweep / 'no'} is no folder" in capsys.readouterr().err
    assert run_main("--input_dir", sweep, "--algorithms", "LFA", "--versus", "no") == 2
    assert "--versus no is no folder" in capsys.readouterr().err
