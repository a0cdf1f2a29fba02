"""The few-shot task: a run from its shots to its record, and the jobs of a sweep."""

import json
import shlex

import pytest
import torch
from helpers import lines, pets

from domainbed import training
from domainbed.algorithms import get_algorithm_class
from domainbed.features.entries import entries
from domainbed.lib.errors import InputError
from domainbed.lib.shots import rate, scores
from domainbed.scripts import sweep, train

OWN = ["--task", "few_shot", "--dataset", "OxfordPets", "--shots", "4"]
HPARAMS = ["clip_backbone=emoji", "augment=false", "epochs=3", "batch_size=5"]


@pytest.fixture
def data(tmp_path):
    pets(tmp_path / "data")
    return tmp_path / "data"


def command(data, folder, *flags, algorithm="LFA", hparams=()):
    own = [*OWN, "--algorithm", algorithm, "--data_dir", str(data), "--num_workers"]
    return [
        *own,
        "0",
        "--output_dir",
        str(folder),
        *flags,
        "--hparams",
        *HPARAMS,
        *hparams,
    ]


def run_of(data, folder, *flags, **changed):
    return training.Run(train.parse_args(command(data, folder, *flags, **changed)))


def record_of(folder):
    (line,) = (folder / "results.jsonl").read_text().splitlines()
    return json.loads(line)


