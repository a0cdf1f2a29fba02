import json

from domainbed.lib.query import Q
from domainbed.lib.reporting import get_grouped_records, load_records


def record(test_envs, step=0, **args):
    args = {"trial_seed": 0, "dataset": "D", "algorithm": "A", "hparams_seed": 0} | args
    return {"step": step, "args": {"test_envs": test_envs, **args}}


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
    (tmp_path / "d" / "results.jsonl").mkdir(parents=True)
    assert load_records(tmp_path) == [record([0])]
    warning = capsys.readouterr().err
    assert "6 broken records left out" in warning
    for place in ("line 2", "line 3", "line 4", "line 5", "/c/results", "/d/results"):
        assert place in warning


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
