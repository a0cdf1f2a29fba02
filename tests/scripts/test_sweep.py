"""A sweep: its jobs as upstream has them, their states, and one from end to end."""

import errno
import json
import shlex

import pytest
from helpers import CONTRACT, make_image_folder

from domainbed import command_launchers, datasets
from domainbed.runs import jobs
from domainbed.scripts import collect_results, report, sweep, train

GOLDEN = json.loads((CONTRACT / "golden.json").read_text())


@pytest.mark.parametrize("train_args, output_dir, command", GOLDEN["jobs"])
def test_jobs_are_upstreams(train_args, output_dir, command):
    job = sweep.Job(train_args, "out")
    assert (job.output_dir, job.command_str) == (output_dir, command)


@pytest.mark.parametrize("folder", ["./out", "out/", "/abs/out"])
def test_a_jobs_folder_keeps_the_sweeps_spelling(folder):
    train_args, output_dir, _ = GOLDEN["jobs"][0]
    name = output_dir.split("/")[1]
    job = sweep.Job(train_args, folder)
    assert job.output_dir == f"{folder.rstrip('/')}/{name}"
    assert f"--output_dir {job.output_dir} " in job.command_str


def test_a_job_needs_no_argument_of_its_own_and_goes_through_its_states(tmp_path):
    job = sweep.Job({"foo": "bar"}, str(tmp_path))
    assert job.state == sweep.Job.NOT_LAUNCHED
    launched = []
    assert sweep.Job.launch([job], launched.extend) == []
    assert launched == [
        f"python -m domainbed.scripts.train --foo bar --output_dir {job.output_dir}"
    ]
    assert job.state == sweep.Job.INCOMPLETE
    with open(f"{job.output_dir}/done", "w") as file:
        file.write("done")
    assert sweep.Job({"foo": "bar"}, str(tmp_path)).state == sweep.Job.DONE
    sweep.Job.delete([job])
    assert job.state == sweep.Job.NOT_LAUNCHED


def make_args_list(**changes):
    return sweep.make_args_list(
        **{
            "n_trials": 2,
            "dataset_names": ["Debug28", "PACS"],
            "algorithms": ["ERM", "LFA"],
            "n_hparams_from": 1,
            "n_hparams": 3,
            "steps": None,
            "data_dir": "/data dir",
            "task": "domain_generalization",
            "holdout_fraction": 0.2,
            "single_test_envs": False,
            "hparams": None,
        }
        | changes
    )


def test_runs_are_nested_as_the_contract_says():
    args_list = make_args_list()
    envs = {"Debug28": 6, "PACS": 10}  # n singles and n (n - 1) / 2 pairs
    assert len(args_list) == 2 * 2 * 2 * sum(envs.values())
    names = ("trial_seed", "dataset", "algorithm", "test_envs", "hparams_seed")
    assert [tuple(a[n] for n in names) for a in args_list[:4]] == [
        (0, "Debug28", "ERM", [0], 1),
        (0, "Debug28", "ERM", [0], 2),
        (0, "Debug28", "ERM", [0, 1], 1),
        (0, "Debug28", "ERM", [0, 1], 2),
    ]
    assert args_list[12]["algorithm"] == "LFA"
    assert args_list[24]["dataset"] == "PACS"
    assert args_list[64]["trial_seed"] == 1
    assert {"steps", "hparams"}.isdisjoint(args_list[0])


def test_steps_and_hparams_stand_in_a_job_only_when_given():
    given = make_args_list(steps=0, hparams='{"lr": 1}', single_test_envs=True)
    assert given[0]["steps"] == 0
    assert given[0]["hparams"] == '{"lr": 1}'
    assert all(len(args["test_envs"]) == 1 for args in given)


SIX_JOBS = ["--datasets", "Debug28", "--algorithms", "ZeroShotCLIP", "LFA"]
SIX_JOBS += ["--n_hparams", "1", "--n_trials", "1", "--single_test_envs"]
SIX_JOBS += ["--data_dir", "none"]


def launch(folder, *flags, launcher="dummy", command="launch"):
    where = ["--output_dir", str(folder), "--command_launcher", launcher]
    sweep.main([command, *SIX_JOBS, *where, "--skip_confirmation", *flags])


