"""What stands beside few-shot tables: protocols, and differences to a reference."""

import functools
import io
import json
from pathlib import Path
from statistics import fmean, pstdev

import pandas as pd
import pytest
from helpers import few_shot_run, status_of

from domainbed.lib.query import Q
from domainbed.scripts import collect_results
from domainbed.tables import few_shot
from domainbed.tables.few_shot_records import METHODS, protocols
from domainbed.tables.protocol import TOGETHER

LAST, IID = METHODS
NAMES = ["LFA", "CoOp", "ProLIP"]
FACTS = {"fingerprint": "d0", "split": "s0", "backbone": "e" * 16}
OTHER = {"backbone": "f" * 16}

run_main = functools.partial(status_of, collect_results.main)


def run(algorithm, hparams=(), facts=(), given=None, **args):
    """A run as `load_runs` has it, and what its run.json says.

    `given` is the prompt that --hparams said.
    """
    hparams = {"clip_backbone": "ViT-B/16", "prompt": "a {name}"} | dict(hparams)
    if given:
        hparams["prompt"] = given
        args["hparams"] = json.dumps({"prompt": given})
    args = {"trial_seed": 0, "shots": 4, "classes": "all"} | args
    args |= {"dataset": "OxfordPets", "algorithm": algorithm, "test_envs": [1]}
    return Q([{"args": args, "hparams": hparams}]), FACTS | dict(facts)


def rows(*runs, method=LAST):
    """`protocols` of such runs."""
    made = {Path(str(i)): facts for i, (_, facts) in enumerate(runs)}
    loaded = [(folder, own) for folder, (own, _) in zip(made, runs, strict=True)]
    return protocols(loaded, made, method)


def apart(*runs, method=LAST, labels=NAMES, shots=4):
    own = rows(*runs, method=method)["all", shots, "", "", "OxfordPets"]
    return few_shot.apart({"OxfordPets": own}, pd.DataFrame({"algorithm": labels}))


TWO = [run(name) for name in NAMES[1:]]


@pytest.mark.parametrize(
    "other, change, usual",
    [
        ({"facts": OTHER}, "backbone CLIP ViT-B/16 ffff", "backbone CLIP ViT-B/16 eee"),
        ({"facts": {"fingerprint": "d1"}}, "data d1", "data d0."),
        ({"facts": {"split": "s1"}}, "split s1", "split s0."),
        ({"steps": 9}, "steps 9", "steps of the method's own epochs."),
        ({"hparams": {"train_on_val": True}}, "held out nothing", "held out the val"),
        ({"given": "{name}"}, "prompt {name}", "prompt the method's own."),
    ],
)
def test_each_column_sets_a_row_apart_and_is_named(other, change, usual):
    found = apart(*TWO, run("LFA", **other))
    assert found.names == {"LFA"} and found.marks == {"LFA": " †"}
    assert f"of another protocol: LFA ({change}" in found.why
    assert f"; what is ranked has {usual}" in found.why


@pytest.mark.parametrize(
    "other",
    [
        run("LFA", trial_seed=1, facts={"fingerprint": "d1", "split": "s1"}),
        run("LFA", facts={"fingerprint": "", "split": ""}),  # not known: no difference
        run(
            "LFA", {"epochs": 9, "batch_size": 1, "schedule": "cosine", "augment": True}
        ),
        run("LFA", {"prompt": "{name}."}),  # by default
        run("LFA", checkpoint_freq=3),  # the last step is the last
    ],
)
def test_what_is_the_methods_own_or_drawn_sets_nothing_apart(other):
    assert apart(*TWO, other) == TOGETHER


def test_shots_classes_and_sources_are_drawn_on_their_own():
    others = [
        run("LFA", facts={"fingerprint": name, "split": name}, trial_seed=t, **args)
        for t in (0, 1)
        for name, args in {
            "a": {"shots": 8},
            "b": {"classes": "base"},
            "c": {"source": "noto"},
            "d": {"transfer_to": ["EuroSAT"]},
        }.items()
    ]
    assert len(rows(*TWO, *others)) == 5
    # LFA has a trial more; its images are others, and no other run of it is there.
    more = run("LFA", trial_seed=1, facts={"fingerprint": "d1", "split": "s1"})
    assert apart(*TWO, run("LFA"), more, *others) == TOGETHER


def test_where_a_step_is_chosen_from_counts_for_validation_alone():
    found = apart(*TWO, run("LFA", checkpoint_freq=3), method=IID)
    assert "LFA (steps of the method's own epochs, chosen from every 3th)" in found.why


def test_rows_that_chose_on_test_data_keep_their_own_mark():
    published = run("GDA", {"as_published": True})
    found = apart(*TWO, published, labels=[*NAMES[1:], "GDA *"])
    assert found.names == {"GDA *"} and not found.marks
    assert "GDA * (selection the released code's); what is" in found.why
    tip = run("TipAdapter", {"as_published": True})
    assert apart(published, tip, labels=["GDA *", "TipAdapter *"]) == TOGETHER


