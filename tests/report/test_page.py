"""The report: its numbers, what it says in words, and what odd folders give."""

import json
import math
import re

import numpy as np
import pandas as pd
import pytest
from helpers import make_image_folder, unpacked_sweep
from pages import make

from domainbed.lib import misc, reporting
from domainbed.model_selection import IIDAccuracySelectionMethod, OracleSelectionMethod
from domainbed.report import data, svg
from domainbed.runs.folder import RunFolder
from domainbed.scripts import report
from domainbed.tables import frames

pytest.importorskip("matplotlib")


def write_run(
    root, accs, dataset="PACS", algorithm="ERM", env=0, trial=0, draw=0, hparams=None
):
    """A finished run: accs[step] is (val, test), for the others and the test env."""
    args = {
        "dataset": dataset,
        "algorithm": algorithm,
        "test_envs": [env],
        "trial_seed": trial,
        "hparams_seed": draw,
    }
    folder = root / str(misc.seed_hash(dataset, algorithm, env, trial, draw))
    folder.mkdir(parents=True)
    lines = []
    for step, (val, test) in enumerate(accs):
        record = {"step": step, "args": args, "hparams": hparams or {}, "loss": 1.0}
        for i in range(4):
            record[f"env{i}_out_acc"] = test if i == env else val
            record[f"env{i}_in_acc"] = test if i == env else val
        lines.append(json.dumps(record) + "\n")
    (folder / "results.jsonl").write_text("".join(lines))
    (folder / "done").write_text("done")
    return folder


@pytest.fixture(scope="module")
def sample(tmp_path_factory):
    """The contract's sample sweep."""
    return unpacked_sweep("sweep_single", tmp_path_factory.mktemp("x") / "sample")


@pytest.fixture(scope="module")
def sample_page(sample):
    return make(sample)


def test_the_page_needs_nothing_but_itself(sample_page):
    for tag, attributes in sample_page.tags:
        assert tag not in ("link", "img", "iframe", "object", "base")
        assert "src" not in attributes
        if "href" in attributes:
            assert not re.match(r"\w+:|//", attributes["href"])
    assert "@import" not in sample_page.html
    assert not re.search(r"url\((?!#)", sample_page.html)
    policy = next(a["content"] for _, a in sample_page.tags if "http-equiv" in a)
    assert policy.startswith("default-src 'none'")


def test_what_svgs_refer_to_is_there_once(sample_page):
    svgs = re.findall(r"<svg.*?</svg>", sample_page.html, re.DOTALL)
    for drawing in svgs:
        defined = re.findall(r' id="([^"]+)"', drawing)
        assert len(defined) == len({*defined})
        assert {*re.findall(r'href="#([^"]+)"', drawing)} <= {*defined}


def test_the_summary_has_the_tables_numbers(sample, sample_page):
    records = reporting.load_records(sample)
    frame = frames.summary(frames.accuracies(records, IIDAccuracySelectionMethod))
    assert len(frame) == 4
    summary = {row["method"]: row for row in sample_page.table("method", "Avg")}
    for row in frame.itertuples():
        cell = summary[row.algorithm][row.environment]
        assert cell == f"{row.mean:.1f} ± {row.err:.1f}"


def test_each_selection_method_has_its_part_and_the_first_is_shown(sample_page):
    parts = [a for _, a in sample_page.tags if "data-selection" in a]
    names = {part["data-selection"] for part in parts}
    assert len(names) == 3
    for part in parts:
        is_first = part["data-selection"] == IIDAccuracySelectionMethod.name
        assert ("hidden" in part) is not is_first
    # The sample has no pairs of test environments.
    assert (
        "leave-one-domain-out cross-validation needs are not here" in sample_page.text
    )


def test_every_picture_has_its_numbers_behind_a_fold(sample_page):
    figures = sample_page.html.split("<figure>")[1:]
    assert len(figures) > 6
    for figure in figures:
        fold = figure[figure.index("<details>") : figure.index("</details>")]
        assert fold.count("<td") > 1
        assert "<svg" in figure


def test_it_is_the_same_page_every_time(sample, sample_page, tmp_path):
    again = make(sample, sample.parent / "again.html")
    assert again.html == sample_page.html


def test_it_says_what_selection_loses(tmp_path):
    """Validation prefers draw 0; the oracle and the truth prefer draw 1."""
    for trial in (0, 1):
        write_run(tmp_path / "s", [(0.9, 0.5)], trial=trial, draw=0)
        write_run(tmp_path / "s", [(0.8, 0.6)], trial=trial, draw=1)
    page = make(tmp_path / "s")
    assert "the methods reach 50.0 % on average" in page.text
    assert "60.0 %. So selection loses 10.0 points on average." in page.text
    losses = page.table("method", "lost to the oracle")
    assert losses[0]["lost to the oracle"] == "10.0"
    draws = page.table("draw", "chosen")
    assert [row["chosen"] for row in draws if row["draw"] == "0"] == ["yes", "yes"]
    assert [row["chosen"] for row in draws if row["draw"] == "1"] == ["", ""]


