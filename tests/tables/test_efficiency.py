"""`efficiency`: its figures are the formulas', its three forms say the same."""

import json
import os
import platform

import pytest
import torch

from domainbed.algorithms_lfa import LFA
from domainbed.backbones import load_clip
from domainbed.lib.children import caught, in_child
from domainbed.lib.errors import InputError
from domainbed.scripts.efficiency import main
from domainbed.tables.costs import SOURCES
from domainbed.tables.efficiency import COLUMNS


@pytest.fixture
def here(monkeypatch):
    """Measurements take place in this process; what was measured."""
    calls = []

    def in_child(function, args):
        calls.append((function.__name__, args.algorithm, args.no_feature_store))
        return caught(function, args)

    monkeypatch.setattr("domainbed.scripts.efficiency.in_child", in_child)
    return calls


@pytest.fixture
def report_of(tmp_path, capsys):
    """The report of a command in its forms: JSON, text, LaTeX."""

    def run(algorithms, *argv, exits=None):
        folder = tmp_path / "out"
        command = ["--algorithms", *algorithms, "--steps", "2", *argv]
        command += ["--output_dir", str(folder)]
        if exits is None:
            main(command)
        else:
            with pytest.raises(SystemExit) as exited:
                main(command)
            assert exited.value.code == exits
        text = (folder / "efficiency.txt").read_text()
        assert capsys.readouterr().out == text
        report = json.loads((folder / "efficiency.json").read_text())
        return report, text, (folder / "efficiency.tex").read_text()

    return run


@pytest.fixture
def on_pacs(pacs, report_of, here):
    """`report_of` on the tiny PACS, measured in this process."""

    def run(*algorithms, hparams=(), exits=None):
        argv = ["--dataset", "PACS", "--data_dir", str(pacs), "--num_workers", "0"]
        argv += ["--hparams", "clip_backbone=emoji", *hparams]
        return report_of(algorithms, *argv, exits=exits)

    return run


def row_of(name, table, separator=None):
    """The cells after the name; sentences above the table may begin with it too."""
    *_, row = (line for line in table.splitlines() if line.startswith(f"{name} "))
    first, *cells = row.removesuffix(r"\\").split(separator)
    assert first.strip() == name
    return [cell.strip() for cell in cells]


def n_parameters(report):
    return {method["algorithm"]: method["parameters"] for method in report["methods"]}


def test_figures_of_frozen_methods(on_pacs):
    report, text, latex = on_pacs("ZeroShotCLIP", "LinearProbeCLIP", "LFA")
    clip = load_clip("emoji")
    image, words = clip.image_projection.numel(), clip.text_projection.numel()
    assert n_parameters(report) == {
        "ZeroShotCLIP": 0,
        "LinearProbeCLIP": image + words,
        "LFA": 3 * image + 5 * words,
    }
    assert (report["items"], report["batch_size"], report["steps"]) == (40, 32, 2)
    for method in report["methods"]:
        name, sources = method["algorithm"], [method[source] for source in SOURCES]
        for figures in sources:
            assert figures["memory_gb"] > 0.1 and figures["inference_seconds"] > 0
            assert (figures["train_seconds"] is None) == (name == "ZeroShotCLIP")
        figures = [figures[column] for figures in sources for column in COLUMNS]
        shown = ["-" if f is None else f"{f:,.2f}" for f in figures]
        shown = [f"{method['parameters']:,}", *shown]
        assert row_of(name, text) == row_of(name, latex, "&") == shown


def test_features_are_extracted_once_and_apart(on_pacs, here):
    report, text, _ = on_pacs("LFA", "LinearProbeCLIP")
    assert here == [
        ("measure", "LFA", True),
        ("extract", "LFA", False),
        ("measure", "LFA", False),
        ("measure", "LinearProbeCLIP", True),
        ("extract", "LinearProbeCLIP", False),
        ("measure", "LinearProbeCLIP", False),
    ]
    first, second = (method["extraction_seconds"] for method in report["methods"])
    assert first > 0 and second > 0
    assert f"Storing the features took {first + second:.1f} s" in text