DATASETS, TRIALS = ("OxfordPets", "EuroSAT"), (0, 1, 2)
# Of each method, dataset and trial: base and new accuracy, in percent.
ACCS = {
    name: {
        (d, t): (b + 5 * i + t**2, n - 3 * i * t)
        for i, d in enumerate(DATASETS)
        for t in TRIALS
    }
    for name, b, n in (("ZeroShotCLIP", 50, 60), ("LFA", 70, 50), ("GDA", 40, 30))
}


def sweep(folder, backbones=("e", "e", "e"), names=(*ACCS,), left_out=()):
    """Base-to-new runs of those accuracies, with the CLIP that each method reads.

    `left_out` are (method, dataset, trial).
    """
    for name, digit in zip(names, backbones, strict=False):
        for (dataset, trial), accs in ACCS[name].items():
            if (name, dataset, trial) in left_out:
                continue
            facts = {"classes": "base", "hparams": {"clip_backbone": "ViT-B/16"}}
            accs = [acc / 100 for acc in accs]
            few_shot_run(folder, dataset, name, accs, trial, **facts)
            place = {"dataset": dataset, "trial_seed": trial, "test_envs": [1, 2]}
            about = {"args": place | {"shots": 4, "classes": "base"}, "git": None}
            about |= {"versions": {"torch": "2", "domainbed": "1"}, "device": "cpu"}
            about |= {"dataset": f"d{trial}", "split": f"s{trial}"}
            file = folder / f"{dataset}{name}{trial}40" / "run.json"
            file.write_text(json.dumps(about | {"backbone": 16 * digit}))
    return folder


@pytest.fixture
def show(capsys):
    """What collect_results prints of a folder."""

    def shown(folder, *flags):
        assert run_main("--input_dir", folder, *flags) == 0
        return capsys.readouterr().out

    return shown


def blocks(text):
    """The parts of text tables, by their first line."""
    parts = (part.strip("\n") for part in text.split("\n\n"))
    return {part.splitlines()[0]: part for part in parts}


def test_rows_of_another_protocol_are_ranked_in_no_format(tmp_path, show):
    mixed = sweep(tmp_path / "mixed", "eef")
    own = "GDA (backbone CLIP ViT-B/16 ffffffff)"
    why = f"† not ranked, for it is of another protocol: {own}; what is ranked has"
    plain = show(sweep(tmp_path / "same"))
    text = show(mixed)
    assert text.count(why) == 3  # of two datasets and their averages
    kept = [line for line in text.splitlines() if not line.startswith("†")]
    kept = "\n".join(kept).replace("GDA †", "GDA  ").replace("\n\n\n", "\n\n")
    assert kept.rstrip() == plain.rstrip()
    assert r"GDA \dag{}" in show(mixed, "--latex")
    assert r"\dag{} not ranked" in show(mixed, "--latex")
    for form in ("markdown", "html"):
        text = show(mixed, "--format", form)
        assert text.count(why) == 3 and text.count("GDA †") == 3
        assert "†" not in show(tmp_path / "same", "--format", form)


def test_digests_are_alike_where_protocols_are(tmp_path, show):
    csv = show(sweep(tmp_path / "s", "eef"), "--format", "csv")
    frame = pd.read_csv(io.StringIO(csv))
    for _, own in frame.groupby("dataset"):
        digests = own.groupby("algorithm")["protocol_digest"].agg(set)
        assert digests["LFA"] == digests["ZeroShotCLIP"] != digests["GDA"]
        assert all(len(each) == 1 for each in digests)
    assert frame["protocol_digest"].nunique() == 4  # the datasets', and over both


def test_what_runs_have_not_in_common_is_said_beside_the_tables(tmp_path, capsys):
    folder = sweep(tmp_path / "s")
    file = folder / "EuroSATGDA040" / "run.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"split": "other"}))
    more = tmp_path / "more"
    few_shot_run(more, "EuroSAT", "LFA", [0.5, 0.6], classes="base", seed=7)
    assert run_main("--input_dir", folder, more) == 0
    again, unknown, splits = capsys.readouterr().err.splitlines()
    assert "EuroSAT, LFA" in again and "--seed was 0 and is 7" in again
    assert "1 of 19 runs do not say what they were made from" in unknown
    assert "EuroSAT in trial 0, test environments [1, 2], shots 4, classes" in splits
    assert run_main("--input_dir", folder, more, "--quiet") == 0
    assert not capsys.readouterr().err


def h(base, new):
    return 2 * base * new / (base + new)


def error(values):
    return pstdev(values) / len(values) ** 0.5


