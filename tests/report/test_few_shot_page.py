"""The report of few-shot runs: accuracy over the number of shots."""

import json

import pytest
from helpers import few_shot_run
from pages import make

from domainbed.lib import reporting
from domainbed.report import figures
from domainbed.tables import few_shot_records, frames

pytest.importorskip("matplotlib")


def sweep(root, **facts):
    """Two datasets, two methods, two trials, 1 and 4 shots."""
    for dataset, more in (("OxfordPets", 0.0), ("EuroSAT", 0.1)):
        for k in (1, 4):
            for trial in (0, 1):
                acc = 0.5 + k / 100 + trial / 50 + more
                own = {"trial": trial, "shots": k} | facts
                few_shot_run(root, dataset, "LFA", [acc], **own)
                few_shot_run(root, dataset, "GDA", [acc - 0.2], **own)
    return root


def test_the_page_has_a_table_and_a_picture_over_shots(tmp_path):
    page = make(sweep(tmp_path / "runs"))
    assert page.headings == [
        "All datasets",
        *["OxfordPets", "Accuracy over shots, all classes", "Coverage"],
        *["EuroSAT", "Accuracy over shots, all classes", "Coverage"],
    ]
    assert "last epoch" in page.text
    assert "over trials (papers print the standard deviation)" in page.text
    averages, _, pets, *_ = [  # of each method of selection
        t for t in page.tables if t[0] == ["method", "1 shot", "4 shots"]
    ]
    assert [row[0] for row in averages[1:]] == ["LFA", "GDA"]
    assert averages[1][2].startswith("60.0")
    assert pets[1][1].startswith("52.0") and "0.7" in pets[1][1]
    numbers = page.table("method", "shots", "trial", "test %")
    assert len(numbers) == 8 and numbers[0]["test %"] == "51.0"
    assert page.html.count("<svg") == 2 * 2  # of each dataset and method of selection


def test_a_line_goes_through_means_and_bars_span_the_trials(tmp_path):
    accs = few_shot_records.accuracies(
        reporting.load_records(sweep(tmp_path)), few_shot_records.METHODS[0]
    )
    pets = accs[accs["dataset"] == "OxfordPets"]
    (ax,) = figures.over_shots.__wrapped__(pets, ["LFA", "GDA"]).axes
    lfa, gda = ax.lines
    assert lfa.get_ydata() == pytest.approx([52, 55])
    assert gda.get_ydata() == pytest.approx([32, 35])
    assert lfa.get_xdata().round() == pytest.approx([0, 2])  # powers of 2
    spans = [s[:, 1].tolist() for s in ax.collections[0].get_segments()]
    assert spans == [pytest.approx([51, 53]), pytest.approx([54, 56])]
    assert [text.get_text() for text in ax.texts] == ["GDA", "LFA"]
    assert [tick.get_text() for tick in ax.get_xticklabels()] == ["1", "4"]


def test_each_source_and_choice_of_classes_has_its_own_block(tmp_path):
    for source in ("fluent", "noto"):
        few_shot_run(tmp_path / source, "EmojiDG", "LFA", [0.1] * 4, source=source)
    for run in (tmp_path / "noto").iterdir():
        run.rename(tmp_path / "fluent" / "other")
    few_shot_run(tmp_path / "fluent", "OxfordPets", "LFA", [0.6, 0.3], classes="base")
    page = make(tmp_path / "fluent")
    title = "Accuracy over shots"
    assert [text for text in page.headings if text.startswith(title)] == [
        f"{title}, base classes",
        f"{title}, all classes, from fluent",
        f"{title}, all classes, from noto",
    ]
    rows = [t[1] for t in page.tables if t[0] == ["method", "4 shots"]]
    assert [row[1][:4] for row in rows[::2]] == ["40.0", "10.0", "10.0"]  # 40: H


