"""Tables of few-shot runs."""

import io
import json

import pandas as pd
import pytest
from helpers import few_shot_run as write

from domainbed.scripts import collect_results

ACCS = {"LFA": (0.8, 0.6), "ZeroShotCLIP": (0.5, 0.7)}


def tables(folder, capsys, *flags):
    collect_results.main(["--input_dir", str(folder), *flags])
    return capsys.readouterr().out


def row(text, title, algorithm):
    """The row of that algorithm in the table of that title, in words."""
    lines = text[text.index(f"-------- {title}") :].splitlines()
    return next(line for line in lines[1:] if line.startswith(algorithm)).split()


def test_base_to_new_has_h_of_means_and_of_averages(tmp_path, capsys):
    for trial, shift in enumerate((0.0, 0.1)):
        for name, (base, new) in ACCS.items():
            for dataset, more in (("OxfordPets", 0.0), ("EuroSAT", 0.05)):
                accs = (base + shift + more, new - more)
                write(tmp_path, dataset, name, accs, trial, classes="base")
    text = tables(tmp_path, capsys)
    title = "Dataset: OxfordPets, 4 shots, base classes"
    h = 2 * 85 * 60 / (85 + 60)
    assert row(text, title, "LFA")[1:] == [
        *["85.0", "+/-", "3.5", "60.0", "+/-", "0.0"],
        f"{h:.1f}",
    ]
    b, n = (85 + 90) / 2, (60 + 55) / 2
    expected = [f"{b:.1f}", f"{n:.1f}", f"{2 * b * n / (b + n):.1f}"]
    assert row(text, "Averages, 4 shots, base", "LFA")[1:] == expected
    assert "standard error over trials (papers print the standard deviation)" in text


def test_a_block_for_each_number_of_shots_and_a_column_per_dataset(tmp_path, capsys):
    for k in (4, 16):
        for name, (acc, other) in ACCS.items():
            write(tmp_path, "OxfordPets", name, [acc + k / 100], shots=k)
            write(tmp_path, "UCF101", name, [other], shots=k)
    text = tables(tmp_path, capsys)
    assert text.index("4 shots, all classes") < text.index("16 shots, all classes")
    averages = row(text, "Averages, 16 shots", "LFA")
    assert averages[1::3] == ["96.0", "60.0", "78.0"]
    assert "\\begin{tabular}" in tables(tmp_path, capsys, "--latex")


def test_tests_of_houses_and_targets_have_their_names(tmp_path, capsys):
    facts = {"source": "noto", "transfer_to": ["EuroSAT", "UCF101"]}
    write(tmp_path, "EmojiDG", "LFA", [0.1, 0.2, 0.3, 0.4, 0.5, 0.7], **facts)
    text = tables(tmp_path, capsys)
    title = "Dataset: EmojiDG, 4 shots, all classes, from noto"
    header = row(text, title, "Algorithm")
    houses = ["fluent", "noto", "openmoji", "twemoji"]
    assert header[1:] == [*houses, "EuroSAT", "UCF101", "Avg", "of", "targets"]
    cells = row(text, title, "LFA")[1::3]
    assert cells == [f"{n}.0" for n in (10, 20, 30, 40, 50, 70, 60)]
    write(tmp_path / "own", "EmojiDG", "LFA", [0.1, 0.2, 0.3, 0.4], source="noto")
    text = tables(tmp_path / "own", capsys)
    assert row(text, title, "LFA")[1::3] == [f"{n}.0" for n in (10, 20, 30, 40, 25)]


def test_runs_with_and_without_targets_have_tables_of_their_own(tmp_path, capsys):
    write(tmp_path / "a", "OxfordPets", "LFA", [0.4])
    write(tmp_path / "b", "OxfordPets", "LFA", [0.5, 0.6], transfer_to=["EuroSAT"])
    (tmp_path / "b" / "OxfordPetsLFA040").rename(tmp_path / "a" / "other")
    text = tables(tmp_path / "a", capsys, "--format", "markdown")
    titles = [line for line in text.splitlines() if line[:1] == "#"]
    assert ["to EuroSAT" in title for title in titles] == [False, True]


