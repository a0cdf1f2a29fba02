import json
import math
import os

import pytest

from domainbed.lib.query import Q
from domainbed.lib.reporting import (
    get_grouped_records,
    load_records,
    load_runs,
    parse_record,
)


def record(test_envs, step=0, **args):
    args = {"trial_seed": 0, "dataset": "D", "algorithm": "A", "hparams_seed": 0} | args
    args = {"test_envs": test_envs, "output_dir": "out", **args}
    return {"step": step, "args": args, "hparams": {}}


def write(folder, *lines):
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("".join(f"{line}\n" for line in lines))


def test_records_come_run_by_run_in_sorted_order(tmp_path, capsys):
    for name in ("b", "a"):
        lines = [json.dumps(record([0], step, run=name)) for step in range(2)]
        write(tmp_path / name, *lines)
    (tmp_path / "unrelated").mkdir()
    (tmp_path / "results.txt").write_text("")
    read = load_records(tmp_path)
    assert read.select("args.run,step") == [("a", 0), ("a", 1), ("b", 0), ("b", 1)]
    unrelated = f"1 folders hold no records: {tmp_path / 'unrelated'}\n"
    assert capsys.readouterr().err == unrelated


def test_broken_records_are_named_and_left_out(tmp_path, capsys):
    whole = json.dumps(record([0]))
    write(tmp_path / "a", whole, whole[:20], "[]", "3", '{"step": 0, "args": null}')
    write(tmp_path / "b")
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "results.jsonl").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "d").mkdir()
    os.mkfifo(tmp_path / "d" / "results.jsonl")  # waits for ever if it is opened
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "results.jsonl").symlink_to("nowhere")
    assert load_records(tmp_path) == [record([0])]
    warning, empty, _ = capsys.readouterr().err.split("\n")
    assert warning.endswith(": no JSON (2), no object args (3)")
    assert warning.startswith("warning: 7 broken records left out: ")
    for line in (2, 3, 4, 5):
        assert f"/a/results.jsonl line {line}" in warning
    assert "/c/results.jsonl line 1 and 2 more" in warning
    assert empty == f"1 folders hold no records: {tmp_path / 'b'}"


def test_a_mark_of_windows_before_the_first_record_is_none_of_it(tmp_path, capsys):
    (tmp_path / "a").mkdir()
    line = json.dumps(record([0])).encode()
    (tmp_path / "a" / "results.jsonl").write_bytes(b"\xef\xbb\xbf" + line + b"\r\n")
    assert load_records(tmp_path) == [record([0])]
    assert capsys.readouterr().err == ""


def test_a_record_of_two_test_envs_stands_in_both_groups():
    single, pair = record([0]), record([0, 2])
    groups = get_grouped_records(Q([pair, single]))
    assert [(g["test_env"], g["records"]) for g in groups] == [
        (0, [pair, single]),
        (2, [pair]),
    ]


def test_groups_differ_in_trial_dataset_algorithm_and_env():
    records = [
        record([1], trial_seed=1),
        record([1], dataset="E"),
        record([1], algorithm="B"),
        record([1]),
        record([1], hparams_seed=5),
    ]
    groups = get_grouped_records(Q(records))
    names = ("trial_seed", "dataset", "algorithm", "test_env")
    found = [(*(g[name] for name in names), len(g["records"])) for g in groups]
    assert found == [
        (0, "D", "A", 1, 2),
        (0, "D", "B", 1, 1),
        (0, "E", "A", 1, 1),
        (1, "D", "A", 1, 1),
    ]


def test_one_bad_byte_costs_one_line(tmp_path, capsys):
    lines = [json.dumps(record([0], step)).encode() for step in range(3)]
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "results.jsonl").write_bytes(
        b"\n".join([lines[0], b"\xff" + lines[1], lines[2], lines[2][:30]])
    )
    (tmp_path / "b" / "results.jsonl").mkdir(parents=True)
    assert load_records(tmp_path).select("step") == [0, 2]
    warning = capsys.readouterr().err
    assert "3 broken records left out" in warning
    for place in (
        "line 2",
        "line 4",
        f"{tmp_path / 'b' / 'results.jsonl'} (not a file)",
    ):
        assert place in warning


@pytest.mark.parametrize(
    "change",
    [
        {"step": "1"},
        {"step": math.nan},
        {"step": math.inf},
        {"step": True},
        {"args": {"dataset": None}},
        {"args": {"algorithm": ["ERM"]}},
        {"args": {"trial_seed": "0"}},
        {"args": {"hparams_seed": 0.5}},
        {"args": {"test_envs": []}},
        {"args": {"test_envs": [-1]}},
        {"args": {"test_envs": [[0]]}},
        {"args": {"test_envs": ["0"]}},
        {"args": {"output_dir": 3}},
        {"args": {"holdout_fraction": "0.2"}},
        {"hparams": "lr=1"},
        {"env0_in_acc": "0.5"},
        {"env0_in_acc": None},
        {"env0_out_acc": [0.5]},
        {"env0_out_acc": math.inf},
        {"env0_out_acc": 57.3},
        {"env01_out_acc": 0.5},
        {"env٣_out_acc": 0.5},
        {"fd_env0_in_acc": {}},
    ],
    ids=ascii,
)
def test_a_record_of_the_wrong_types_is_none(change):
    whole = record([0]) | {"env0_in_acc": 0.5, "env0_out_acc": 1}
    assert parse_record(json.dumps(whole)) == whole
    args = whole["args"] | change.pop("args", {})
    assert parse_record(json.dumps(whole | change | {"args": args})) is None


