"""Frames, what they are printed as, and what a paper's table claims."""

import io
import itertools
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from domainbed.lib.query import Q
from domainbed.model_selection import OracleSelectionMethod as Oracle
from domainbed.report import parts
from domainbed.scripts.collect_results import wide_tables
from domainbed.tables import formats, frames, paper, published, text
from domainbed.tables.formats import WideTable
from domainbed.tables.ties import Ties

NO_TIES = Ties({}, "")
SHIPPED = Path(__file__).parents[2] / "sweeps" / "published" / "clip_vit_b16.csv"
HOSTILE = (
    r"\input{/etc/passwd}",
    "a & b % $x^2$ #_~{}",
    "[1cm]",
    "*",
    "<script>alert(1)</script>",
    "a | b ` *c* [d](e)",
    "two\nlines\x1b[31m",
    "}} \\\\ \\end{table}",
)


def record(algorithm="ERM", env=0, trial=0, acc=0.5, dataset="PACS"):
    args = {"dataset": dataset, "algorithm": algorithm, "test_envs": [env]}
    args |= {"trial_seed": trial, "hparams_seed": 0}
    return {"step": 0, "args": args, f"env{env}_in_acc": acc, f"env{env}_out_acc": acc}


def sweep(accs, dataset="PACS"):
    """Records of {algorithm: rows of trials, columns of environments}."""
    return Q(
        record(algorithm, env, trial, acc, dataset)
        for algorithm, rows in accs.items()
        for trial, row in enumerate(rows)
        for env, acc in enumerate(row)
    )


def long(records):
    return frames.long_form(frames.accuracies(records, Oracle), Oracle)


def paper_table(records, theirs=None):
    accs = frames.accuracies(records, Oracle)
    return paper.document({Oracle: wide_tables(accs, Oracle, theirs, None, {})})


def test_accuracies_are_in_the_order_of_the_tables():
    records = [record(name, trial=1) for name in ("Theirs", "LFA", "ERM")]
    records += [record(dataset="VLCS"), record(env=3), record(dataset="Mine", env=7)]
    frame = frames.accuracies(Q(records), Oracle)
    found = frame[["dataset", "algorithm", "environment"]].to_numpy().tolist()
    assert found == [
        ["VLCS", "ERM", "C"],
        ["PACS", "ERM", "A"],
        ["PACS", "ERM", "S"],
        ["PACS", "LFA", "A"],
        ["PACS", "Theirs", "A"],
        ["Mine", "ERM", "env7"],
    ]


def test_an_environment_that_the_dataset_has_not_is_left_out():
    frame = frames.accuracies(Q([record(env=3), record(env=4)]), Oracle)
    assert frame["test_env"].tolist() == [3]


def test_means_are_percents_with_their_errors():
    records = sweep({"ERM": [[0.1, 0.2, 0.3, 0.4], [0.3, 0.2, 0.3, 0.4]]})
    frame = frames.accuracies(records, Oracle)
    first = frames.summary(frame).iloc[0]
    assert (first["environment"], first["n"]) == ("A", 2)
    assert first["mean"] == pytest.approx(20)
    assert first["err"] == pytest.approx(10 / 2**0.5)
    (average,) = frames.averages(frame).to_dict("records")
    assert (average["environment"], average["n"]) == ("Avg", 2)
    assert average["mean"] == pytest.approx(27.5)
    assert average["err"] == pytest.approx(2.5 / 2**0.5)


def test_a_trial_that_lacks_an_environment_has_no_average():
    records = sweep({"ERM": [[0.1, 0.2, 0.3, 0.4], [0.9, 0.9, 0.9]], "LFA": [[0.5]]})
    averages = frames.averages(frames.accuracies(records, Oracle))
    assert averages[["algorithm", "n"]].to_numpy().tolist() == [["ERM", 1]]
    assert averages["mean"][0] == pytest.approx(25)


def test_a_summary_of_nothing_has_columns_of_numbers():
    columns = ["dataset", "algorithm", "environment", "acc"]
    types = frames.summary(pd.DataFrame(columns=columns)).dtypes
    assert [types[name].kind for name in ("mean", "err", "n")] == ["f", "f", "i"]


def test_nan_is_not_passed_over():
    frame = frames.accuracies(sweep({"ERM": [[0.5] * 4, [np.nan] * 4]}), Oracle)
    assert frames.summary(frame)["mean"].isna().all()
    assert frames.averages(frame)["mean"].isna().all()
    (form,) = frames.wide_forms(long(sweep({"ERM": [[np.nan]]})), ["ERM"]).values()
    assert formats.texts(form, "A") == ["nan"]
    assert formats.texts(form, "C") == ["X"]


