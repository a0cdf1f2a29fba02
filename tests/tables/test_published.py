"""Published figures: what ships is whole, what is read says where it is from."""

import re
from pathlib import Path

import pandas as pd
import pytest

from domainbed.lib.errors import InputError
from domainbed.tables import frames
from domainbed.tables.few_shot import published_form
from domainbed.tables.published import chosen_as, few_shots, of_block, published, read

SHIPPED = Path(__file__).parents[2] / "sweeps" / "published"


def test_a_published_average_counts_over_the_same_datasets(tmp_path):
    file = tmp_path / "theirs.csv"
    file.write_text("method,PACS,VLCS,Avg\nProbe,,,72.0\nOther,90,80,85.1\n")
    frame = published(file, ["VLCS", "PACS"])
    averages = frame[frame["dataset"] == "Avg"]
    assert averages["mean"].tolist() == [72.0, 85.1]
    assert "Avg" not in set(published(file, ["PACS"])["dataset"])


@pytest.mark.parametrize(
    "text, sentence",
    [
        (None, "cannot be read"),
        ("", "cannot be read"),
        ("method,PACS\nx,90,80\n", "a row of 3 cells below 2 columns: x,90,80"),
        ("method,PACS,PACS\nx,90,80\n", "two columns 'PACS'"),
        ("a,b\n1,2\n", "no column 'method'"),
        ("method,VLCS\nx,1\n", "no figures for PACS; its datasets are VLCS"),
        ("method,PACS\nx,ninety\n", "'ninety' in column PACS"),
        ("method,PACS\nx,101\n", "'101' in column PACS"),
        ("method,PACS\nx,inf\n", "'inf' in column PACS"),
        ("method,PACS\nx,nan\n", "'nan' in column PACS"),
    ],
)
def test_a_baseline_that_is_none_is_refused(text, sentence, tmp_path):
    file = tmp_path / "theirs.csv"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=re.escape(sentence)):
        published(file, ["PACS"])


def test_a_baseline_as_windows_saves_it(tmp_path):
    file = tmp_path / "theirs.csv"
    file.write_bytes("method, PACS\r\nM\u00e9thode, 90\r\n".encode("utf-16"))
    assert set(published(file, ["PACS"])["algorithm"]) == {"M\u00e9thode"}
    file.write_bytes("method,PACS\nM\u00e9thode,90\n".encode("latin-1"))
    with pytest.raises(InputError, match=r"not in UTF-8 .* save it as that"):
        published(file, ["PACS"])


def test_the_shipped_figures_are_whole():
    names = ["VLCS", "PACS", "OfficeHome", "TerraIncognita", "DomainNet"]
    frame = published(SHIPPED / "clip_vit_b16.csv", names)
    assert (frame["source"] != "").all()
    means = frame.pivot(index=frames.ROW, columns="dataset", values="mean")
    gaps = (means[names].mean(axis=1, skipna=False) - means["Avg"]).abs().dropna()
    assert len(gaps) == 22
    assert gaps.max() < 0.1  # figures and averages are rounded to a decimal


def test_every_shipped_row_was_read_where_it_says():
    rows = pd.concat(map(read, SHIPPED.glob("*.csv")))
    assert len(rows) >= 60
    assert {*rows["tag"]} == {"V"}  # read in the paper or README, not recalled
    assert (rows["source"] != "").all()
    assert {*rows["test_share"]} == {"", "20", "80", "100"}
    links = rows["code"][rows["code"] != ""]
    assert links.str.fullmatch("https://github.com/[^/]+/[^/]+").all()


def test_the_shipped_few_shots_have_the_h_that_was_printed():
    """MaPLe's, PromptSRC's, ProLIP's, 2SFS's and MMRL's own."""
    rows = few_shots(SHIPPED / "few_shot_vit_b16.csv")
    eleven = rows["dataset"].iloc[0].split()
    form = published_form(of_block(rows, eleven, 16, "base"), ["base", "new", "H"])
    names = form.index.get_level_values("algorithm")
    assert dict(zip(names, form["mean", "H"].map("{:.2f}".format), strict=True)) == {
        "CLIP": "71.70",
        "CoOp": "71.66",
        "CoCoOp": "75.83",
        "MaPLe": "78.55",
        "Deep vision prompting": "76.68",
        "Deep language prompting": "77.56",
        "Independent V-L prompting": "77.90",
        "Independent V-L prompting (20 epochs)": "77.51",
        "PromptSRC": "79.97",
        "ProLIP": "78.61",
        "ProLIP (one template)": "79.08",
        "CLIP-LoRA": "77.28",
        "2SFS": "80.20",
        "MMRL": "81.20",
    }
    assert of_block(rows, eleven, 4, "base")["method"].tolist() == ["CLIP"]
    assert of_block(rows, eleven[1:], 16, "base").empty
    assert of_block(rows, eleven, 16, "all").empty


def test_a_row_says_its_protocol(tmp_path):
    file = tmp_path / "theirs.csv"
    file.write_text(
        "method,PACS,source,table,test_share,selection,steps,weights,template,note\n"
        "A,96.1,a paper,Table 2,20,last step,300,OpenAI,a {name},tuned\nB,80,,,,,,,,\n"
    )
    frame = published(file, ["PACS"])
    assert frame["source"].tolist() == ["a paper, Table 2", ""]
    assert frame["protocol"].tolist() == [
        "tested on 20 %; selection: last step; steps: 300; weights: OpenAI; "
        "template: a {name}; tuned",
        "",
    ]


def test_what_another_selection_method_chose_stands_elsewhere():
    rows = pd.DataFrame({"selection": ["oracle", "iid", "last step", ""]})
    found = chosen_as(rows, "iid", ["iid", "oracle"])["selection"]
    assert found.tolist() == ["iid", "last step", ""]
    file = SHIPPED / "domainbed_resnet50.csv"
    oracle = chosen_as(
        published(file, ["PACS"]), "x", ["training-domain validation set"]
    )
    erm = oracle[oracle["algorithm"] == "ERM"]
    assert erm["mean"].tolist() == [83.0, 86.7]


def test_rows_of_few_shots_say_their_tables(tmp_path):
    file = tmp_path / "theirs.csv"
    file.write_text("method,base\nx,1\n")
    with pytest.raises(InputError, match="no column 'dataset', which rows of few"):
        few_shots(file)
    file.write_text("method,dataset,shots,classes,base\nx,EuroSAT,1,base,x\n")
    with pytest.raises(InputError, match="'x' in column base"):
        few_shots(file)


def test_rows_of_few_shots_lack_what_they_lack():
    rows = pd.DataFrame(
        {"method": ["a", "b", "c"], "base": [80, 60, None], "x": [1] * 3}
    ).assign(new=[40, None, None], source="", protocol="")

    def figures(*columns):
        form = published_form(rows, [*columns])
        assert [name for *_, name in form.index] == ["a", "b"]
        assert form["err"].isna().all(axis=None) and form["n"].isna().all(axis=None)
        return form["mean"].fillna(-1).to_numpy().tolist()

    h = pytest.approx(2 * 80 * 40 / 120)
    assert figures("base", "new", "H") == [[80, 40, h], [60, -1, -1]]
    assert figures("base", "Avg") == [[80, 80], [60, 60]]
    assert figures("base", "new", "Avg") == [[80, 40, 60], [60, -1, -1]]