def test_halves_of_several_tests_are_averaged_before_h(tmp_path, capsys):
    accs = [0.6, 0.1, 0.8, 0.3, 0.6, 0.1, 0.8, 0.3]  # base, new of each house
    write(tmp_path, "EmojiDG", "LFA", accs, source="noto", classes="base")
    text = tables(tmp_path, capsys)
    title = "Dataset: EmojiDG, 4 shots, base classes, from noto"
    assert row(text, title, "Algorithm")[-3:] == ["base", "new", "H"]
    h = f"{2 * 70 * 20 / 90:.1f}"
    assert row(text, title, "LFA")[-7::3] == ["70.0", "20.0", h]


def test_the_last_step_counts_and_the_draw_best_on_validation(tmp_path, capsys):
    write(tmp_path, "OxfordPets", "LFA", [0.9], step=3)
    write(tmp_path, "OxfordPets", "LFA", [0.7], step=9)
    write(tmp_path, "OxfordPets", "GDA", [0.6], hparams={"as_published": True})
    text = tables(tmp_path, capsys)
    assert row(text, "Dataset: OxfordPets", "LFA")[1] == "70.0"
    assert row(text, "Dataset: OxfordPets", "GDA *")[2:] == ["60.0", "+/-", "0.0"]
    assert "* chose as its released code does" in text


def test_few_shot_runs_have_tables_of_their_own(tmp_path, capsys):
    write(tmp_path, "OxfordPets", "LFA", [0.9])
    for flags, message in {
        ("--paper",): "no tables in the format paper; --latex has them",
        ("--selection", "oracle"): "chosen by iid or last_epoch, not by oracle",
    }.items():
        with pytest.raises(SystemExit):
            collect_results.main(["--input_dir", str(tmp_path), *flags])
        assert message in capsys.readouterr().err
    write(tmp_path, "PACS", "LFA", [0.9], task="domain_generalization")
    with pytest.raises(SystemExit):
        collect_results.main(["--input_dir", str(tmp_path)])
    assert "stand beside others" in capsys.readouterr().err


def test_published_rows_stand_below_a_rule(tmp_path, capsys):
    write(tmp_path / "s", "OxfordPets", "LFA", (0.8, 0.6), classes="base")
    write(tmp_path / "s", "OxfordPets", "LFA", (0.8, 0.6), classes="base", shots=1)
    file = tmp_path / "theirs.csv"
    file.write_text(
        "method,dataset,shots,classes,base,new\nMaPLe,OxfordPets,4,base,95.43,97.76\n"
    )
    text = tables(tmp_path / "s", capsys, "--baseline", str(file))
    four = text[text.index("-------- Dataset: OxfordPets, 4 shots") :]
    cells = row(four, "Dataset: OxfordPets", "MaPLe")[1:]
    assert cells == ["95.4", "97.8", "96.6"]
    assert text.count("MaPLe") == 1  # not below those of one shot
    own = tables(tmp_path / "s", capsys)
    assert "".join(line for line in own.splitlines(True) if line in text) == own
    file.write_text("method,dataset,shots,classes,base\nX,EuroSAT,4,base,95.43\n")
    with pytest.raises(SystemExit):
        tables(tmp_path / "s", capsys, "--baseline", str(file))
    said = capsys.readouterr()
    assert "has no figures for these datasets, shots and classes" in said.err
    assert not said.out


def test_the_step_best_on_the_validation_shots_can_be_chosen(tmp_path, capsys):
    for step, acc, val in ((3, 0.9, 0.6), (9, 0.7, 0.5)):
        write(tmp_path, "OxfordPets", "LFA", [acc], step=step, val=val)
    for name, found in {"iid": "90.0", "last_epoch": "70.0"}.items():
        text = tables(tmp_path, capsys, "--selection", name)
        assert row(text, "Dataset: OxfordPets", "LFA")[1] == found
    assert "model selection method: last epoch" in text
    write(tmp_path / "no", "ImageNet", "LFA", [0.9], val=None)
    with pytest.raises(SystemExit):
        tables(tmp_path / "no", capsys, "--selection", "iid")
    said = "no run has the accuracies that training-domain validation set needs"
    assert said in capsys.readouterr().err
    assert "90.0" in tables(tmp_path / "no", capsys)