def test_names_in_no_utf_8_are_escaped():
    """As a domain's folder that an old Windows archive left."""
    names = ["\udcc0lpha", "\ud800", "ä", "😀", "\\ud800"]
    read = parse_record(json.dumps(record([0]) | {"environments": names}))
    escaped = ["\\udcc0lpha", "\\ud800", "ä", "😀", "\\ud800"]
    assert read == record([0]) | {"environments": escaped}


@pytest.mark.parametrize("levels", [50, 5_000, 200_000])
def test_a_record_may_not_be_deep(levels):
    deep = "[" * levels + "]" * levels
    line = json.dumps(record([0]) | {"hparams": {"deep": None}})
    assert parse_record(line.replace("null", "[[1]]")) is not None
    assert parse_record(line.replace("null", deep)) is None


@pytest.mark.parametrize(
    "change, fault",
    [
        ({"hparams": None}, "hparams is no object"),
        ({"env0_in_acc": 57.3}, "env0_in_acc is no share of 1"),
        ({"args": {"hparams_seed": None}}, "args.hparams_seed is no whole number"),
        ({"args": {"test_envs": [[0], [1]]}}, "args.test_envs is no list of numbers"),
    ],
)
def test_it_is_said_why_a_record_is_none(change, fault, tmp_path, capsys):
    whole = record([0])
    args = whole["args"] | change.pop("args", {})
    write(tmp_path / "a", json.dumps(whole | change | {"args": args}))
    assert load_records(tmp_path) == []
    assert fault in capsys.readouterr().err


def test_the_last_record_of_a_step_counts(tmp_path, capsys):
    again = [record([0], step) | {"attempt": n} for n in (1, 2) for step in (0, 10)]
    write(tmp_path / "a", *map(json.dumps, [*again, record([0], 20)]))
    assert load_records(tmp_path).select("step") == [0, 10, 20]
    assert load_records(tmp_path)[:2].select("attempt") == [2, 2]
    assert "1 runs have records of one step twice" in capsys.readouterr().err


def test_a_run_in_two_folders_counts_once(tmp_path, capsys):
    def run(n_steps, **places):
        return [json.dumps(record([0], step, **places)) for step in range(n_steps)]

    short = {"output_dir": "a", "data_dir": "here"}
    write(tmp_path / "one" / "a", *run(2, **short))
    write(tmp_path / "one" / "b", *run(1, hparams_seed=1))
    write(tmp_path / "two" / "c", *run(3, output_dir="c", data_dir="there"))
    read = load_records(tmp_path / "one", tmp_path / "two")
    found = read.select(lambda r: (r["args"]["hparams_seed"], r["step"]))
    assert found == [(0, 0), (0, 1), (0, 2), (1, 0)]  # the longer copy
    said = f"1 runs stand in several folders and count once: {tmp_path / 'two' / 'c'}"
    assert said in capsys.readouterr().err


def test_how_a_run_worked_makes_no_other_run(tmp_path, capsys):
    """A copy with another --num_workers made leave-one-domain-out an X."""
    write(tmp_path / "one" / "a", json.dumps(record([0], hparams='{"lr": 1}')))
    how = {"quiet": True, "num_workers": 3, "feature_dir": "f", "steps": None}
    again = record([0], hparams='{ "lr": 1 }', **how)
    write(tmp_path / "two" / "b", json.dumps(again))
    assert len(load_records(tmp_path / "one", tmp_path / "two")) == 1
    assert "1 runs stand in several folders" in capsys.readouterr().err
    write(tmp_path / "three" / "c", json.dumps(record([0], steps=5)))
    assert len(load_records(tmp_path / "one", tmp_path / "three")) == 2
    deep = record([0], hparams="[" * 100_000)
    write(tmp_path / "four" / "d", json.dumps(deep))
    assert load_records(tmp_path / "four") == [deep]


def test_a_runs_records_share_their_args(tmp_path):
    lines = [json.dumps(record([0], step)) for step in range(3)]
    write(tmp_path / "a", *lines)
    assert len({id(r["args"]) for r in load_records(tmp_path)}) == 1
    ((folder, run),) = load_runs(tmp_path)
    assert (folder, len(run)) == (tmp_path / "a", 3)


@pytest.mark.parametrize("name", ["loss", "penalty", "env0_out_acc"])
def test_a_nan_takes_the_accuracies_with_it(name, tmp_path, capsys):
    accs = {"env0_in_acc": 0.5, "env0_out_acc": 0.5, "fd_env0_in_acc": 0.5}
    lines = [record([0], step) | accs | {"loss": 0.5} for step in (0, 1)]
    lines[1] |= {name: math.nan, "mem_gb": 1.0}
    write(tmp_path / "a", *map(json.dumps, lines))
    first, second = load_records(tmp_path)
    assert first == lines[0]
    assert all(math.isnan(second[key]) for key in accs)
    assert second["mem_gb"] == 1.0
    assert (
        f"1 runs diverged (their records hold NaN): {tmp_path / 'a'}"
        in capsys.readouterr().err
    )


def test_a_folders_name_cannot_write_lines_of_its_own(tmp_path, capsys):
    (tmp_path / "a\nwarning: all is lost \x1b[31m").mkdir()
    assert load_records(tmp_path) == []
    assert r"a\nwarning: all is lost \x1b[31m" in capsys.readouterr().err