def expected(reference):
    """{(dataset, method, column): (difference, error)}, restated from ACCS."""
    found = {}
    for name, own in ACCS.items():
        means = {}
        for dataset in DATASETS:
            pairs = [own[dataset, t] for t in TRIALS]
            theirs = [ACCS[reference][dataset, t] for t in TRIALS]
            for k, column in enumerate(("base", "new")):
                gaps = [a[k] - b[k] for a, b in zip(pairs, theirs, strict=True)]
                found[dataset, name, column] = fmean(gaps), error(gaps)
            means[dataset] = [
                [fmean(pair[k] for pair in each) for k in (0, 1)]
                for each in (pairs, theirs)
            ]
            found[dataset, name, "H"] = (
                h(*means[dataset][0]) - h(*means[dataset][1]),
                None,
            )
        over = [
            [fmean(means[d][side][k] for d in DATASETS) for k in (0, 1)]
            for side in (0, 1)
        ]
        for k, column in enumerate(("base", "new")):
            found["Avg", name, column] = over[0][k] - over[1][k], None
        found["Avg", name, "H"] = h(*over[0]) - h(*over[1]), None
    return found


def test_differences_are_those_of_a_plain_restatement(tmp_path, show):
    csv = show(sweep(tmp_path / "s"), "--format", "csv", "--reference", "LFA")
    rows = pd.read_csv(io.StringIO(csv))
    rows = rows.set_index(["dataset", "algorithm", "environment"])
    cells = expected("LFA")
    assert {*rows.index} == {*cells}
    for place, (difference, err) in cells.items():
        assert rows.at[place, "difference"] == pytest.approx(difference, abs=1e-9)
        found = rows.at[place, "difference_error"]
        assert (
            found == pytest.approx(err, abs=1e-9) if err is not None else found != found
        )
    assert (rows.xs("LFA", level="algorithm")["difference"] == 0).all()
    plain = pd.read_csv(io.StringIO(show(tmp_path / "s", "--format", "csv")))
    assert csv.replace(",difference,difference_error", "") != csv
    pd.testing.assert_frame_equal(plain, rows.reset_index()[[*plain]])


def test_a_reference_brings_a_table_below_each(tmp_path, show):
    folder = sweep(tmp_path / "s", "eef")
    plain, text = (blocks(show(folder, *f)) for f in ((), ("--reference", "LFA")))
    new = [title for title in text if title not in plain]
    assert [title.split(",")[0] for title in new] == [
        *("-------- Dataset: OxfordPets", "-------- Dataset: EuroSAT"),
        "-------- Averages",
    ]
    assert all(", less LFA, model selection" in title for title in new)
    assert {title: text[title] for title in plain} == plain
    gaps = expected("LFA")
    table = [line.split() for line in text[new[0]].splitlines()[2:]]
    assert [row[0] for row in table] == ["ZeroShotCLIP", "GDA"]
    (base, err), (both, _) = (gaps["OxfordPets", "GDA", k] for k in ("base", "H"))
    assert table[1][2:5] == [f"{base:+.1f}", "+/-", f"{err:.1f}"]
    assert table[1][-1] == f"{both:+.1f}"
    for form in ("markdown", "html"):
        text = show(folder, "--reference", "LFA", "--format", form)
        assert text.count(", less LFA, model selection") == 3
        assert text.count("Differences to LFA in points, trial by trial. † not") == 3
        below = text.split("less LFA")[1]
        assert f"{base:+.1f} ± {err:.1f}" in below.replace("\\", "")
    below = show(folder, "--latex", "--reference", "LFA").split(
        r"\subsubsection{Dataset: OxfordPets, 4 shots, base classes, less LFA}"
    )[1]
    assert rf"{base:+.1f} $\pm$ {err:.1f} " in below


def test_trials_that_the_reference_lacks_are_left_out(tmp_path, show):
    folder = sweep(tmp_path / "s", left_out={("LFA", "EuroSAT", 2)})
    rows = pd.read_csv(
        io.StringIO(show(folder, "--format", "csv", "--reference", "LFA"))
    )
    rows = rows.set_index(["dataset", "algorithm", "environment"])
    gaps = [ACCS["GDA"]["EuroSAT", t][0] - ACCS["LFA"]["EuroSAT", t][0] for t in (0, 1)]
    found = rows.loc[("EuroSAT", "GDA", "base")]
    assert found["difference"] == pytest.approx(fmean(gaps))
    assert found["difference_error"] == pytest.approx(error(gaps))
    assert found["trials"] == 3


def test_where_the_reference_lacks_a_dataset_there_are_no_averages_less_it(
    tmp_path, show
):
    left_out = {("LFA", "EuroSAT", trial) for trial in TRIALS}
    folder = sweep(tmp_path / "s", left_out=left_out)
    text = show(folder, "--reference", "LFA")
    assert "Dataset: OxfordPets, 4 shots, base classes, less LFA" in text
    assert text.count("less LFA") == 1


def test_a_reference_that_is_not_there_is_refused(tmp_path, capsys):
    folder = sweep(tmp_path / "s", names=["LFA", "GDA"])
    few_shot_run(folder, "OxfordPets", "GDA", [0.5], hparams={"as_published": True})
    for asked, meant in {"LFB": "LFA", "gda*": "GDA *"}.items():
        assert run_main("--input_dir", folder, "--reference", asked) == 2
        said = capsys.readouterr()
        assert f"Did you mean {meant!r}?" in said.err and not said.out
