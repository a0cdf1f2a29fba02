"""What TensorBoard reads of a run is what results.jsonl has."""

import builtins
import json

import numpy as np
import pytest
from helpers import command, lines
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams.plugin_data_pb2 import HParamsPluginData

from domainbed.runs import tensorboard
from domainbed.scripts import sweep, train

pytestmark = pytest.mark.filterwarnings("ignore:no class names")


def read(folder):
    """TensorBoard's own reading of a run; no point of a curve is left out."""
    return EventAccumulator(
        str(folder / "tensorboard"), size_guidance={"scalars": 0}
    ).Reload()


def curves(folder):
    events = read(folder)
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def recorded(folder):
    """The same of results.jsonl; an event holds single precision."""
    records = [
        json.loads(x) for x in (folder / "results.jsonl").read_text().split("\n")[:-1]
    ]
    names = {n for n, v in records[0].items() if isinstance(v, float)} - {"step"}
    names |= {"loss"} & set(records[0])
    return {
        name: [(r["step"], float(np.float32(r[name]))) for r in records if name in r]
        for name in names
    }


def hparams_of(folder):
    """The hyperparameters, and the tags of the metrics, that the HParams page reads."""
    found = read(folder).summary_metadata
    parts = {
        tag: HParamsPluginData.FromString(data.plugin_data.content)
        for tag, data in found.items()
        if data.plugin_data.plugin_name == "hparams"
    }
    start = parts["_hparams_/session_start_info"].session_start_info.hparams
    values = {
        name: getattr(value, value.WhichOneof("kind")) for name, value in start.items()
    }
    metrics = parts["_hparams_/experiment"].experiment.metric_infos
    return values, {metric.name.tag for metric in metrics}


def test_curves_are_the_records(tmp_path):
    train.main(command(tmp_path))
    assert curves(tmp_path) == recorded(tmp_path)
    assert {"loss", "step_time", "env0_in_acc"} <= curves(tmp_path).keys()


@pytest.mark.parametrize(
    "name, n, after",
    [
        ("record", 2, True),  # a point that the state does not know
        ("to_device", 12, False),
        ("save_model", 1, False),  # all steps taken
    ],
)
def test_an_interrupted_run_has_no_point_twice(tmp_path, interrupt, name, n, after):
    repair = interrupt(name, n, after)
    with pytest.raises(SystemExit):
        train.main(command(tmp_path))
    assert curves(tmp_path) == recorded(tmp_path)
    repair()
    train.main(command(tmp_path))
    assert curves(tmp_path) == recorded(tmp_path)
    assert [step for step, _ in curves(tmp_path)["loss"]] == [0, 4, 8]
    assert hparams_of(tmp_path)


def test_the_hparams_page_compares_final_accuracies(tmp_path):
    train.main(command(tmp_path, "--test_envs", "1"))
    values, metrics = hparams_of(tmp_path)
    assert values["batch_size"] == 4
    assert values["algorithm"] == "LFA"
    assert values["test_envs"] == "[1]"
    assert metrics == {name for name in recorded(tmp_path) if name.endswith("_acc")}


def test_layer_attention_is_drawn(tmp_path):
    train.main(command(tmp_path))
    attention = json.loads((tmp_path / "layer_attention.json").read_text())
    image = attention["environments"]["0"]["image"]
    events = read(tmp_path)
    tags = {f"layer_attention/{name}" for name in ("image", "cross", "self")}
    assert {*events.Tags()["images"]} == tags
    (drawn,) = events.Images("layer_attention/image")
    n_rows = len(attention["environments"])
    cell = tensorboard.CELL
    assert (drawn.height, drawn.width) == (n_rows * cell, len(image) * cell)


def test_white_weighs_most():
    attention = {
        "environments": {
            "a": {"image": [0.5, 0.25], "cross": [1, 0]},
            "b": {"image": [0, 0.5], "cross": [0, 0]},
            "without images": {},
        },
        "classes": {},
    }
    images = tensorboard.attention_images(attention)
    assert images.keys() == {"layer_attention/image", "layer_attention/cross"}
    pixels, rows = images["layer_attention/image"]
    assert rows == ["a", "b"]
    cell = tensorboard.CELL
    assert pixels[::cell, ::cell, 0].tolist() == [[255, 127], [0, 255]]
    assert (pixels[:cell, :cell] == 255).all()


def test_no_tensorboard_leaves_no_folder_and_the_same_records(tmp_path):
    train.main(command(tmp_path / "with"))
    train.main(command(tmp_path / "without", "--no_tensorboard"))
    assert not (tmp_path / "without" / "tensorboard").exists()
    with_, without = (
        [json.loads(line) for line in lines(tmp_path / name)]
        for name in ("with", "without")
    )
    for record in (*with_, *without):
        del record["args"]["no_tensorboard"]
    assert with_ == without
    train.main(command(tmp_path / "with", "--no_tensorboard", "--no_resume"))
    assert not (tmp_path / "with" / "tensorboard").exists()


def no_import(monkeypatch):
    real = builtins.__import__

    def refuse(name, *args, **kwargs):
        if name.startswith(("tensorboard.", "torch.utils.tensorboard")):
            raise TypeError("Descriptors cannot be created directly.")
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", refuse)


def no_disk(monkeypatch):
    def write(log, step, **what):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(tensorboard.TensorBoardLog, "_write", write)


def no_hparams(monkeypatch):
    def hparams(*_):
        raise ValueError("no hparams today")

    monkeypatch.setattr("torch.utils.tensorboard.summary.hparams", hparams)


@pytest.mark.parametrize("break_it", [no_import, no_disk, no_hparams])
def test_a_broken_log_never_fails_a_run(tmp_path, monkeypatch, capsys, break_it):
    break_it(monkeypatch)
    train.main(command(tmp_path))
    assert (tmp_path / "done").exists()
    assert len(lines(tmp_path)) == 3
    assert capsys.readouterr().err.count("no more is written for TensorBoard") == 1


def test_a_sweeps_jobs_get_the_flag_and_keep_their_names(tmp_path):
    flags = [
        "launch",
        "--datasets",
        "Debug28",
        "--algorithms",
        "LFA",
        "--n_trials",
        "1",
    ]
    flags += ["--data_dir", "data", "--output_dir", str(tmp_path), "--n_hparams", "1"]
    own = sweep.jobs_of(sweep.parse_args(flags))
    off = sweep.jobs_of(sweep.parse_args([*flags, "--no_tensorboard"]))
    assert [job.output_dir for job in own] == [job.output_dir for job in off]
    assert all("--no_tensorboard" in job.command_str.split() for job in off)
    assert not any("--no_tensorboard" in job.command_str for job in own)