def test_every_format_has_the_same_figures(tmp_path, capsys):
    for k in (4, 16):
        for dataset, more in (("OxfordPets", 0.0), ("EuroSAT", 0.05)):
            for trial in (0, 1):
                accs = (0.5 + k / 100 + trial / 10, 0.4 - more)
                write(tmp_path, dataset, "GDA", accs, trial, shots=k, classes="base")
    write(tmp_path, "EuroSAT", "LFA", (0.5, 0.5), shots=4, classes="base")
    rows = pd.read_csv(io.StringIO(tables(tmp_path, capsys, "--format", "csv")))
    assert rows.columns.tolist() == [
        *("dataset", "classes", "shots", "drawn_from", "transfer_to", "algorithm"),
        *("environment", "selection", "mean", "standard_error", "trials", "source"),
        *("protocol", "protocol_digest"),
    ]
    objects = json.loads(tables(tmp_path, capsys, "--format", "json"))
    assert len(objects) == len(rows) == 2 * (2 * 3 + 3) + 3
    found = rows.set_index(["dataset", "shots", "algorithm", "environment"])
    found = found.sort_index()
    own = found.loc["OxfordPets", 16, "GDA"]
    assert own["mean"].to_dict() == pytest.approx(
        {"base": 71, "new": 40, "H": 2 * 71 * 40 / 111}
    )
    assert own["standard_error"]["base"] == pytest.approx(5 / 2**0.5)
    assert own["trials"].tolist() == [2, 2, 2]
    over = found.loc["Avg", 4, "GDA"]["mean"]
    assert over.to_dict() == pytest.approx(
        {"base": 59, "new": 37.5, "H": 2 * 59 * 37.5 / 96.5}
    )
    assert ("Avg", 4, "LFA") not in found.index.droplevel("environment")
    for form, heading in (("markdown", "## Averages"), ("html", "<h2>Averages")):
        text = tables(tmp_path, capsys, "--format", form)
        assert "over trials (papers print the standard deviation)" in text
        assert f"{heading}, 4 shots, base classes, model selection: last" in text
        assert "71.0 ± 3.5" in text and f"{2 * 59 * 37.5 / 96.5:.1f}" in text
        assert text.count("X") >= 3  # of LFA's averages


def test_csv_says_which_dataset_a_column_of_the_averages_was(tmp_path, capsys):
    for dataset, acc in (("OxfordPets", 0.5), ("EuroSAT", 0.7)):
        write(tmp_path, dataset, "LFA", [acc])
    rows = pd.read_csv(io.StringIO(tables(tmp_path, capsys, "--format", "csv")))
    cells = rows[["dataset", "environment", "mean"]].to_numpy().tolist()
    assert cells == [
        ["OxfordPets", "test", 50.0],
        ["EuroSAT", "test", 70.0],
        ["Avg", "Avg", 60.0],
    ]


def test_tests_of_what_is_not_here_have_numbers_or_the_names_of_their_records(
    tmp_path, capsys
):
    write(tmp_path, "Theirs", "LFA", [0.5, 0.7])
    text = tables(tmp_path, capsys)
    header = row(text, "Dataset: Theirs, 4 shots", "Algorithm")
    assert header[1:] == ["env1", "env2", "Avg"]
    noted = {"environments": ["shots", "exam"]}
    write(tmp_path / "own", "Manifest:/gone.csv", "LFA", [0.5], noted=noted)
    header = row(tables(tmp_path / "own", capsys), "Dataset: Manifest", "Algorithm")
    assert header[1:] == ["exam"]


def test_rows_that_chose_on_test_data_are_not_ranked_with_others(tmp_path, capsys):
    published = {"hparams": {"as_published": True}}
    for dataset in ("OxfordPets", "EuroSAT"):
        for name, acc in (("LFA", 0.7), ("CoOp", 0.6), ("ProLIP", 0.5)):
            write(tmp_path, dataset, name, [acc])
        write(tmp_path, dataset, "GDA", [0.9], **published)
    text = tables(tmp_path, capsys, "--format", "markdown")
    averages = text[text.index("## Averages") :]
    rows = [line.split("|") for line in averages.splitlines() if line[:1] == "|"]
    alike = {row[1].strip(): row[-2].strip() for row in rows[2:]}
    assert alike["GDA \\*"] == ""
    assert all(alike[name] for name in ("LFA", "CoOp", "ProLIP"))
    assert "not ranked, for it is of another protocol: GDA" in averages
    plain = tables(tmp_path, capsys)
    assert "GDA *" in plain and "not ranked" not in plain  # a remark above says it