@pytest.fixture
def ran(monkeypatch):
    """Every command that a launcher would start; they all succeed."""
    commands = []

    def run_command(command, **environment):
        commands.append((command, environment))
        return 0

    monkeypatch.setattr(command_launchers, "run_command", run_command)
    return commands


def test_launch_starts_each_job_once(tmp_path, ran, capsys):
    launch(tmp_path, launcher="local")
    out = capsys.readouterr().out
    assert (
        "6 jobs: 0 done, 0 incomplete, 6 not launched.\nAbout to launch 6 jobs." in out
    )
    assert len({command for command, _ in ran}) == 6
    assert len(list(tmp_path.iterdir())) == 6
    next(tmp_path.iterdir()).joinpath("done").write_text("done")
    launch(tmp_path, launcher="local")
    out = capsys.readouterr().out
    assert (
        "6 jobs: 1 done, 5 incomplete, 0 not launched.\nAbout to launch 0 jobs." in out
    )
    assert len(ran) == 6


def test_what_was_claimed_is_left_to_others_if_not_all_can_be(
    tmp_path, ran, monkeypatch, capsys
):
    """On a disk without inodes the next launch found nothing to do."""
    claim = jobs.Job.claim

    def full(job):
        if len([*tmp_path.iterdir()]) == 3:
            raise OSError(errno.ENOSPC, "No space left on device", job.output_dir)
        return claim(job)

    monkeypatch.setattr(jobs.Job, "claim", full)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path)
    assert ended.value.code == 1 and "No space left" in capsys.readouterr().err
    assert not ran and not [*tmp_path.iterdir()]


def test_what_builds_on_other_runs_is_launched_after_them(tmp_path):
    args_list = make_args_list(algorithms=["QLoRALFA", "LFA", "QLoRACLIP"])
    jobs = [sweep.Job(args, str(tmp_path)) for args in args_list]
    launched = []
    sweep.Job.launch(jobs, launched.append)
    names = [{c.split("--algorithm ")[1].split()[0] for c in cs} for cs in launched]
    assert names == [{"LFA", "QLoRACLIP"}, {"QLoRALFA"}]
    alone = []
    sweep.Job.launch([j for j in jobs if "QLoRALFA" in j.command_str], alone.append)
    assert len(alone) == 1


def test_delete_incomplete_keeps_what_is_done(tmp_path, ran, capsys):
    launch(tmp_path, launcher="local")
    done = next(tmp_path.iterdir())
    (done / "done").write_text("done")
    launch(tmp_path, command="delete_incomplete")
    assert list(tmp_path.iterdir()) == [done]
    assert "About to delete 5 jobs." in capsys.readouterr().out


@pytest.mark.parametrize("answer, left", [("n", 6), ("", 6), ("y", 0)])
def test_deletion_asks(answer, left, tmp_path, ran, monkeypatch):
    launch(tmp_path)
    monkeypatch.setattr("builtins.input", lambda prompt: answer)
    where = ["--output_dir", str(tmp_path), "--command_launcher", "dummy"]
    try:
        sweep.main(["delete_incomplete", *SIX_JOBS, *where])
    except SystemExit as ended:
        assert ended.code == 0
    assert len(list(tmp_path.iterdir())) == left


def test_nobody_to_ask_means_no(tmp_path, ran, monkeypatch, capsys):
    def closed(prompt):
        raise EOFError

    monkeypatch.setattr("builtins.input", closed)
    where = ["--output_dir", str(tmp_path / "out"), "--command_launcher", "local"]
    with pytest.raises(SystemExit) as ended:
        sweep.main(["launch", *SIX_JOBS, *where])
    assert ended.value.code == 0
    assert "Nevermind!" in capsys.readouterr().out
    assert ran == []
    assert not (tmp_path / "out").exists()


def test_dummy_prints_the_commands(tmp_path, capsys):
    launch(tmp_path)
    printed = [
        line
        for line in capsys.readouterr().out.splitlines()
        if line.startswith("Dummy launcher: python -m domainbed.scripts.train --")
    ]
    assert len(printed) == 6


