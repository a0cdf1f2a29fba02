"""`Features:FILE`: runs on a file are the runs on the images, number for number."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helpers import lines, make_image_folder

from domainbed import datasets, training
from domainbed.lib import feature_file
from domainbed.lib.errors import InputError
from domainbed.lib.feature_file import read
from domainbed.scripts import collect_results, features, sweep, train

EMOJI = ["--hparams", "clip_backbone=emoji"]
RUN = ["--test_envs", "2", "--steps", "5", "--checkpoint_freq", "2"]
RUN += ["--no_tensorboard", "--num_workers", "0"]


@pytest.fixture(scope="module")
def pacs(tmp_path_factory):
    """As the fixture of that name, once for all tests here."""
    data = tmp_path_factory.mktemp("data")
    domains = ["art_painting", "cartoon", "photo", "sketch"]
    make_image_folder(data / "PACS", domains, ["dog", "house"])
    return data


@pytest.fixture(scope="module")
def exported(pacs, tmp_path_factory):
    """The feature file of a tiny PACS, in a folder without images."""
    path = tmp_path_factory.mktemp("shared") / "pacs.npz"
    export(pacs, path)
    return path


def export(pacs, path, *flags):
    of = ["--dataset", "PACS", "--data_dir", str(pacs), *EMOJI]
    features.main(["export", *of, "--to", str(path), *flags])


def of_run(folder):
    """Its records without what names the place of the data."""
    records = [json.loads(line) for line in lines(folder)]
    for record in records:
        record.pop("environments", None)
        for name in ("dataset", "data_dir", "hparams"):
            del record["args"][name]
        del record["hparams"]["clip_backbone"]
    return records


def run(folder, dataset, algorithm, *flags):
    what = ["--dataset", dataset, "--algorithm", algorithm]
    train.main([*what, *RUN, *flags, "--output_dir", str(folder)])
    return of_run(folder)


@pytest.mark.parametrize(
    "algorithm, hparams",
    [
        ("LFA", []),
        ("LinearProbeCLIP", ["layer=3"]),
        ("ZeroShotCLIP", []),
        ("ZeroShotCLIPName", []),
        ("GDA", []),
        ("LinearERM", []),
        ("ERM", ["input=features"]),
        ("ERM", ["input=layers"]),
    ],
)
def test_a_run_on_the_file_is_the_run_on_the_images(
    pacs, exported, tmp_path, algorithm, hparams
):
    own = [*EMOJI, "batch_size=4", *hparams]
    direct = run(tmp_path / "a", "PACS", algorithm, "--data_dir", str(pacs), *own)
    shared = run(
        tmp_path / "b", f"Features:{exported}", algorithm, "--hparams", *own[2:]
    )
    assert shared == direct
    first, second = (np.load(tmp_path / x / "predictions.npz") for x in "ab")
    for name in first:
        assert name == "data" or np.array_equal(first[name], second[name]), name


def test_a_methods_own_tower_is_named_and_must_have_made_the_file(
    pacs, exported, tmp_path
):
    own = [*EMOJI, "batch_size=4", "context_length=2"]
    direct = run(tmp_path / "a", "PACS", "CoOp", "--data_dir", str(pacs), *own)
    assert run(tmp_path / "b", f"Features:{exported}", "CoOp", *own) == direct
    args = train.parse_args(["--dataset", f"Features:{exported}", "--algorithm", "LFA"])
    args.hparams = '{"clip_backbone": "emoji+gelu"}'
    with pytest.raises(InputError, match=r"emoji\+gelu \(\w+gelu\) has not made"):
        training.Run(args)


def test_unlabeled_items_are_seen_in_adaptation(pacs, exported, tmp_path):
    task = ["--task", "domain_adaptation", "--uda_holdout_fraction", "0.5"]
    own = [*task, *EMOJI]
    direct = run(tmp_path / "a", "PACS", "T3A", "--data_dir", str(pacs), *own)
    assert run(tmp_path / "b", f"Features:{exported}", "T3A", *task) == direct


def test_the_file_carries_what_the_dataset_is(pacs, exported):
    file = read(exported)
    assert file.domain_names == ["A", "C", "P", "S"]
    assert file.class_names == ["dog", "house"]
    assert file.ids.tolist()[:2] == ["dog/0.png", "dog/1.png"]
    assert (file.n_steps, file.checkpoint_freq) == (5001, 300)
    dataset = datasets.get_dataset_class(f"Features:{exported}")
    assert (dataset.N_STEPS, dataset.CHECKPOINT_FREQ) == (5001, 300)
    assert dataset.ENVIRONMENTS == ("A", "C", "P", "S")
    again = exported.with_name("again.npz")
    export(pacs, again)
    assert again.read_bytes() == exported.read_bytes()


def test_what_trained_on_a_file_answers_pictures(pacs, exported, tmp_path):
    run(tmp_path / "run", f"Features:{exported}", "LFA")
    saved = torch.load(tmp_path / "run" / "model.pkl", weights_only=True)
    saved["model_hparams"]["clip_backbone"] = "emoji"
    torch.save(saved, tmp_path / "run" / "model.pkl")
    on_pictures = training.load_algorithm(tmp_path / "run")
    hparams = saved["model_hparams"] | {"data_augmentation": False}
    photos = datasets.PACS(str(pacs), [2], hparams)[2]
    x = torch.stack([x for x, _ in photos])
    z = torch.from_numpy(read(exported).z[20:30].copy()).float()
    with torch.no_grad():
        expected = on_pictures.predict(x)
        on_pictures.given = "all"
        torch.testing.assert_close(
            on_pictures.predict(z), expected, atol=0.1, rtol=0.01
        )


def made(folder, **arrays):
    """A file of any encoder's: 24 embeddings of 3 classes, 2 domains in turn."""
    rng = np.random.default_rng(0)
    labels = np.arange(24) % 3
    texts = rng.normal(size=(3, 5)).astype(np.float32)
    z = texts[labels] + 0.5 * rng.normal(size=(24, 5)).astype(np.float32)
    own = {
        "z": z.astype(np.float32),
        "labels": labels,
        "domains": np.arange(24) // 3 % 2,
    }
    own |= {"class_names": np.array([*"abc"]), "domain_names": np.array([*"xy"])}
    np.savez(folder / "made.npz", **own | {"t": texts} | arrays)
    return f"Features:{folder / 'made.npz'}", own["z"], texts