def test_a_method_that_takes_no_features_has_no_figures_of_the_store(
    on_pacs, here, monkeypatch
):
    monkeypatch.setattr(LFA, "TAKES_FEATURES", False)
    _, text, latex = on_pacs("LFA")
    assert here == [("measure", "LFA", True)]
    assert "Storing" not in text
    for cells in (row_of("LFA", text), row_of("LFA", latex, "&")):
        assert cells[-3:] == ["-"] * 3 and "-" not in cells[:-3]


def test_images_at_random_are_no_features(on_pacs):
    report, *_ = on_pacs("LFA", hparams=["clip_transform=false"])
    (method,) = report["methods"]
    assert method["images"] and method["store"] is None
    assert method["extraction_seconds"] is None


def test_any_algorithm_on_stored_vectors(on_pacs):
    report, *_ = on_pacs("ERM", hparams=["input=features"])
    (method,) = report["methods"]
    assert method["images"] is None and method["store"]["train_seconds"] > 0


def test_a_method_that_fails_leaves_the_others(on_pacs, monkeypatch):
    def build(self):
        raise InputError("no room for 100% of\nit.")

    monkeypatch.setattr(LFA, "build", build)
    report, text, latex = on_pacs("LFA", "LinearProbeCLIP", exits=1)
    assert "LFA from images: no room for 100% of it." in text
    assert r"LFA from the store: no room for 100\% of it." in latex
    assert row_of("LFA", text) == row_of("LFA", latex, "&") == ["failed"] * 7
    assert "failed" not in row_of("LinearProbeCLIP", text)
    assert n_parameters(report)["LFA"] is None


def test_a_hyperparameter_is_for_those_that_have_it(on_pacs):
    report, *_ = on_pacs("LFA", "DPLCLIP", hparams=["num_domain_tokens=2"])
    clip = load_clip("emoji")
    n_embed, n_out = clip.image_projection.shape[1], 2 * len(clip.text_projection)
    # An MLP of depth 3 and width 512, with biases.
    expected = (n_embed + 1) * 512 + (512 + 1) * 512 + (512 + 1) * n_out
    assert n_parameters(report)["DPLCLIP"] == expected
    assert n_parameters(report)["LFA"] is not None


@pytest.mark.parametrize(
    ("wrong", "sentence"),
    [
        (["--algorithms", "LFB"], "Unknown algorithm 'LFB'"),
        (["--hparams", "bta=1"], "Did you mean 'beta'?"),
        (["--hparams", "beta=high"], "hyperparameter 'beta' of LFA is 'high'"),
        (["--steps", "0"], "--steps is 0; it must be at least 1."),
        (["--test_envs", "Q"], "--test_envs Q is no environment"),
        (["--data_dir", "nowhere"], "PACS is not at nowhere/PACS"),
    ],
)
def test_wrong_input_ends_in_a_sentence(wrong, sentence, pacs, tmp_path, capsys, here):
    command = ["--algorithms", "LFA", "--dataset", "PACS", "--data_dir", str(pacs)]
    with pytest.raises(SystemExit) as exited:
        main([*command, *wrong, "--output_dir", str(tmp_path / "out")])
    printed = capsys.readouterr()
    assert exited.value.code == 2
    assert sentence in printed.err and printed.err.count("\n") == 1
    assert not here and not (tmp_path / "out").exists()


def test_a_real_process_measures_and_names_the_machine(report_of):
    report, text, _ = report_of(["ERM"], "--dataset", "Debug28")
    machine = report["machine"]
    assert machine["cores"] == os.cpu_count() and machine["cpu"] in text
    assert report["versions"]["python"] == platform.python_version()
    assert report["versions"]["torch"] == torch.__version__
    assert report["methods"][0]["images"]["train_seconds"] > 0


def test_a_process_that_is_killed_is_an_error():
    assert "killed" in in_child(os._exit, 1)["error"]
