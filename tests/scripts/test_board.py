"""`board`: cells that their commands make again."""

import json
import shlex
import shutil
from pathlib import Path

import pytest

from domainbed import command_launchers
from domainbed.runs import provenance
from domainbed.scripts import collect_results, sweep, train
from domainbed.scripts.board import jobs_of, main, sweep_of
from domainbed.tables.board import Cell, read, write

COMMIT = "a" * 40
SWEEP = ["--datasets", "Debug28", "--n_trials", "2", "--n_hparams", "1", "--steps", "2"]
SWEEP += ["--hparams", '{"batch_size": 4}', "--single_test_envs"]
SWEEP += ["--checkpoint_freq", "2"]
N = 6  # its runs of an algorithm


@pytest.fixture(scope="module")
def own_process():
    """The launcher pool runs in this process; the code is of a clean commit."""
    ran = []

    def launch(commands):
        for command in commands:
            ran.append(command)
            train.main([*shlex.split(command)[3:], "--no_tensorboard"])
        return [0] * len(commands)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(command_launchers.REGISTRY, "pool", launch)
        patch.setattr(provenance, "git_state", lambda: COMMIT)
        yield ran


@pytest.fixture(autouse=True)
def here(own_process):
    """The commands that ran."""
    del own_process[:]
    return own_process


@pytest.fixture(scope="module")
def made(tmp_path_factory, own_process):
    """A finished sweep of ERM."""
    folder = tmp_path_factory.mktemp("made")
    launch(folder, "ERM")
    return folder


@pytest.fixture
def out(made, tmp_path):
    """The same, one's own."""
    return shutil.copytree(made, tmp_path / "out")


def launch(folder, *algorithms, flags=SWEEP):
    own = ["--algorithms", *algorithms, "--data_dir", ".", "--output_dir", str(folder)]
    how = ["--command_launcher", "pool", "--skip_confirmation", "--quiet"]
    sweep.main(["launch", *flags, *own, *how])


def board(tmp_path, *argv):
    main([argv[0], "--board", str(tmp_path / "board.csv"), *argv[1:]])


def fails(tmp_path, capsys, status, *argv):
    capsys.readouterr()
    with pytest.raises(SystemExit) as ended:
        board(tmp_path, *argv)
    assert ended.value.code == status
    said = capsys.readouterr()
    return said.out if status == 1 else said.err


def test_a_cell_is_the_tables_and_its_command_makes_it_again(
    out, here, tmp_path, capsys
):
    launch(out, "ERM", "ANDMask")
    capsys.readouterr()
    board(tmp_path, "add", "--input_dir", str(out))
    said = capsys.readouterr().out
    where = ["--input_dir", str(out), "--selection", "iid", "--quiet"]
    collect_results.main(where)
    averages = capsys.readouterr().out.split("-------- Averages")[1]
    cells = read(tmp_path / "board.csv")
    assert [cell.name for cell in cells] == ["Debug28/ERM", "Debug28/ANDMask"]
    for cell in cells:
        assert f"{cell.mean} +/- {cell.error}" in averages
        assert f"{cell.name}: {cell.figures}\n" in said
        assert (cell.trials, cell.commit, len(cell.protocol)) == ("2", COMMIT, 16)
        assert cell.made_with.startswith("torch ") and cell.made_with.endswith(", cpu")
    del here[:]
    again = ["verify", "--data_dir", str(tmp_path)]
    board(tmp_path, *again, "--output_dir", str(tmp_path / "again"))
    said = capsys.readouterr().out
    assert said.count(", as on the board\n") == 2
    assert len(here) == 2 * N
    del here[:]
    board(tmp_path, *again, "--output_dir", str(tmp_path / "again"))
    assert not here  # what is done is not run again


def test_a_board_begins_where_there_is_none_or_says_why_it_cannot(
    out, tmp_path, capsys
):
    new = tmp_path / "docs" / "board.csv"
    main(["add", "--input_dir", str(out), "--board", str(new)])
    assert [cell.name for cell in read(new)] == ["Debug28/ERM"]
    below_a_file = str(new / "board.csv")
    with pytest.raises(SystemExit) as ended:
        main(["add", "--input_dir", str(out), "--board", below_a_file])
    assert ended.value.code == 2
    assert f"cannot write --board {below_a_file}: " in capsys.readouterr().err


