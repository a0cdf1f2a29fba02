"""Whatever stands in other runs' files, a good run's number stands in the tables."""

import contextlib
import io
import json
import math
import shutil

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from domainbed.scripts import collect_results, list_top_hparams

GOOD = {
    "step": 0,
    "args": {
        "dataset": "PACS",
        "algorithm": "ERM",
        "test_envs": [0],
        "trial_seed": 0,
        "hparams_seed": 0,
        "holdout_fraction": 0.2,
        "output_dir": "good",
    },
    "hparams": {"lr": 0.1},
    "loss": 0.5,
    **{f"env{i}_{part}_acc": 0.75 for i in range(4) for part in ("in", "out")},
}
OTHER = GOOD | {"args": GOOD["args"] | {"algorithm": "Theirs", "output_dir": "other"}}

scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["ERM/", "../x", "; rm", "\ud800", "PACS", "ImageFolder:\0", -1])
    | st.sampled_from([10**400, 1e308, 2**63, "\x1b[2J", "Avg", "\\end{table}", "[x"])
)
values = st.recursive(
    scalars,
    lambda inner: (
        st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner)
    ),
    max_leaves=8,
)
keys = st.sampled_from([*OTHER, "fd_env0_in_acc", "env9_out_acc", "env٣_in_acc"])
args = st.sampled_from([*OTHER["args"], "hparams"])


@st.composite
def mutations(draw):
    """OTHER with some of its values changed or gone."""
    record = OTHER | draw(st.dictionaries(keys, values, max_size=3))
    if isinstance(record["args"], dict):
        record["args"] = record["args"] | draw(
            st.dictionaries(args, values, max_size=3)
        )
    for part in (record, record["args"]):
        if isinstance(part, dict) and part and draw(st.integers(0, 4)) == 0:
            del part[draw(st.sampled_from([*part]))]
    return json.dumps(record).encode()


odd_names = st.text(max_size=8) | st.sampled_from(
    ["PACS", "VLCS", "ImageFolder:\0", "Avg", "\\end{table}", "[x", "*", "", "a\x1b\n"]
)
odd_args = {
    "dataset": odd_names,
    "algorithm": (odd_names | st.just("LFA")).filter(lambda name: name != "ERM"),
    "test_envs": st.lists(st.integers(0, 5) | st.just(10**30), min_size=1),
    "trial_seed": st.integers(0, 3) | st.just(10**30),
    "hparams_seed": st.integers(0, 3),
    "holdout_fraction": st.floats(),
    "output_dir": odd_names,
}
odd_records = st.fixed_dictionaries(
    {
        "step": st.integers(0, 3) | st.floats(0, 1e308),
        "args": st.fixed_dictionaries(odd_args),
        "hparams": st.dictionaries(odd_names, values, max_size=3),
        "loss": values,
    },
    optional={
        f"{prefix}env{i}_{part}_acc": st.floats(0, 1) | st.just(math.nan)
        for prefix in ("", "fd_")
        for i in range(6)
        for part in ("in", "out")
    },
).map(lambda record: json.dumps(record).encode())
lines = (
    odd_records  # whole ones
    | mutations()  # nearly whole ones
    | st.binary(max_size=80)
    | values.map(lambda value: json.dumps(value).encode())
)
files = st.lists(lines, max_size=6).map(b"\n".join) | st.binary(max_size=300)


def printed(*argv, script=collect_results):
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        script.main([*map(str, argv)])
    return out.getvalue(), err.getvalue()


def row_of_the_good_run(text):
    table = text.split("-------- Dataset: PACS, ")[1].split("\n")
    return next(line for line in table if line.startswith("ERM  "))


def sweep_with(folder, *others):
    """A sweep's folder with the good run and others, each a file's content."""
    shutil.rmtree(folder, ignore_errors=True)
    for number, content in enumerate([json.dumps(GOOD).encode(), *others]):
        run = folder / f"run{number}"
        run.mkdir(parents=True)
        (run / "results.jsonl").write_bytes(content)
    return folder


@settings(
    max_examples=60,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
@given(contents=st.lists(files, min_size=1, max_size=3), about=values | st.just(OTHER))
def test_the_good_runs_number_stands(contents, about, tmp_path):
    folder = sweep_with(tmp_path / "sweep", *contents)
    (folder / "run1" / "run.json").write_text(json.dumps(about))
    text, warnings = printed("--input_dir", folder)
    assert "75.0 +/- 0.0" in row_of_the_good_run(text)
    for line in (text + warnings).split("\n"):
        assert line.isprintable()
    data, _ = printed("--input_dir", folder, "--format", "json", "--selection", "iid")
    rows = [(r["algorithm"], r["environment"], r["mean"]) for r in json.loads(data)]
    assert ("ERM", "A", 75.0) in rows
    assert "75.0 $\\pm$ 0.0" in printed("--input_dir", folder, "--paper")[0]
    assert "75.0 ± 0.0" in printed("--input_dir", folder, "--format", "html")[0]
    printed("--input_dir", folder, "--auto_lr")
    of = ("--dataset", "PACS", "--algorithm", "ERM", "--test_env", 0)
    text, _ = printed("--input_dir", folder, *of, script=list_top_hparams)
    assert "'test_acc': 0.75" in text


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 1000,
        b"{" * 100_000,
        b'{"a": "' + b"x" * 10_000_000,
        json.dumps(OTHER | {"hparams": {"prompt": "x" * 10_000_000}}).encode(),
        (json.dumps(OTHER) + "\n").encode("utf-16"),
        json.dumps(OTHER | {"env" + "9" * 5000 + "_in_acc": 0.5}).encode(),
        json.dumps(OTHER).replace('"step": 0', f'"step": {"9" * 5000}').encode(),
    ],
    ids=range(8),
)
def test_monstrous_files_cost_no_other_number(content, tmp_path):
    text, _ = printed("--input_dir", sweep_with(tmp_path / "sweep", content))
    assert "75.0 +/- 0.0" in row_of_the_good_run(text)


def test_an_old_record_without_what_tables_do_not_need_counts(tmp_path):
    rest = ("holdout_fraction", "output_dir")
    args = {k: v for k, v in OTHER["args"].items() if k not in rest}
    short = {k: v for k, v in OTHER.items() if k != "hparams"} | {"args": args}
    folder = sweep_with(tmp_path / "sweep", json.dumps(short).encode())
    text, _ = printed("--input_dir", folder, "--auto_lr")
    assert text.startswith("Total records: 2\n")
    of = ("--dataset", "PACS", "--algorithm", "Theirs", "--test_env", 0)
    text, _ = printed("--input_dir", folder, *of, script=list_top_hparams)
    assert f"\t\t\t{folder / 'run1'}\n" in text


def test_a_run_with_a_nan_loss_never_wins(tmp_path):
    """Its answers are all one class, which may be the most frequent one by far."""
    won = {f"env{i}_{part}_acc": 0.9 for i in range(4) for part in ("in", "out")}
    args = GOOD["args"] | {"hparams_seed": 1}
    diverged = GOOD | won | {"loss": math.nan, "args": args}
    folder = sweep_with(tmp_path / "sweep", json.dumps(diverged).encode())
    text, warnings = printed("--input_dir", folder)
    assert text.count("75.0 +/- 0.0") == 4  # two methods, tables of PACS and averages
    assert "90.0" not in text
    assert f"1 runs diverged (their records hold NaN): {folder / 'run1'}" in warnings
    (folder / "run0" / "results.jsonl").unlink()
    text, _ = printed("--input_dir", folder)
    assert "90.0" not in text
    assert text.count("nan +/- nan") == 4