def test_several_datasets_have_a_section_each_and_an_average(tmp_path):
    for dataset, accuracy in (("VLCS", 0.5), ("PACS", 0.7)):
        for env in range(4):
            write_run(tmp_path / "s", [(0.5, accuracy)], dataset=dataset, env=env)
    page = make(tmp_path / "s")
    assert [h for h in page.headings if h in ("All datasets", "VLCS", "PACS")] == [
        "All datasets",
        "VLCS",
        "PACS",
    ]
    row = page.table("VLCS", "PACS", "Avg")[0]
    assert (row["VLCS"], row["PACS"], row["Avg"]) == (
        "50.0 ± 0.0",
        "70.0 ± 0.0",
        "60.0",
    )


def test_coverage_names_what_is_not_done_and_links_to_its_log(tmp_path):
    root = tmp_path / "my sweep"
    write_run(root, [(0.5, 0.5)], env=0, draw=0)
    failed = write_run(root, [(0.5, 0.5)], env=1, draw=0)
    stale = write_run(root, [(0.5, 0.5)], env=0, draw=1)
    for folder in (failed, stale):
        (folder / "done").unlink()
        (folder / "err.txt").write_text("Traceback\nValueError: <no> luck\n")
    RunFolder(failed).fail(1)
    (stale / "heartbeat").write_text("{}")
    nameless = root / ("0" * 32)
    nameless.mkdir()
    (nameless / "err.txt").write_text("killed\n")
    page = make(root, tmp_path / "out" / "report.html")
    assert "1 of 4 expected runs are done." in page.text
    rows = page.table("state", "last words", "test domain")
    found = [(row["state"], row["test domain"], row["draw"]) for row in rows]
    assert found == [("failed", "C", "0"), ("stale", "A", "1"), ("missing", "C", "1")]
    assert rows[0]["last words"] == "ValueError: <no> luck"
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links[0] == f"../my%20sweep/{failed.name}/err.txt"
    assert len(links) == 3  # of both, and of the folder that is nobody's
    assert page.table("state", "folder")[0]["folder"] == "0" * 32


def test_what_died_before_it_began_links_to_slurms_log(tmp_path):
    folder = write_run(tmp_path / "s", [(0.5, 0.5)])
    (folder / "done").unlink()
    log = tmp_path / "s" / "slurm" / "7_0_0_log.out"
    log.parent.mkdir()
    log.write_text("node is down\n")
    (folder / "slurm").write_text(json.dumps({"job": "7_0", "log": str(log)}))
    RunFolder(folder).fail(1)
    page = make(tmp_path / "s", tmp_path / "report.html")
    assert page.table("state", "last words")[0]["last words"] == "node is down"
    links = [a["href"] for tag, a in page.tags if tag == "a"]
    assert links == ["s/slurm/7_0_0_log.out"]


def test_layer_attention_is_of_unseen_domains_and_of_all_classes(tmp_path):
    for env, name in ((0, "A"), (1, "C")):
        folder = write_run(tmp_path / "s", [(0.5, 0.5)], algorithm="LFA", env=env)
        own = {"image": [0.25 + env / 2, 0.75 - env / 2], "cross": [1.0]}
        other = {"image": [0.5, 0.5], "cross": [1.0]}
        domains = {n: own if n == name else other for n in "ACPS"}
        classes = {"<dog>": own | {"self": [1.0]}, "never seen": {"self": [1.0]}}
        text = json.dumps({"environments": domains, "classes": classes})
        (folder / "layer_attention.json").write_text(text)
    page = make(tmp_path / "s")
    rows = page.table("domains", "branch")
    image = {row["domains"]: row["1"] for row in rows if row["branch"] == "image"}
    assert image == {"A": "25.0", "C": "75.0"}
    rows = page.table("classes", "branch")
    image = {row["classes"]: row["1"] for row in rows if row["branch"] == "image"}
    assert image == {"<dog>": "50.0"}
    assert "<dog>" not in page.html