def test_flags_can_be_read_from_a_file(tmp_path, ran):
    flags = tmp_path / "sweep.txt"
    flags.write_text(
        "# a comment\n--datasets Debug28  # another\n\n--algorithms LFA\n"
        "--n_hparams 1\n--n_trials 1\n--single_test_envs\n--hparams '{\"lr\": 0.01}'\n"
    )
    where = ["--output_dir", str(tmp_path / "out"), "--data_dir", "none"]
    how = ["--command_launcher", "local", "--skip_confirmation"]
    sweep.main(["launch", f"@{flags}", *where, *how])
    assert len(ran) == 3
    assert all("--hparams '{\"lr\": 0.01}'" in command for command, _ in ran)


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_file_of_flags_as_windows_saves_it(encoding, tmp_path, capsys):
    inner = tmp_path / "inner.txt"
    inner.write_bytes("--n_trials 1\r\n".encode(encoding))
    flags = tmp_path / "flags.txt"
    text = f"--algorithms LFA  # für\r\n--n_hparams 1\r\n@{inner}\r\n--steps 2\r\n"
    flags.write_bytes(text.encode(encoding))
    launch(tmp_path / "out", f"@{flags}", "--single_test_envs")
    said = capsys.readouterr().out
    assert said.count("--algorithm LFA ") == said.count("--steps 2 ") == 3


def test_flags_in_another_encoding_are_named(tmp_path, ran, capsys):
    flags = tmp_path / "flags.txt"
    flags.write_bytes("--steps 2  # für".encode("latin-1"))
    for file, why in ((flags, "is not in UTF-8"), (tmp_path, "Is a directory")):
        with pytest.raises(SystemExit) as ended:
            launch(tmp_path / "out", f"@{file}")
        assert ended.value.code == 2 and why in capsys.readouterr().err


def test_a_quote_left_open_in_a_file_of_flags_is_named(tmp_path, ran, capsys):
    flags = tmp_path / "flags.txt"
    flags.write_text('--n_hparams 1\n--hparams \'{"lr": 0.01}\n')
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "out", f"@{flags}")
    assert ended.value.code == 2
    assert 'cannot read the flags --hparams \'{"lr": 0.01}' in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_a_file_of_flags_that_leads_to_itself_is_named(tmp_path, ran, capsys):
    flags = tmp_path / "flags.txt"
    flags.write_text(f"--n_hparams 1\n@{flags}\n")
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "out", f"@{flags}")
    assert ended.value.code == 2
    assert f"the flags in {flags} lead to that file again" in capsys.readouterr().err


def test_a_sweep_that_ships_is_known_by_name(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    launch(tmp_path / "out", "@quickstart", "--algorithms", "ERM")
    assert "--dataset EmojiDG" in capsys.readouterr().out
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "out", "@quikstart")
    assert ended.value.code == 2
    said = capsys.readouterr().err
    assert "there is no file quikstart; what ships with the package is" in said
    assert "Did you mean 'quickstart'?" in said
    (tmp_path / "quikstart").write_text("--datasets Debug28 --algorithms ERM")
    launch(tmp_path / "out", "@quikstart")


@pytest.mark.parametrize("form", ["json", "file", "pairs", "flags file"])
def test_jobs_are_the_same_for_every_form_of_equal_hparams(form, tmp_path, ran):
    file = tmp_path / "h.json"
    file.write_text('{"lr": 0.01}')
    flags = tmp_path / "flags.txt"
    flags.write_text(f"--hparams @{file}")
    words = {
        "json": ["--hparams", '{"lr": 0.01}'],
        "file": ["--hparams", f"@{file}"],
        "pairs": ["--hparams", "lr=0.01"],
        "flags file": [f"@{flags}"],
    }[form]
    launch(tmp_path / "out", *words, launcher="local")
    args_list = make_args_list(
        n_trials=1,
        dataset_names=["Debug28"],
        algorithms=["ZeroShotCLIP", "LFA"],
        n_hparams_from=0,
        n_hparams=1,
        data_dir="none",
        single_test_envs=True,
        hparams='{"lr": 0.01}',
    )
    expected = {sweep.Job(args, str(tmp_path / "out")).output_dir for args in args_list}
    assert {str(path) for path in (tmp_path / "out").iterdir()} == expected


def test_hparams_of_one_algorithm_reach_it_alone(tmp_path, ran):
    """And leave the others' jobs the names that they have without them."""
    hparams = ["--hparams", "lr=0.01", "LFA.lr=0.1", "LFA.beta=0.5", "ERM.lr=1"]
    launch(tmp_path / "both", *hparams, launcher="local")
    given = {}
    for command, _ in ran:
        words = shlex.split(command)
        values = (words[words.index(f"--{n}") + 1] for n in ("algorithm", "hparams"))
        given |= [[*values]]
    assert given == {"ZeroShotCLIP": '{"lr": 0.01}', "LFA": '{"lr": 0.1, "beta": 0.5}'}
    launch(tmp_path / "one", "--hparams", "lr=0.01", launcher="local")
    folders = ({p.name for p in (tmp_path / n).iterdir()} for n in ("both", "one"))
    assert len(set.intersection(*folders)) == 3  # ZeroShotCLIP's