def test_the_same_cells_are_there_once_and_other_figures_refused(out, tmp_path, capsys):
    add = ["add", "--input_dir", str(out)]
    board(tmp_path, *add)
    capsys.readouterr()
    board(tmp_path, *add)
    assert "is there already" in capsys.readouterr().out
    (cell,) = read(tmp_path / "board.csv")
    write(tmp_path / "board.csv", [cell._replace(mean="1.0")])
    said = fails(tmp_path, capsys, 2, *add)
    assert f"the board has 1.0 +/- {cell.error}" in said and "verify says" in said
    write(tmp_path / "board.csv", [cell._replace(commit="b" * 40)])
    board(tmp_path, *add)
    assert len(read(tmp_path / "board.csv")) == 2


def test_a_digit_that_differs_is_named_with_what_else_does(out, tmp_path, capsys):
    board(tmp_path, "add", "--input_dir", str(out))
    (cell,) = read(tmp_path / "board.csv")
    where = ["--data_dir", str(tmp_path), "--output_dir", str(tmp_path / "again")]
    wrong = cell._replace(mean="1.0", protocol="0" * 16, made_with="torch 1.0, cpu")
    write(tmp_path / "board.csv", [wrong])
    said = fails(tmp_path, capsys, 1, "verify", *where, "--cell", "Debug28/ERM")
    assert f"mean {cell.mean}, not 1.0, protocol {cell.protocol}, not 000" in said
    assert f"(torch 1.0, cpu there, {cell.made_with} here)" in said
    write(tmp_path / "board.csv", [cell._replace(error="9.9")])
    said = fails(tmp_path, capsys, 1, "verify", *where)
    assert f"error {cell.error}, not 9.9 (of one commit, torch and device)" in said


def test_runs_that_are_no_whole_sweep_have_no_cell(out, tmp_path, capsys):
    add = ["add", "--input_dir", str(out)]
    done = sorted(out.glob("*/done"))[0]
    done.unlink()
    said = fails(tmp_path, capsys, 2, *add)
    assert "has 6 runs, and 5 are finished ones of the 6 that sweep launch" in said
    done.touch()
    more = out / "more"
    by_hand = ["--dataset", "Debug28", "--algorithm", "ERM", "--seed", "7"]
    by_hand += ["--hparams", '{"batch_size": 4}', "--steps", "2", "--output_dir"]
    train.main([*by_hand, str(more), "--checkpoint_freq", "2", "--quiet"])
    assert "has 7 runs, and 6 are" in fails(tmp_path, capsys, 2, *add)
    train.main([*by_hand, str(more), "--no_resume", "--quiet"])
    assert "differ in --checkpoint_freq" in fails(tmp_path, capsys, 2, *add)
    assert not (tmp_path / "board.csv").exists()


@pytest.mark.parametrize("commit", [None, f"{COMMIT}-dirty"])
def test_only_committed_code_is_taken(out, tmp_path, capsys, commit):
    for file in out.glob("*/run.json"):
        file.write_text(file.read_text().replace(f'"{COMMIT}"', json.dumps(commit)))
    said = fails(tmp_path, capsys, 2, "add", "--input_dir", str(out))
    assert f"of the commit {commit}; the board takes" in said


def test_wrong_boards_and_names(tmp_path, capsys):
    where = ["verify", "--data_dir", "."]
    assert "there are no cells in" in fails(tmp_path, capsys, 2, *where)
    file = tmp_path / "board.csv"
    file.write_text("method,mean\nERM,1\n")
    assert "must begin with the columns dataset,method," in fails(
        tmp_path, capsys, 2, *where
    )
    cell = Cell("D", "ERM", "iid", "1.0", "0.1", "3", "0" * 16, "rm -rf /", COMMIT, "")
    write(file, [cell])
    assert "its command is none that board add" in fails(tmp_path, capsys, 2, *where)
    said = fails(tmp_path, capsys, 2, *where, "--cell", "D/ERN")
    assert "Unknown cell 'D/ERN'" in said and "Did you mean 'D/ERM'?" in said
    file.write_text(file.read_text() + "D,ERM\n")
    assert "has 2 columns in row 3, not 10" in fails(tmp_path, capsys, 2, *where)


def test_the_projects_own_board_can_be_measured_again():
    for cell in read(Path(__file__).parents[2] / "docs" / "board.csv"):
        jobs = jobs_of(sweep_of(cell), "data", "out")
        own = [job for job in jobs if job.train_args["algorithm"] == cell.method]
        assert own and {job.train_args["dataset"] for job in own} == {cell.dataset}