def test_any_encoders_embeddings_are_compared_with_its_texts(tmp_path):
    name, z, texts = made(tmp_path)
    (record,) = run(tmp_path / "run", name, "ZeroShotCLIP", "--test_envs", "1")
    cosines = (
        z
        / np.linalg.norm(z, axis=1)[:, None]
        @ (texts / np.linalg.norm(texts, axis=1)[:, None]).T
    )
    right = cosines.argmax(1) == np.arange(24) % 3
    n_out = 2  # a fifth of 12
    total = 10 * record["env1_in_acc"] + n_out * record["env1_out_acc"]
    assert round(total) == right[np.arange(24) // 3 % 2 == 1].sum()
    for algorithm in ("LinearProbeCLIP", "GDA", "TipAdapterF"):
        run(tmp_path / algorithm, name, algorithm, "--test_envs", "1")


@pytest.mark.filterwarnings("ignore")
def test_methods_are_refused_for_want_of_what_they_read(tmp_path, exported, capsys):
    without, _, _ = made(tmp_path)
    content = dict(np.load(tmp_path / "made.npz"))
    del content["t"]
    np.savez(tmp_path / "made.npz", **content)
    for algorithm, hparam in (("LinearERM", "lr=0.01"), ("ERM", "input=features")):
        given = ["--test_envs", "1", "--hparams", hparam]
        run(tmp_path / algorithm, without, algorithm, *given)
    full, nowhere = f"Features:{exported}", tmp_path / "nowhere"
    cases = [
        (without, "ZeroShotCLIP", [], "classes' texts, and .* and no texts; LinearERM"),
        (without, "ERM", ["input=layers"], "ERM reads all .* of the last layer only"),
        (full, "ERM", [], "ERM takes images.*8 layers.*input=features it takes these"),
        (full, "FineTuneCLIP", [], "takes images.*such as LFA, take these"),
        (full, "DPLCLIP", [], "runs through CLIP's towers.*clip_backbone can name"),
        (full, "Head2Toe", ["clip_backbone=emoji"], "Head2Toe takes taps 128"),
        (full, "LFA", ['prompt="the {name}"'], "has no text 'the dog'.*Did you mean"),
        (full, "LFA", ["clip_backbone=nowhere"], "Unknown CLIP backbone"),
    ]
    for dataset, algorithm, hparams, says in cases:
        given = ["--hparams", *hparams] if hparams else []
        with pytest.raises(SystemExit) as ended:
            run(nowhere, dataset, algorithm, "--test_envs", "1", *given)
        assert ended.value.code == 2 and not nowhere.exists()
        (sentence,) = capsys.readouterr().err.splitlines()
        assert re.search(says, sentence), sentence


def test_the_last_layer_alone_can_be_shared(pacs, exported, tmp_path, capsys):
    last = tmp_path / "last.npz"
    export(pacs, last, "--layers", "last", "--prompt", "a photo of a {name}")
    assert np.array_equal(read(last).z[:, 0], read(exported).z[:, -1])
    assert read(last).t.shape[:2] == (2, 1)
    assert run(tmp_path / "a", f"Features:{last}", "LinearProbeCLIP") == run(
        tmp_path / "b", f"Features:{exported}", "LinearProbeCLIP"
    )
    args = train.parse_args(["--dataset", f"Features:{last}", "--algorithm", "LFA"])
    with pytest.raises(InputError, match="LFA reads all of the image's layers"):
        training.Run(args)


def test_domains_may_stand_in_any_order(tmp_path):
    name, _, _ = made(tmp_path)
    content = dict(np.load(tmp_path / "made.npz"))
    order = np.argsort(content["domains"], kind="stable")
    for part in ("z", "labels", "domains"):
        content[part] = content[part][order]
    (tmp_path / "sorted").mkdir()
    np.savez(tmp_path / "sorted" / "made.npz", **content)
    other = f"Features:{tmp_path / 'sorted' / 'made.npz'}"
    both = [
        run(tmp_path / x, d, "GDA", "--test_envs", "1")
        for x, d in zip("ab", (name, other), strict=True)
    ]
    assert both[0] == both[1]


def test_a_domain_without_a_class_is_allowed_where_that_is_asked(tmp_path):
    name, _, _ = made(tmp_path, labels=np.arange(24) // 8)
    dataset = datasets.get_dataset_class(name)
    dataset(None, [0], {})
    name, _, _ = made(
        tmp_path, labels=np.where(np.arange(24) // 3 % 2, 0, np.arange(24) % 3)
    )
    dataset = datasets.get_dataset_class(name)
    with pytest.raises(InputError, match="no image of domain y, class b"):
        dataset(None, [0], {})
    dataset(None, [0], {"allow_missing_classes": True})
    name, _, _ = made(tmp_path, domains=np.zeros(24, int))
    with pytest.raises(InputError, match="no image of domain y, class a"):
        datasets.get_dataset_class(name)(None, [0], {"allow_missing_classes": True})


def test_a_changed_file_is_another_run(tmp_path, capsys):
    name, z, _ = made(tmp_path)
    run(tmp_path / "run", name, "GDA", "--test_envs", "1")
    made(tmp_path, z=z + 1)
    with pytest.raises(SystemExit):
        run(tmp_path / "run", name, "GDA", "--test_envs", "1")
    assert "the data were other ones" in capsys.readouterr().err
    made(tmp_path, z=np.where(z > 2, np.nan, z))
    with pytest.raises(SystemExit):
        run(tmp_path / "new", name, "GDA", "--test_envs", "1")
    assert "not finite" in capsys.readouterr().err


def test_a_sweep_and_its_table(exported, tmp_path, capsys):
    file = shutil.copy(exported, tmp_path)
    of = ["--datasets", f"Features:{file}", "--algorithms", "GDA", "ZeroShotCLIP"]
    of += ["--n_trials", "1", "--n_hparams", "1", "--single_test_envs"]
    where = ["--output_dir", str(tmp_path / "sweep"), "--data_dir", "."]
    args = sweep.parse_args(["launch", *of, *where])
    sweep.check(args)
    for job in sweep.jobs_of(args):
        train.main([*job.command_str.split()[3:], "--no_tensorboard"])
    Path(file).unlink()  # its records say what its domains are called
    capsys.readouterr()
    collect_results.main(["--input_dir", str(tmp_path / "sweep"), "--selection", "iid"])
    table = capsys.readouterr().out
    head = next(line for line in table.splitlines() if line.startswith("Algorithm"))
    assert head.split() == ["Algorithm", "A", "C", "P", "S", "Avg"]
    assert "GDA" in table and "X" not in table.split("Avg")[1]


def test_the_pages_example_is_a_dataset(tmp_path, monkeypatch):
    page = (Path(__file__).parents[1] / "docs" / "features.md").read_text()
    monkeypatch.chdir(tmp_path)
    exec(re.search(r"```python\n(.*?)```", page, re.DOTALL)[1])
    command = re.search(r"scripts\.train (--dataset Features:mine.*?)```", page, re.S)[
        1
    ]
    train.main([*command.replace("\\\n", " ").split(), *RUN])
    layout = {
        name
        for row in re.findall(r"^\| (`.*?`) \|", page, re.M)
        for name in re.findall(r"`(\w+)`", row)
    }
    assert layout == {*feature_file.LAYOUT}
