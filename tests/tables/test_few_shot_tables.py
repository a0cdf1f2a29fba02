"""Tables of few-shot runs."""

import json

import pytest

from domainbed.scripts import collect_results

ACCS = {"LFA": (0.8, 0.6), "ZeroShotCLIP": (0.5, 0.7)}


def write(folder, dataset, algorithm, accs, trial=0, step=9, **changed):
    """A finished few-shot run with those accuracies of its tests."""
    args = {"dataset": dataset, "algorithm": algorithm, "trial_seed": trial}
    args |= {"hparams_seed": 0, "task": "few_shot", "shots": 4, "classes": "all"}
    args |= {"source": None, "transfer_to": None, "output_dir": str(folder)}
    args |= {"test_envs": [*range(1, len(accs) + 1)]} | changed
    record = {"step": step, "args": args, "hparams": changed.pop("hparams", {})}
    record |= {f"env{i}_in_acc": acc for i, acc in enumerate(accs, start=1)}
    record |= {"env0_in_acc": 1.0, "env0_out_acc": 0.5}
    own = folder / f"{dataset}{algorithm}{trial}{args['shots']}{args['hparams_seed']}"
    own.mkdir(parents=True, exist_ok=True)
    with open(own / "results.jsonl", "a") as file:
        file.write(json.dumps(record) + "\n")


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
    facts = {"source": "noto", "transfer_to": ["EuroSAT"]}
    write(tmp_path, "EmojiDG", "LFA", [0.1, 0.2, 0.3, 0.4, 0.5], **facts)
    text = tables(tmp_path, capsys)
    title = "Dataset: EmojiDG, 4 shots, all classes, from noto"
    header = row(text, title, "Algorithm")
    assert header[1:] == ["fluent", "noto", "openmoji", "twemoji", "EuroSAT", "Avg"]
    cells = row(text, title, "LFA")[1::3]
    assert cells == [f"{n}.0" for n in (10, 20, 30, 40, 50, 30)]


def test_the_last_step_counts_and_the_draw_best_on_validation(tmp_path, capsys):
    write(tmp_path, "OxfordPets", "LFA", [0.9], step=3)
    write(tmp_path, "OxfordPets", "LFA", [0.7], step=9)
    write(tmp_path, "OxfordPets", "GDA", [0.6], hparams={"as_published": True})
    text = tables(tmp_path, capsys)
    assert row(text, "Dataset: OxfordPets", "LFA")[1] == "70.0"
    assert row(text, "Dataset: OxfordPets", "GDA *")[2] == "60.0"
    assert "* chose on the test images" in text


def test_few_shot_runs_have_tables_of_their_own(tmp_path, capsys):
    write(tmp_path, "OxfordPets", "LFA", [0.9])
    with pytest.raises(SystemExit):
        collect_results.main(["--input_dir", str(tmp_path), "--format", "csv"])
    assert "no tables in the format csv" in capsys.readouterr().err
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
    for title in ("Dataset: OxfordPets", "Averages"):
        cells = row(four, title, "MaPLe")[1:]
        assert cells == ["95.4", "97.8", "96.6"]
    assert text.count("MaPLe") == 2  # not below those of one shot
    own = tables(tmp_path / "s", capsys)
    assert "".join(line for line in own.splitlines(True) if line in text) == own
    file.write_text("method,dataset,shots,classes,base\nX,EuroSAT,4,base,95.43\n")
    with pytest.raises(SystemExit):
        tables(tmp_path / "s", capsys, "--baseline", str(file))
    said = capsys.readouterr()
    assert "has no figures for these datasets, shots and classes" in said.err
    assert not said.out