def test_layers_that_all_images_use_are_shown_by_part(tmp_path):
    for env in (0, 1):
        folder = write_run(tmp_path / "s", [(0.5, 0.5)], algorithm="Head2Toe", env=env)
        used = {
            "x_0": {"states": [0.5 * env, 0]},
            "mlp": {"states": [0, 1 - 0.5 * env]},
        }
        (folder / "layer_attention.json").write_text(json.dumps({"used": used}))
    rows = make(tmp_path / "s").table("used", "branch")
    found = {row["used"]: (row["0"], row["1"]) for row in rows}
    assert found == {"x_0": ("25.0", "0.0"), "mlp": ("0.0", "75.0")}


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"environments": [1], "classes": 2},
        {"classes": {"dog": {"image": 1.0}}},
        {"classes": {"dog": {"image": ["much"]}}},
        {"classes": {"dog": {"image": [[0.5], [0.5]]}}},
        {"classes": {"dog": {"image": []}}},
        {"classes": {"dog": {"image": [0.5, float("nan")]}}},
    ],
)
def test_layer_attention_of_another_shape_is_left_out(content, tmp_path):
    folder = write_run(tmp_path / "s", [(0.5, 0.5)], algorithm="LFA")
    (folder / "layer_attention.json").write_text(json.dumps(content))
    assert "branch" not in make(tmp_path / "s").text


def test_names_are_text_never_markup_nor_formulas(tmp_path):
    domains = ["<img src=x>", "$x^2$ & _"]
    make_image_folder(tmp_path / "data", domains, ["a", "b"], n=1)
    dataset = f"ImageFolder:{tmp_path / 'data'}"
    for env in (0, 1):
        write_run(
            tmp_path / "s",
            [(0.5, 0.5)],
            dataset=dataset,
            algorithm="<script>alert(1)</script>",
            env=env,
        )
    page = make(tmp_path / "s")
    assert [tag for tag, _ in page.tags].count("script") == 1
    assert "img" not in {tag for tag, _ in page.tags}
    assert all(f"{name} " in f"{page.text} " for name in domains)


def test_345_classes_are_a_picture_of_some_and_a_table_of_all(tmp_path):
    folder = write_run(tmp_path / "s", [(0.5, 0.5)], algorithm="LFA")
    rng = np.random.RandomState(0)
    weights = rng.dirichlet(np.ones(12), (345, 3)).round(5).tolist()
    branches = ("image", "self", "cross")
    classes = {
        f"class {i}": dict(zip(branches, own, strict=True))
        for i, own in enumerate(weights)
    }
    text = json.dumps({"environments": {}, "classes": classes})
    (folder / "layer_attention.json").write_text(text)
    page = make(tmp_path / "s")
    assert "Of 345, the 24 that depart most from the mean." in page.text
    svg = page.html[page.html.rindex("<svg") : page.html.rindex("</svg>")]
    assert len(re.findall(r">class \d+<", svg)) == 24
    rows = page.table("classes", "branch")
    assert len(rows) == 1000  # of 1035
    assert "The first 1,000 of 1,035 rows" in page.text


@pytest.mark.parametrize("dataset", ["PACS", "NotHere"])
def test_one_run_makes_a_page(dataset, tmp_path):
    write_run(tmp_path / "s", [(0.5, 0.4), (0.6, 0.45)], dataset=dataset, env=2)
    page = make(tmp_path / "s")
    assert page.text.startswith("s: DomainBed report")
    assert f"1 run (1 done): 1 method on {dataset}, 1 trial, 1 hyper" in page.text
    domain = "P" if dataset == "PACS" else "env2"
    assert page.table("method", "Avg")[0][domain] == "45.0 ± 0.0"


def test_one_domain_has_no_validation_and_is_covered(tmp_path):
    folder = write_run(tmp_path / "s", [(0.5, 0.4)])
    file = folder / "results.jsonl"
    record = json.loads(file.read_text())
    for i in (1, 2, 3):
        del record[f"env{i}_out_acc"], record[f"env{i}_in_acc"]
    file.write_text(json.dumps(record))
    page = make(tmp_path / "s")
    assert "1 of 1 expected runs are done." in page.text
    assert "training-domain validation set needs are not here" in page.text


def test_diverged_runs_are_dashes(tmp_path):
    for draw, algorithm in enumerate(("ERM", "LFA")):
        hparams = {"lr": math.nan if draw else 0.1, "name": draw or "x"}
        for trial in (0, 1):
            facts = {"algorithm": algorithm, "hparams": hparams, "trial": trial}
            folder = write_run(tmp_path / "s", [(0.5, 0.4)], draw=draw, **facts)
            file = folder / "results.jsonl"
            costs = '"loss": NaN, "step_time": 0.1, "mem_gb": NaN'
            file.write_text(file.read_text().replace('"loss": 1.0', costs))
    page = make(tmp_path / "s")
    assert [row["A"] for row in page.table("method", "Avg")] == ["–", "–"]
    assert "nan" not in page.html.lower()


def test_hyperparameters_of_every_kind_have_a_place(tmp_path):
    for draw, value in enumerate(("x", [1], None, True, 10**400, 0.1)):
        accs = [(0.5, 0.4 + draw / 100)]
        facts = {"hparams": {"odd": value, "even": draw}, "draw": draw}
        write_run(tmp_path / "s", accs, **facts)
    page = make(tmp_path / "s")
    values = [row["odd"] for row in page.table("odd", "even")]
    assert values == ["x", "[1]", "None", "True", str(10**400), "0.1"]