def test_a_run_tests_its_last_epoch_once(data, tmp_path, capsys):
    train.main(command(data, tmp_path / "run"))
    record = record_of(tmp_path / "run")
    assert record["step"] == 3 * (12 // 5) - 1
    assert record["args"]["test_envs"] == [1] and record["args"]["classes"] == "all"
    assert record["hparams"]["prompt"] == "a photo of a {name}, a type of pet."
    for name in ("acc", "f1", "class_mean"):
        assert {f"env0_in_{name}", f"env0_out_{name}", f"env1_in_{name}"} < {*record}
    assert record["env1_in_acc"] == pytest.approx(record["env1_in_class_mean"])
    assert "target test: " in capsys.readouterr().out


@pytest.mark.parametrize("hparams", [(), ("augment=true",), ("views=3",)])
def test_an_interrupted_run_ends_as_one_that_was_not(
    data, tmp_path, interrupt, hparams
):
    flags = ["--checkpoint_freq", "2"]
    train.main(command(data, tmp_path / "whole", *flags, hparams=hparams))
    again = interrupt("update", 4)
    with pytest.raises(SystemExit):
        train.main(command(data, tmp_path / "halves", *flags, hparams=hparams))
    again()
    train.main(command(data, tmp_path / "halves", *flags, hparams=hparams))
    assert lines(tmp_path / "halves") == lines(tmp_path / "whole")


def test_head2toe_selects_after_half_of_its_steps(data, tmp_path):
    hparams = ["h2t_frac=0.05"]
    run = run_of(data, tmp_path, algorithm="Head2Toe", hparams=hparams)
    selected = []
    for (minibatches, _), _ in zip(run.task.batches(run), range(6), strict=False):
        run.algorithm.update(minibatches)
        selected.append(run.algorithm.selected)
    assert run.n_steps == 6
    assert selected == [False] * 3 + [True] * 3


@pytest.mark.parametrize(
    "dataset, lr, decay",
    [("VTABDTD", 1e-2, 0.0), ("CUB200", 5e-3, 1e-2), ("OxfordPets", 1e-3, 0.0)],
)
def test_arc_has_its_releases_rates_where_it_was_released(dataset, lr, decay):
    rows = get_algorithm_class("ARC").few_shot_rows(dataset, 16)
    assert (rows["lr"][0], rows["weight_decay"][0]) == (lr, decay)
    assert (rows["epochs"][0], rows["batch_size"][0]) == (100, 32)


@pytest.mark.parametrize("name", ["LinearERM", "Head2ToeLinear", "Head2Toe"])
def test_adams_methods_have_no_momentum(name, data, tmp_path):
    assert "momentum" not in run_of(data, tmp_path, algorithm=name).hparams


def test_rates_and_batches_follow_the_epochs(data, tmp_path):
    run = run_of(data, tmp_path)
    assert (run.n_steps, run.dataset.n_train) == (6, 12)
    rates = [run.task.learning_rate(run, step) for step in range(6)]
    assert rates == [rate(step // 2, run.hparams["lr"], 3) for step in range(6)]
    batches = run.task.batches(run)
    first, second = (next(batches)[0][0][1] for _ in range(2))
    assert len(first) == len(second) == 5
    seen = []
    run.algorithm.update = lambda *batch: (
        seen.append(run.algorithm.optimizer.param_groups[0]["lr"]) or {"loss": 0.0}
    )
    run.train()
    assert seen == rates


def test_a_method_with_a_schedule_of_its_own_follows_that(data, tmp_path):
    run = run_of(data, tmp_path, algorithm="ARC", hparams=["schedule=linear"])
    assert [run.task.learning_rate(run, step) for step in range(3)] == [None] * 3


def test_crops_are_encoded_at_each_step_and_tests_are_stored(data, tmp_path):
    run = run_of(data, tmp_path, hparams=["augment=true"])
    x = next(run.task.batches(run))[0][0][0]
    assert x.shape == (5, 3, 48, 48)
    run.tell(to_train=True)
    assert run.algorithm.given == "images"
    run.evaluate()
    assert run.algorithm.given == run.algorithm.stored_kind.name
    test, train_ = (run.items(run.splits[i], to_train=False) for i in (1, 0))
    assert hasattr(test, "gather") and hasattr(train_, "gather")


def test_views_are_stored_once_and_a_step_picks_among_them(data, tmp_path):
    run = run_of(data, tmp_path, hparams=["augment=true", "views=3"])
    views, own = run.dataset.views, run.algorithm.stored_kind
    assert len(views) == 3 * 12 and not run.fresh_crops
    run.tell(to_train=True)
    batches = [next(run.task.batches(run, first))[0][0] for first in range(4)]
    again = next(run.task.batches(run, 2))[0][0]
    assert torch.equal(again[0], batches[2][0])
    stored = run.at_hand[len(run.dataset)]
    with torch.no_grad():
        encoded = own.encode(torch.stack([x for x, _ in views]))
    torch.testing.assert_close(stored.gather(range(36))[0], encoded, rtol=0, atol=2e-3)
    picked = set()
    for z, y in batches:
        places = [int((stored.z == row).all(-1).all(-1).nonzero()) for row in z]
        assert len({place % 12 for place in places}) == 5
        assert [views.targets[place] for place in places] == y.tolist()
        picked |= {place // 12 for place in places}
    assert picked == {0, 1, 2}
    stores = [{e.key for e in entries(data / "features")}]
    for hparams in ("views=3", "views=2"):
        assert run_of(data, tmp_path, hparams=["augment=true", hparams]).stored
        stores.append({e.key for e in entries(data / "features")})
    assert [*map(len, stores)] == [3, 3, 4] and stores[0] == stores[1]
    assert [e.staleness() for e in entries(data / "features")] == [None] * 4


def test_views_of_pixels_are_those_that_are_stored(data, tmp_path):
    hparams = ["views=3", "feature_dtype=float32"]
    stored = run_of(data, tmp_path, hparams=hparams)
    pixels = run_of(data, tmp_path, "--no_feature_store", hparams=hparams)
    for step in (0, 3):
        z, y = next(stored.task.batches(stored, step))[0][0]
        x, labels = next(pixels.task.batches(pixels, step))[0][0]
        assert x.shape == (5, 3, 48, 48) and torch.equal(labels, y)
        with torch.no_grad():
            torch.testing.assert_close(pixels.algorithm.features(x), z)


def test_more_views_begin_with_the_same_ones(data, tmp_path):
    two, three = (
        run_of(data, tmp_path, hparams=[f"views={n}"]).dataset.views for n in (2, 3)
    )
    assert torch.equal(three[13][0], two[13][0])
    assert not torch.equal(three[1][0], two[13][0])
    before = torch.random.get_rng_state()
    assert torch.equal(three[30][0], three[30][0])
    assert torch.equal(torch.random.get_rng_state(), before)


def test_new_classes_are_asked_and_then_the_own_ones_again(data, tmp_path):
    run = run_of(data, tmp_path, "--classes", "base", "--transfer_to", "EmojiHouses")
    asked, ask = [], run.algorithm.ask

    def noted(names, template=None):
        asked.append((names[0], template))
        ask(names, template)

    run.algorithm.ask = noted
    before = run.algorithm.text_features.clone()
    results = run.evaluate()
    own = ("abyssinian", None)
    new = ("persian_cat", "a photo of a {name}, a type of pet.")
    houses = ("glossy three dimensional icon", "a {name}.")
    assert asked == [new, own, houses, own]
    assert torch.equal(run.algorithm.text_features, before)
    assert results["env2_in_acc"] == 1  # one class alone
    assert run.args.test_envs == [1, 2, 3]


def test_scores_by_hand():
    assert scores([0, 0, 1, 2], [0, 0, 0, 1]) == {
        "acc": 0.5,
        "class_mean": pytest.approx((2 / 3 + 0) / 2),
        "f1": pytest.approx((4 / 5 + 0) / 2),
    }


@pytest.mark.parametrize("flags, message", [
    (["--shots", "0"], "--shots is 0"),
    (["--test_envs", "1"], "--test_envs and --holdout_fraction are not of"),
    (["--dataset", "PACS"], "PACS is no dataset of --task few_shot"),
    (["--source", "x"], "OxfordPets has no domains that --source could name"),
    (["--dataset", "EmojiDG", "--source", "x"], "Unknown source in EmojiDG 'x'"),
    (["--task", "domain_generalization"], "--shots is of --task few_shot"),
    (["--algorithm", "ERM", "--classes", "base"], "ERM has weights for each of its"),
    (["--transfer_to", "PACS"], "PACS is no dataset of --task few_shot"),
    (["--transfer_to", "UCF101", "UCF101"], "--transfer_to UCF101 is tested already"),
    (["--transfer_to", "OxfordPets"], "--transfer_to OxfordPets is tested already"),
    (["--algorithm", "LFA", "--hparams", "schedule=step"], "schedule: 'step'; known"),
    (["--algorithm", "TaskRes", "--classes", "base"], "TaskRes has weights for each"),
    (["--algorithm", "CoOp", "--classes", "base", "--hparams", "context_by_class=true",
      "clip_backbone=emoji"], "CoOp has weights for each of its classes"),
    (["--algorithm", "MaPLe", "--hparams", "views=2"], "views is 2, but MaPLe trains"),
    (["--algorithm", "LFA", "--hparams", "views=-1"], "it must be at least 0"),
])  # fmt: skip
def test_what_does_not_fit_is_refused(flags, message, data, tmp_path):
    own = [*OWN, "--data_dir", str(data), "--output_dir", str(tmp_path / "out")]
    with pytest.raises(InputError, match=message):
        training.Run(train.parse_args([*own, *flags]))


def test_few_shot_datasets_are_for_that_task(data, tmp_path):
    own = ["--dataset", "OxfordPets", "--data_dir", str(data)]
    with pytest.raises(InputError, match="OxfordPets is no dataset of --task domain"):
        training.Run(train.parse_args([*own, "--output_dir", str(tmp_path)]))


def jobs(tmp_path, *flags):
    own = ["launch", "--output_dir", str(tmp_path), "--data_dir", "d", *flags]
    own += ["--command_launcher", "dummy", "--skip_confirmation"]
    args = sweep.parse_args(own)
    sweep.check(args)
    return sweep.jobs_of(args)


def test_a_sweep_has_a_job_for_each_source_and_number_of_shots(tmp_path):
    flags = ["--task", "few_shot", "--algorithms", "LFA", "--n_hparams", "1"]
    flags += ["--n_trials", "2", "--shots", "1", "16"]
    made = jobs(tmp_path, *flags, "--datasets", "EmojiDG", "OxfordPets")
    assert len(made) == 2 * 2 * (4 + 1)
    assert len({job.output_dir for job in made}) == len(made)
    for job in made:
        words = shlex.split(job.command_str)[3:]
        args = train.parse_args(words)
        assert (args.task, args.classes) == ("few_shot", "all")
        assert hasattr(args, "source") == (args.dataset == "EmojiDG")


@pytest.mark.parametrize("flags, message", [
    (["--classes", "base", "--algorithms", "LFA", "TaskRes"], "TaskRes has weights"),
    (["--hparams", "views=2", "--algorithms", "MaPLe"], "views is 2, but MaPLe"),
    (["--transfer_to", "PACS", "--algorithms", "LFA"], "PACS is no dataset of --task"),
])  # fmt: skip
def test_a_sweep_is_refused_for_what_no_run_could_take(
    flags, message, tmp_path, capsys
):
    own = ["launch", "--task", "few_shot", "--shots", "1", "--datasets", "EmojiHouses"]
    own += [
        "--output_dir",
        str(tmp_path / "out"),
        "--data_dir",
        "d",
        "--n_hparams",
        "1",
    ]
    own += ["--command_launcher", "dummy", "--skip_confirmation", *flags]
    with pytest.raises(SystemExit) as ended:
        sweep.main(own)
    assert ended.value.code == 2 and not (tmp_path / "out").exists()
    assert message in capsys.readouterr().err


def test_no_other_job_knows_the_arguments_of_few_shot_jobs(tmp_path):
    flags = ["--algorithms", "LFA", "--datasets", "EmojiDG", "--n_hparams", "1"]
    for job in jobs(tmp_path, *flags):
        assert not {"shots", "classes", "source", "transfer_to"} & {*job.train_args}
    with pytest.raises(InputError, match="--shots is of --task few_shot"):
        jobs(tmp_path, *flags, "--shots", "1")
    with pytest.raises(InputError, match="needs --shots"):
        jobs(tmp_path, *flags, "--task", "few_shot")
    default = sweep.parse_args(
        ["launch", "--task", "few_shot", "--output_dir", "o", "--data_dir", "d"]
    ).datasets
    assert {"EuroSAT", "EmojiHouses"} < {*default} and "PACS" not in default


def test_probes_are_shown_their_shots_and_choose_on_validation(data, tmp_path):
    run = run_of(data, tmp_path, algorithm="TipAdapter")
    (domain,) = run.support_set()
    z, y = (torch.cat(parts) for parts in zip(*domain, strict=True))
    assert sorted(y.tolist()) == [0] * 4 + [1] * 4 + [2] * 4
    held = [len(y) for _, y in run.examples_to_choose_by()]
    tested = run_of(data, tmp_path, algorithm="GDA", hparams=["as_published=true"])
    assert held == [12]
    assert [len(y) for _, y in tested.examples_to_choose_by()] == [len(run.dataset[1])]
    run.train()
    assert (run.algorithm.values.sum(0) == 4).all()
    assert torch.equal(run.algorithm.keys[:12], run.algorithm.embed(z))


@pytest.mark.parametrize("name", ["TipAdapterF", "LPPlusPlus", "CLAP", "ProLIP"])
def test_a_probe_goes_on_with_the_support_it_had(name, data, tmp_path, interrupt):
    flags = {"algorithm": name, "hparams": ["epochs=6"]}
    train.main(command(data, tmp_path / "whole", "--checkpoint_freq", "2", **flags))
    again = interrupt("update", 5)
    with pytest.raises(SystemExit):
        train.main(
            command(data, tmp_path / "halves", "--checkpoint_freq", "2", **flags)
        )
    again()
    train.main(command(data, tmp_path / "halves", "--checkpoint_freq", "2", **flags))
    assert lines(tmp_path / "halves") == lines(tmp_path / "whole")


def test_the_store_knows_a_list_of_images_and_when_it_is_stale(data, tmp_path):
    assert run_of(data, tmp_path).stored
    stored = entries(data / "features")
    assert [entry.staleness() for entry in stored] == [None, None]
    for image in (data / "oxford_pets" / "images").glob("*.jpg"):
        image.touch()
    assert [entry.staleness() for entry in stored] == ["its images have changed"] * 2