def test_csv_and_json_say_the_same():
    frame = long(sweep({"ERM": [[0.5, 0.25, 1, 0]] * 2, "LFA": [[0.5, np.nan]]}))
    rows = pd.read_csv(io.StringIO(formats.csv(frame)), keep_default_na=False)
    assert rows.columns.tolist() == [
        *("dataset", "algorithm", "environment", "selection"),
        *("mean", "standard_error", "trials", "source", "protocol"),
        "protocol_digest",
    ]
    objects = json.loads(formats.json(frame))
    assert len(objects) == len(rows) == 7
    assert objects[0] == {
        "dataset": "PACS",
        "algorithm": "ERM",
        "environment": "A",
        "selection": "test-domain validation set (oracle)",
        "mean": 50.0,
        "standard_error": 0.0,
        "trials": 2,
        "source": "this sweep",
        "protocol": "",
        "protocol_digest": "",
    }
    assert objects[4]["environment"] == "Avg"
    assert [r["mean"] for r in objects][-1] is None
    for name in ("algorithm", "environment", "trials", "selection"):
        assert [row[name] for row in objects] == rows[name].tolist()


def test_wide_forms_have_a_row_for_every_algorithm():
    records = sweep({"ERM": [[0.5] * 4]}) + sweep({"LFA": [[0.25] * 4]}, "VLCS")
    forms = frames.wide_forms(long(records), ["ERM", "LFA"])
    assert [*forms] == ["VLCS", "PACS", "Averages"]
    pacs = formats.cells(WideTable(forms["PACS"], NO_TIES))
    assert pacs.columns.tolist() == ["Algorithm", "A", "C", "P", "S", "Avg"]
    assert pacs["Avg"].tolist() == ["50.0 ± 0.0", "X"]
    averages = formats.cells(WideTable(forms["Averages"], NO_TIES)).to_numpy().tolist()
    assert averages == [
        ["ERM", "X", "50.0 ± 0.0", "X"],
        ["LFA", "25.0 ± 0.0", "X", "X"],
    ]


def test_published_rows_stand_below_with_their_source(tmp_path):
    file = tmp_path / "theirs.csv"
    file.write_text(
        "method,PACS,VLCS,Office,Avg,source,protocol\n"
        "LFA,96.1,,1,70.0,a paper,5 draws\nOther,90,80,2,60.0,a talk,\n"
    )
    records = sweep({"LFA": [[0.5] * 4]}) + sweep({"LFA": [[0.25] * 4]}, "VLCS")
    frame = pd.concat([long(records), published.published(file, ["VLCS", "PACS"])])
    form = frames.wide_forms(frame, ["LFA"])["Averages"]
    assert formats.cells(WideTable(form, NO_TIES)).to_numpy().tolist() == [
        ["LFA", "25.0 ± 0.0", "50.0 ± 0.0", "37.5", "this sweep"],
        ["LFA", "", "96.1", "", "a paper; 5 draws"],
        ["Other", "80.0", "90.0", "85.0", "a talk"],  # over these two, not theirs of 3
    ]


def test_names_in_markdown_and_html_stay_data():
    records = sweep({name: [[0.5] * 4] for name in HOSTILE})
    records += sweep({"ERM": [[0.5]]}, HOSTILE[4])
    forms = frames.wide_forms(long(records), [*HOSTILE])
    tables = {title: WideTable(form, NO_TIES) for title, form in forms.items()}
    page = formats.html(tables)
    found = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag, attrs):
            found.append(tag)

    Reader().feed(page)
    assert {*found} == {
        *("html", "head", "meta", "title", "style", "body", "h2"),
        *("table", "thead", "tbody", "tr", "th", "td", "p"),
    }
    text = formats.markdown(tables)
    rows = [line for line in text.split("\n") if line.startswith("|")]
    bars = [len(re.findall(r"(?<!\\)\|", row)) for row in rows]
    n = len(HOSTILE) + 2  # a header and a rule
    assert bars == [7] * n + [4] * n + [5] * n  # env0 and Avg; two datasets and Avg
    assert r"\<script>alert(1)\</script>" in text
    assert r"two\\nlines" in text


def latex_tables(text):
    """Rows of cells of each tabular; fails if braces or environments do not match."""
    plain = re.sub(r"\\[\\{}&%$#_]", "", text)
    depth = 0
    for character in plain:
        depth += {"{": 1, "}": -1}.get(character, 0)
        assert depth >= 0
    assert depth == 0
    assert plain.count("$") % 2 == 0
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            opened.append(name)
        else:
            assert opened.pop() == name
    assert opened == []
    found = []
    for body in re.findall(r"\\begin\{tabular\}(.*?)\\end\{tabular\}", text, re.S):
        spec, *lines = body.split("\n")
        rows = [line.removesuffix(r" \\") for line in lines if line.endswith(r" \\")]
        cells = [re.split(r"(?<!\\)&", row) for row in rows]
        cells = [[c.strip() for c in row] for row in cells if len(row) > 1]
        assert {len(row) for row in cells} == {len(spec) - 2}
        found.append(cells)
    return found