@pytest.mark.parametrize(
    "n, expected",
    [(1, []), (2, [[0], [1]]), (3, [[0], [0, 1], [0, 2], [1], [1, 2], [2]])],
)
def test_what_leaves_nothing_to_train_on_is_left_out(n, expected):
    assert list(jobs.all_test_env_combinations(n)) == expected


def test_a_sweep_over_any_folder(tmp_path, ran, capsys):
    two = make_image_folder(tmp_path / "two; rm x", ["a", "b"], ["x"], n=1)
    launch(tmp_path / "out", "--datasets", f"ImageFolder:{two}", launcher="local")
    assert len(ran) == 4  # two algorithms, two environments
    assert all(shlex.quote(f"ImageFolder:{two}") in command for command, _ in ran)
    one = make_image_folder(tmp_path / "one", ["a"], ["x"], n=1)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "out", "--datasets", f"ImageFolder:{one}")
    assert ended.value.code == 2
    assert "has a single environment" in capsys.readouterr().err


def test_failed_jobs_are_listed_and_the_exit_status_says_so(
    tmp_path, monkeypatch, capsys
):
    def fail_lfa(command, **environment):
        if "LFA" not in command:
            return 0
        folder = command.split("--output_dir ")[1].split()[0]
        with open(f"{folder}/err.txt", "wb") as log:
            log.write(b"Traceback \xe9\nMemoryError: no more\n\n")  # not UTF-8
        return 1

    monkeypatch.setattr(command_launchers, "run_command", fail_lfa)
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path, launcher="local")
    assert ended.value.code == 1
    error = capsys.readouterr().err
    assert "3 jobs failed:" in error
    assert error.count("MemoryError: no more") == 3


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--algorithms", "LAF"], "Unknown algorithm 'LAF'; known: "),
        (["--datasets", "pacs"], "Did you mean 'PACS'?"),
        (["--command_launcher", "loca"], "Did you mean 'local'?"),
        (["--command_launcher", "multi_gpu"], "multi_gpu finds no GPU here"),
        (["--hparams", "{"], "--hparams '{' is not JSON"),
        (["--hparams", '{"bta": 1}'], "has no hyperparameter 'bta'"),
        (["--hparams", "LFA.bta=1"], "LFA has no hyperparameter 'bta'"),
        (["--hparams", "LAF.beta=1"], "Unknown algorithm 'LAF'"),
        (["--seed", "1"], "--seed 1 would change nothing"),
        (["--n_trials", "1000000000000"], "ask for 1000000000000 runs of each method"),
        (["--n_hparams_from", "5"], "--n_hparams_from is 5, and draws end before"),
        (["--n_trials", "0"], "--n_trials is 0; it must be at least 1"),
    ],
)
def test_wrong_input_launches_nothing(flags, says, tmp_path, ran, capsys, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "out", *flags)
    assert ended.value.code == 2
    error = capsys.readouterr().err
    assert says in error
    assert error.count("\n") == 1
    assert not (tmp_path / "out").exists()
    assert ran == []


@pytest.mark.filterwarnings("ignore:no class names")
def test_a_sweep_from_launch_to_table(tmp_path, monkeypatch, capsys):
    """Real jobs, then the table, read back from the same folder.

    The first job runs in a process of its own, the others here: torch is loaded.
    """
    processes = []
    run_command = command_launchers.run_command

    def run_here(command):
        if not processes:
            processes.append(command)
            return run_command(command)
        train.main(shlex.split(command)[3:])  # without python -m domainbed...
        return 0

    monkeypatch.setattr(command_launchers, "run_command", run_here)
    launch(tmp_path, "--steps", "2", launcher="local")
    capsys.readouterr()
    launch(tmp_path, "--steps", "2", launcher="local")
    assert "6 jobs: 6 done, 0 incomplete, 0 not launched." in capsys.readouterr().out
    collect_results.main(["--input_dir", str(tmp_path)])
    out = capsys.readouterr().out
    assert out.startswith("Total records: 9\n")  # 3 of ZeroShotCLIP, 2 each of LFA
    lines = [line.split("  ") for line in out.splitlines()]
    assert [row[0] for row in lines if row[0] in ("ZeroShotCLIP", "LFA")] == [
        "ZeroShotCLIP",
        "LFA",
    ] * 6
    assert (tmp_path / "results.txt").read_text() == out