def test_a_run_that_is_missing_is_named_by_its_shots(tmp_path):
    root = sweep(tmp_path / "runs")
    (root / "EuroSATLFA140" / "results.jsonl").unlink()
    page = make(root)
    assert "8 of 8 expected runs are done" in page.text
    assert "7 of 8 expected runs are done" in page.text
    (row,) = page.table("state", "method", "test domain", "trial")
    assert row["test domain"] == "4 shots, all classes" and row["trial"] == "1"
    assert "differ in data" not in page.text


def test_few_shot_runs_have_pages_of_their_own(tmp_path, capsys):
    few_shot_run(tmp_path, "OxfordPets", "LFA", [0.5])
    few_shot_run(tmp_path, "PACS", "LFA", [0.5], task="domain_generalization")
    with pytest.raises(SystemExit):
        make(tmp_path)
    assert "stand beside others" in capsys.readouterr().err


def test_rows_of_another_protocol_are_marked_and_it_is_said_why(tmp_path):
    root = sweep(tmp_path / "runs")
    assert "†" not in make(root).text
    for run in root.glob("*GDA*4*"):
        record = json.loads((run / "results.jsonl").read_text())
        record["args"]["steps"] = 9
        (run / "results.jsonl").write_text(json.dumps(record))
    page = make(root)
    said = "protocol: GDA (steps 9 on {}); what is ranked has steps of the method's"
    assert said.format("4 shots of OxfordPets") in page.text
    averages = said.format("4 shots of OxfordPets, 4 shots of EuroSAT")
    assert averages in page.text
    found = [t for t in page.tables if t[0] == ["method", "1 shot", "4 shots"]]
    assert len(found) == 2 * 3
    assert all([row[0] for row in t[1:]] == ["LFA", "GDA †"] for t in found)


def test_a_reference_brings_differences_to_tables_and_pictures(tmp_path, capsys):
    root = sweep(tmp_path / "runs")
    few_shot_run(root, "OxfordPets", "GDA", [0.9], trial=2, shots=4)  # no LFA's
    plain, page = make(root), make(root, None, "--reference", "LFA")
    found = [t for t in page.tables if t[0] == ["method", "1 shot", "4 shots"]]
    before = [t for t in plain.tables if t[0] == ["method", "1 shot", "4 shots"]]
    assert [t for t in found if t in before] == before
    less = [t[1:] for t in found if t not in before]
    averages = [["GDA", "−20.0", "−20.0"]]
    assert less == [averages] * 2 + [[["GDA", "−20.0 ± 0.0", "−20.0 ± 0.0"]]] * 4
    assert page.text.count("Difference to LFA in points") == 2 * 3
    assert page.html.count("<svg") == 2 * plain.html.count("<svg")
    rows = page.table("method", "shots", "difference")
    assert [row["difference"] for row in rows] == ["−20.0"] * 4
    with pytest.raises(SystemExit) as ended:
        make(root, None, "--reference", "LFB")
    assert ended.value.code == 2 and "Did you mean 'LFA'?" in capsys.readouterr().err


def test_differences_are_drawn_around_zero_in_the_colours_of_their_methods(tmp_path):
    accs = few_shot_records.accuracies(
        reporting.load_records(sweep(tmp_path)), few_shot_records.METHODS[0]
    )
    less = frames.less(accs, "LFA", few_shot_records.BLOCK)
    pets = [own[own["dataset"] == "OxfordPets"] for own in (accs, less)]
    draw = figures.over_shots.__wrapped__
    (plain,) = draw(pets[0], ["LFA", "GDA"]).axes
    (ax,) = draw(pets[1][pets[1]["algorithm"] != "LFA"], ["LFA", "GDA"], "LFA").axes
    lfa, gda, zero = ax.lines
    assert [*zero.get_ydata()] == [0, 0] and not len(lfa.get_ydata())
    assert gda.get_ydata() == pytest.approx([-20, -20])
    assert gda.get_color() == plain.lines[1].get_color()
    assert ax.get_ylim()[0] < -20 and ax.get_ylim()[1] > 0
    assert ax.get_ylabel() == "less LFA, points"
