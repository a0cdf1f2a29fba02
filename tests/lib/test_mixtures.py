import json

from domainbed.lib.mixtures import facts_of, mixtures, same_draws
from domainbed.lib.query import Q

ABOUT = {
    "args": {"dataset": "PACS", "trial_seed": 0, "test_envs": [0]},
    "versions": {"python": "3.10", "torch": "2.4", "domainbed": "0.1"},
    "git": None,
    "device": "cpu",
    "dataset": "d1",
    "split": "s1",
}


def write(folder, about=ABOUT, **changes):
    folder.mkdir(parents=True)
    (folder / "results.jsonl").write_text("")
    if about is not None:
        args = about["args"] | changes.pop("args", {})
        text = json.dumps(about | changes | {"args": args})
        (folder / "run.json").write_text(text)


def test_runs_alike_are_not_spoken_of(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", versions=ABOUT["versions"] | {"python": "3.13"})
    write(tmp_path / "other_data", args={"dataset": "VLCS"}, dataset="d2", split="s2")
    write(tmp_path / "other_trial", args={"trial_seed": 1}, split="s3")
    write(tmp_path / "other_env", args={"test_envs": [1]}, split="s4")
    assert list(mixtures(facts_of(tmp_path))) == []


def test_every_difference_has_its_line(tmp_path):
    for name in "ab":
        write(tmp_path / name)
    versions = {"python": "3.10", "torch": "2.5", "domainbed": "0.2"}
    changes = {"versions": versions, "git": "abc-dirty", "device": "H200"}
    write(tmp_path / "c", dataset="d2", split="s2", **changes)
    assert list(mixtures(facts_of(tmp_path))) == [
        "warning: runs differ in torch version: 2.4 (2 runs), 2.5 (1 runs)",
        "warning: runs differ in domainbed version: 0.1 (2 runs), 0.2 (1 runs)",
        "warning: runs differ in git state: None (2 runs), abc-dirty (1 runs)",
        "warning: runs differ in device: cpu (2 runs), H200 (1 runs)",
        "warning: runs differ in data of PACS: d1 (2 runs), d2 (1 runs)",
        "warning: runs differ in splits of PACS in trial 0, test environments [0]: "
        "s1 (2 runs), s2 (1 runs)",
    ]


def test_many_mixed_splits_of_a_dataset_are_one_line(tmp_path):
    for env in range(4):
        for split in "st":
            write(tmp_path / f"{env}{split}", args={"test_envs": [env]}, split=split)
    (line,) = mixtures(facts_of(tmp_path))
    assert "test environments [0]: s (1 runs), t (1 runs); so do 3 others" in line


def test_folders_are_compared_with_each_other(tmp_path):
    write(tmp_path / "one" / "a")
    write(tmp_path / "two" / "b", device="H200")
    assert len([*mixtures(facts_of(tmp_path / "one", tmp_path / "two"))]) == 1
    assert [*mixtures(facts_of(tmp_path / "one"))] == []


def test_missing_files_count_where_others_have_them(tmp_path):
    write(tmp_path / "a", about=None)
    write(tmp_path / "b", about=None)
    (tmp_path / "b" / "run.json").write_text('{"args": 3}')
    assert list(mixtures(facts_of(tmp_path))) == []
    for name, text in (("c", "[" * 100_000), ("d", "[]"), ("e", '"x"'), ("f", "")):
        write(tmp_path / name, about=None)
        (tmp_path / name / "run.json").write_text(text)
    write(tmp_path / "whole")
    (line,) = mixtures(facts_of(tmp_path))
    assert "6 of 7 runs do not say what they were made from" in line


def test_values_cannot_write_lines_of_their_own(tmp_path):
    write(tmp_path / "a")
    write(tmp_path / "b", device="cpu\n\x1b[31mwarning")
    (line,) = mixtures(facts_of(tmp_path))
    assert line.isprintable()


def run(**args):
    names = {"dataset": "PACS", "algorithm": "LFA", "test_envs": [0]}
    return {"args": names | {"trial_seed": 0, "hparams_seed": 0} | args}


def test_runs_of_one_draw_that_are_no_copies_are_named():
    alone = [run(), run(quiet=True), run(hparams_seed=1), run(trial_seed=1, steps=5)]
    assert [*same_draws(Q(alone))] == []
    (line,) = same_draws(Q([*alone, run(seed=1, steps=7), run(seed=2), run(seed=1)]))
    assert line == (
        "warning: 1 draws have several runs that count as one, the best step of all: "
        "PACS, LFA, test environments [0], trial 0, draw 0: "
        "--seed was 0 and is 1, --steps was None and is 7"
    )


def test_what_chose_as_published_has_a_row_of_its_own_in_few_shot_tables():
    """Elsewhere it has not: its runs count as one with the others of their draw."""
    published = {"hparams": {"as_published": True}}
    asked = {"hparams": '{"as_published": true}'}
    for shots, n in ({"shots": 4}, 0), ({}, 1):
        both = [run(**shots), run(**shots, **asked) | published]
        assert len([*same_draws(Q(both))]) == n


def test_a_run_that_went_on_elsewhere_is_a_mixture_itself(tmp_path):
    first = {"versions": ABOUT["versions"], "git": None, "device": "cpu"}
    second = first | {"device": "H200"}
    write(tmp_path / "a")
    write(tmp_path / "b", attempts=[first, first])
    write(tmp_path / "c", attempts=[first, second, second])
    assert list(mixtures(facts_of(tmp_path))) == [
        "warning: runs differ in device: cpu (2 runs), cpu then H200 (1 runs)"
    ]


def test_the_order_in_which_test_environments_are_named_makes_no_other_draw():
    names = ("dataset", "algorithm", "trial_seed", "hparams_seed")
    args = dict.fromkeys(names, 0) | {"test_envs": [0, 1], "steps": 5}
    other = args | {"test_envs": [1, 0]}
    records = [{"args": args, "hparams": {}}, {"args": other, "hparams": {}}]
    assert [*same_draws(Q(records))] == []
    records[1]["args"] = other | {"steps": 7}
    (line,) = same_draws(Q(records))
    assert "--steps was 5 and is 7" in line