def test_every_flag_of_a_run_is_one_of_the_sweep():
    own = {*vars(train.parse_args([]))}
    needed = ["status", "--output_dir", "x", "--data_dir", "x"]
    known = {*vars(sweep.parse_args(needed))}
    # A sweep has these in its own way: one run for each.
    ways = {"dataset", "algorithm", "test_envs", "hparams_seed", "trial_seed"}
    assert own - known == ways


def test_a_jobs_flags_are_digested_where_they_change_its_numbers(tmp_path):
    def job(*flags):
        where = ["--output_dir", str(tmp_path), "--command_launcher", "dummy"]
        args = sweep.parse_args(["launch", *SIX_JOBS, *where, *flags])
        return sweep.jobs_of(args)[0]

    plain = job()
    for flags in (["--num_workers", "2"], ["--skip_model_save"], ["--no_resume"]):
        assert job(*flags).output_dir == plain.output_dir
        assert f" {' '.join(flags)}" in job(*flags).command_str
    for flags in (["--allow_missing_classes"], ["--uda_holdout_fraction", "0.5"]):
        assert job(*flags).output_dir != plain.output_dir
        assert f" {' '.join(flags)}" in job(*flags).command_str
        assert flags[0][2:] not in plain.command_str


@pytest.mark.parametrize(
    "flags, says",
    [
        (["--task", "domain_adaptation"], "needs --uda_holdout_fraction above 0"),
        (["--holdout_fraction", "1.5"], "--holdout_fraction is 1.5"),
        (["--uda_holdout_fraction", "-1"], "--uda_holdout_fraction is -1"),
        (["--checkpoint_freq", "0"], "--checkpoint_freq is 0"),
    ],
)
def test_what_no_job_could_take_launches_nothing(flags, says, tmp_path, ran, capsys):
    with pytest.raises(SystemExit) as ended:
        launch(tmp_path / "out", *flags)
    assert ended.value.code == 2
    assert says in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_runs_of_a_folder_that_was_moved_are_listed_and_tabulated(
    tmp_path, capsys, monkeypatch
):
    """What they know of it stands in their records; only a launch needs the folder."""
    mine = make_image_folder(tmp_path / "mine", ["sea", "land"], ["x", "y"])
    output = tmp_path / "sweep"
    flags = ["--datasets", f"ImageFolder:Places={mine}", "--data_dir", str(tmp_path)]
    flags += ["--output_dir", str(output), "--algorithms", "ZeroShotCLIP"]
    flags += ["--n_hparams", "1", "--n_trials", "1", "--hparams", "clip_backbone=emoji"]
    flags += ["--skip_confirmation", "--no_feature_store"]

    def said(script, *words):
        capsys.readouterr()
        script.main([*words])
        return capsys.readouterr().out

    (job, _) = sweep.jobs_of(sweep.parse_args(["status", *flags]))
    train.main(shlex.split(job.command_str)[3:])
    before = said(sweep, "status", *flags)
    assert before.startswith("2 jobs: 1 done, 0 running, 0 failed")
    tables = said(collect_results, "--input_dir", str(output))
    mine.rename(tmp_path / "elsewhere")
    assert said(sweep, "status", *flags) == before
    assert said(collect_results, "--input_dir", str(output)) == tables
    assert " land " in tables and " Places " in tables
    said(report, "--input_dir", str(output), "--output", str(tmp_path / "page.html"))
    page = (tmp_path / "page.html").read_text()
    assert "land" in page and "env0" not in page
    monkeypatch.setattr(datasets, "AWAY", {})  # as in a process of its own
    with pytest.raises(SystemExit) as ended:
        sweep.main(["launch", *flags, "--command_launcher", "dummy"])
    assert ended.value.code == 2
    assert "there is no folder" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        sweep.main(["status", *flags, "--output_dir", str(tmp_path / "none")])
    assert "Nor has " in capsys.readouterr().err