def test_the_best_is_bold_and_the_second_underlined():
    accs = {"ERM": [[0.5, 0.3, 0.2, 0.2]], "LFA": [[0.4, 0.3, 0.3, 0.3]]}
    accs |= {"MIRO": [[0.1, 0.1, 0.2, 0.2]]}
    ((header, *rows),) = latex_tables(paper_table(sweep(accs)))
    assert header == ["Algorithm", "A", "C", "P", "S", "Avg"]
    shown = {row[0].split("$")[0]: row[1:] for row in rows}
    assert shown["ERM"][:2] == [r"\textbf{50.0 $\pm$ 0.0}", r"\textbf{30.0 $\pm$ 0.0}"]
    assert shown["LFA"][:2] == [
        r"\underline{40.0 $\pm$ 0.0}",
        r"\textbf{30.0 $\pm$ 0.0}",
    ]
    assert shown["MIRO"][:2] == [r"10.0 $\pm$ 0.0", r"\underline{10.0 $\pm$ 0.0}"]
    assert shown["LFA"][-1] == r"\textbf{32.5 $\pm$ 0.0}"


def test_cells_that_look_alike_share_their_rank():
    """97.65 in binary lies above: its cell is 97.7, though numpy rounds it to 97.6."""
    accs = {"ERM": [[0.9765]], "LFA": [[0.977]], "MIRO": [[0.5]]}
    ((_, *rows),) = latex_tables(paper_table(sweep(accs)))
    best = r"\textbf{97.7 $\pm$ 0.0}"
    assert [row[1] for row in rows] == [best, best, r"\underline{50.0 $\pm$ 0.0}"]
    mean = pd.DataFrame({"A": [97.65, 97.7, 50]}, index=[*accs])
    ranks = [cell.rank for _, (cell,) in parts.summary(mean, mean).rows]
    assert ranks == [1, 1, 3]


def test_no_digit_of_a_mean_depends_on_the_order():
    orders = [*itertools.permutations([0.1, 0.2, 0.3])]
    assert len({float(np.mean(order)) for order in orders}) > 1
    assert len({text.format_mean(order, latex=False)[:2] for order in orders}) == 1
    trials = [{"ERM": [[acc] * 3 for acc in order]} for order in orders]
    for accs in (trials, [{"ERM": [order]} for order in orders]):
        averages = [long(sweep(own, "ColoredMNIST")).iloc[-1] for own in accs]
        assert {row["environment"] for row in averages} == {"Avg"}
        assert len({(row["mean"], row["err"]) for row in averages}) == 1


def test_methods_stand_in_groups():
    names = ("ERM", "FineTuneCLIP", "LFA", "ZeroShotCLIP", "Theirs", "LinearProbeCLIP")
    theirs = published.published(SHIPPED, ["PACS"])
    text = paper_table(sweep({name: [[0.5] * 4] for name in names}), theirs)
    latex_tables(text)
    headings = r"Zero-shot|Frozen|Fine-tuned|Others|Published"
    found = re.findall(rf"textit{{({headings})|^(\w+)\$.*pm", text, re.M)
    assert ["".join(pair) for pair in found] == [
        *("Zero-shot", "ZeroShotCLIP", "Frozen", "LinearProbeCLIP", "LFA"),
        *("Fine-tuned", "ERM", "FineTuneCLIP", "Others", "Theirs", "Published"),
    ]
    assert text.index("Published}") < text.index("SBGen &")
    assert "Published figures, not compared: LFA's repository, README;" in text


def test_names_in_latex_stay_data(tmp_path):
    file = tmp_path / "theirs.csv"
    rows = [{"method": name, "PACS": 50, "source": name} for name in HOSTILE]
    pd.DataFrame(rows).to_csv(file, index=False)
    records = sweep({name: [[0.5] * 4] for name in HOSTILE})
    records += sweep({name: [[0.5]] for name in HOSTILE}, HOSTILE[1])
    text = paper_table(records, published.published(file, ["PACS"]))
    assert len(latex_tables(text)) == 3
    assert r"\input" not in text
    assert r"\textbackslash{}input\{/etc/passwd\}" in text
    assert not re.search(r"^[\[*]", text, re.M)  # \\ would take these for its own


def test_one_run_has_its_table():
    text = paper_table(sweep({"ERM": [[0.5]]}))
    ((_, row),) = latex_tables(text)
    assert row == ["ERM", r"50.0 $\pm$ 0.0", "X", "X", "X", "X"]
    assert "over 1 trial." in text


def test_own_datasets_are_called_as_somebody_named_them():
    """By the name that was given, the last part of the place, or all of it."""
    names = ["PACS", "ImageFolder:birds=/a/data", "ImageFolder:/b/cars"]
    names += ["Manifest:/c/list.csv", "ImageFolder:/d/list.csv", "ImageFolder:/e=f/g"]
    assert frames.headings(names) == ["PACS", "birds", "cars", *names[3:5], "g"]