def test_a_dataset_without_records_has_its_coverage(tmp_path):
    folder = write_run(tmp_path / "s", [(0.5, 0.4)], dataset="VLCS")
    record = json.loads((folder / "results.jsonl").read_text())
    (folder / "run.json").write_text(json.dumps({"args": record["args"]}))
    (folder / "results.jsonl").unlink()
    (folder / "done").unlink()
    RunFolder(folder).fail(-9)
    page = make(tmp_path / "s")
    assert page.headings == ["VLCS", "Coverage"]
    assert page.table("last words")[0]["last words"] == "killed by SIGKILL"


@pytest.mark.parametrize("kind", ["empty", "absent", "file"])
def test_a_folder_without_records_is_one_sentence(kind, tmp_path, capsys):
    folder = tmp_path / "sweep"
    if kind == "empty":
        folder.mkdir()
    if kind == "file":
        folder.write_text("")
    output = tmp_path / "report.html"
    with pytest.raises(SystemExit) as exit:
        report.main(["--input_dir", str(folder), "--output", str(output)])
    assert exit.value.code == 2
    assert capsys.readouterr().err.splitlines()[-1].startswith("error: --input_dir")
    assert not output.exists()


def test_an_output_that_cannot_be_written_is_one_sentence(sample, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit):
        make(sample, tmp_path / "file" / "report.html")
    assert "error: cannot write --output" in capsys.readouterr().err


def test_costs_leave_out_what_no_run_says(tmp_path):
    with_facts = write_run(tmp_path / "s", [(0.5, 0.4)], algorithm="LFA")
    (with_facts / "run.json").write_text(json.dumps({"parameters": 1234567}))
    write_run(tmp_path / "s", [(0.5, 0.4)], algorithm="ERM")
    page = make(tmp_path / "s")
    rows = page.table("method", "trainable parameters")
    found = {row["method"]: row["trainable parameters"] for row in rows}
    assert found == {"LFA": "1,234,567", "ERM": "–"}
    assert "step time, ms" not in page.text


def test_curves_thin_out_and_keep_their_ends():
    rows = pd.DataFrame({"step": range(500)})
    few = data.every_nth(rows)["step"].tolist()
    assert len(few) == 60
    assert (few[0], few[-1]) == (0, 499)
    assert data.every_nth(rows[:7]) is not None
    assert len(data.every_nth(rows[:7])) == 7


def test_sensitivity_is_within_the_trial(tmp_path):
    """Trials differ by 20 points, draws by 2: only the draws' order counts."""
    for trial in (0, 1):
        for draw, lr in enumerate((0.001, 0.01, 0.1)):
            accuracy = 0.5 + 0.2 * trial + 0.02 * draw
            facts = {"trial": trial, "draw": draw, "hparams": {"lr": lr, "same": 1}}
            write_run(tmp_path / "s", [(0.5, accuracy)], **facts)
    runs = reporting.load_runs(tmp_path / "s")
    groups = reporting.get_grouped_records(reporting.records_of(runs))
    draws = data.draws(runs, groups, OracleSelectionMethod)
    frame = data.sensitivity(draws)
    assert {*frame["hparam"]} == {"lr"}
    assert frame["gain"].tolist() == pytest.approx([-2, 0, 2] * 2)
    correlations = data.rank_correlations(frame)
    assert correlations["ERM", "lr"] == pytest.approx(1)


def test_labels_keep_their_distance():
    places = svg.spread(np.array([0.0, 0.1, 5.0]), gap=1.0)
    assert places.tolist() == pytest.approx([-0.45, 0.55, 5.0])


def test_limits_do_not_magnify_noise():
    low, high = svg.padded(50.0, 50.2)
    assert high - low == pytest.approx(4)
    assert svg.padded(math.nan, math.nan) == (0, 100)


def test_costs_compare_methods_on_the_domains_that_all_have():
    mean = pd.DataFrame({"A": [50.0, 60.0], "C": [90.0, math.nan]}, ["ERM", "LFA"])
    steps = pd.DataFrame(
        {
            "algorithm": ["ERM"] * 3,
            "step": [0, 1, 2],
            "step_time": [900.0, 2.0, 4.0],
            "mem_gb": [1.0, 2.0, 2.0],
        }
    )
    runs = pd.DataFrame({"algorithm": ["LFA"], "parameters": [7]})
    costs = data.costs(steps, runs, mean).set_index("algorithm")
    assert costs["accuracy"].to_dict() == {"ERM": 50.0, "LFA": 60.0}
    assert costs.loc["ERM", ["step_time", "mem_gb"]].tolist() == [3.0, 2.0]
    assert costs.loc["LFA", "parameters"] == 7
