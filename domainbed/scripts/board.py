"""Keep measured cells with their commands in a file, and measure them again.

`add` appends the cells of a finished sweep, a method's average on a dataset each. The
command of a cell makes its runs and no others, which is checked before. `verify` runs a
cell's command and compares what comes out; it exits with 1 if a digit differs.
"""

import argparse
import contextlib
import shlex
import tempfile
from collections import defaultdict
from pathlib import Path

from domainbed.lib import misc
from domainbed.lib.errors import InputError, UnknownNameError, exits_on_input_error
from domainbed.lib.identity import DECISIVE
from domainbed.lib.mixtures import facts_of
from domainbed.lib.paths import user_path
from domainbed.lib.progress import add_quiet, silenced
from domainbed.model_selection import SelectionMethod
from domainbed.names import algorithm_names, runs_after
from domainbed.runs.jobs import Job
from domainbed.scripts import sweep
from domainbed.scripts.collect_results import SELECTIONS, read_sweep, selection_methods
from domainbed.tables import board, frames
from domainbed.tables.board import Cell
from domainbed.tables.protocol import Made, Runs

SWEEP = ["python", "-m", "domainbed.scripts.sweep", "launch"]
PLACES = ["--data_dir", "DATA_DIR", "--output_dir", "OUT"]
HOW = ["--command_launcher", "pool", "--skip_confirmation"]
FIGURES = ("mean", "error", "trials", "protocol")  # what verify compares
# Of the arguments that make a run what it is: those that a sweep varies itself.
VARIED = ("dataset", "algorithm", "trial_seed", "hparams_seed", "seed", "test_envs")


def parse_args(argv: list[str] | None) -> argparse.Namespace:
    examples = {"add": "--input_dir OUT", "verify": "--data_dir data"}
    usage = {
        name: f"python -m domainbed.scripts.board {name} {flags}"
        for name, flags in examples.items()
    }
    parser = argparse.ArgumentParser(
        prog="board", usage=usage["add"], description=__doc__
    )
    commands = parser.add_subparsers(dest="command", required=True, prog="board")
    for name, text in (("add", "append cells"), ("verify", "measure cells again")):
        command = commands.add_parser(name, usage=usage[name], help=text)
        add = command.add_argument
        add("--board", type=user_path, default="docs/board.csv", help="the file")
        if name == "add":
            add("--input_dir", type=user_path, required=True, help="a sweep's folder")
            add("--selection", default="iid", help=", ".join(SELECTIONS))
        else:
            add("--cell", nargs="+", help="DATASET/METHOD; default: all")
            add("--data_dir", type=user_path, required=True)
            add("--output_dir", type=user_path, help="for the runs; default: none stay")
        add_quiet(command)
    return parser.parse_args(argv)


def command_of(runs: Runs) -> list[str]:
    """The sweep that makes one dataset and one algorithm's runs, without PLACES.

    InputError if the runs differ in more than a sweep varies.
    """
    args = [run[0]["args"] for _, run in runs]
    first = args[0]
    words = ["--datasets", first["dataset"]]
    algorithm = first["algorithm"]
    words += ["--algorithms", *runs_after(algorithm), algorithm]
    draws = {own["hparams_seed"] for own in args}
    words += ["--n_trials", str(max(own["trial_seed"] for own in args) + 1)]
    if min(draws):
        words += ["--n_hparams_from", str(min(draws))]
    words += ["--n_hparams", str(max(draws) + 1)]
    if all(len(own["test_envs"]) == 1 for own in args):
        words.append("--single_test_envs")
    for name, default in DECISIVE.items():
        values = [own.get(name, default) for own in args]
        if name in VARIED or values == [default] * len(values):
            continue
        if any(value != values[0] for value in values):
            raise InputError(
                f"{algorithm} on {first['dataset']}: its runs differ in --{name} "
                f"({values[0]} and another), so that no one sweep made them."
            )
        words.append(f"--{name}")
        words += [] if values[0] is True else [str(values[0])]
    return words


def jobs_of(words: list[str], data_dir: str, folder: str) -> list[Job]:
    """The jobs of that sweep."""
    places = ["--data_dir", data_dir, "--output_dir", folder]
    return sweep.jobs_of(sweep.parse_args(["launch", *words, *places]))


def cell_of(runs: Runs, made: Made, method: type[SelectionMethod]) -> Cell:
    """The cell of these runs; InputError unless they are all that its command makes."""
    words, args = command_of(runs), runs[0][1][0]["args"]
    folder = runs[0][0].parent
    jobs = jobs_of(words, str(args["data_dir"]), str(folder))
    own = [job for job in jobs if job.train_args["algorithm"] == args["algorithm"]]
    done = {Path(job.output_dir).name for job in own if job.state == Job.DONE}
    there = {run.name for run, _ in runs}
    if not done == there == {Path(job.output_dir).name for job in own}:
        raise InputError(
            f"{args['algorithm']} on {args['dataset']}: {folder} has {len(there)} "
            f"runs, and {len(done & there)} are finished ones of the {len(own)} that "
            f"sweep launch {shlex.join(words)} makes; the board takes finished sweeps."
        )
    return board.measured(
        runs, made, method, shlex.join([*SWEEP, *words, *PLACES, *HOW])
    )


def check_commit(cell: Cell) -> None:
    """InputError unless others can have the code that made the cell."""
    if cell.commit in ("", "None") or "dirty" in cell.commit or " " in cell.commit:
        raise InputError(
            f"{cell.name}: its runs are of the commit {cell.commit or None}; the board "
            "takes runs of one commit without changes, which others can run again."
        )


def cells_in(folder: str, method: type[SelectionMethod]) -> list[Cell]:
    """The cells of a sweep's folder, in the order of its tables."""
    rows: dict[tuple[str, str], Runs] = defaultdict(list)
    for path, run in read_sweep(folder):
        args = run[0]["args"]
        if args.get("task") == "few_shot":
            raise InputError(f"{folder} holds few-shot runs, which have no cells here.")
        rows[args["dataset"], args["algorithm"]].append((path, run))
    made = facts_of(folder)
    order = frames.in_order({name for _, name in rows}, algorithm_names())
    in_order = sorted(rows, key=lambda row: (row[0], order.index(row[1])))
    return [cell_of(rows[row], made, method) for row in in_order]


def key_of(cell: Cell) -> tuple[str, ...]:
    """What makes two cells one."""
    return cell.dataset, cell.method, cell.selection, cell.command, cell.commit


def add(args: argparse.Namespace) -> None:
    """Append a finished sweep's cells to the board."""
    (method,) = selection_methods(args.selection)
    path = Path(args.board)
    cells, new = board.read(path), []
    before = {key_of(cell): cell for cell in cells}
    for cell in cells_in(args.input_dir, method):
        check_commit(cell)
        known = before.get(key_of(cell))
        if known is None:
            new.append(cell)
        elif any(getattr(known, name) != getattr(cell, name) for name in FIGURES):
            raise InputError(
                f"{cell.name}: the board has {known.figures} of this command and "
                f"commit, and this is {cell.figures}; verify says which it is."
            )
        print(f"{cell.name}: {cell.figures}{', is there already' if known else ''}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        board.write(path, [*cells, *new])
    except OSError as error:
        raise InputError(f"cannot write --board {path}: {error}.") from None
    print(f"{len(new)} cells more in {path}, which has {len(cells) + len(new)}.")


def sweep_of(cell: Cell) -> list[str]:
    """Its sweep's words, without the places; InputError for what `add` never wrote."""
    words, end = shlex.split(cell.command), [*PLACES, *HOW]
    if words[: len(SWEEP)] != SWEEP or words[-len(end) :] != end:
        raise InputError(
            f"{cell.name}: its command is none that board add writes: {cell.command}."
        )
    return words[len(SWEEP) : -len(end)]


def measured_again(cell: Cell, args: argparse.Namespace, folder: str) -> Cell:
    """The cell that its command makes here."""
    words = sweep_of(cell)
    own = str(Path(folder) / misc.digest([cell.command]))
    places = ["--data_dir", args.data_dir, "--output_dir", own]
    sweep.main(["launch", *words, *places, *HOW, "--retry", "--quiet"])
    (method,) = selection_methods(cell.selection)
    runs = [
        (path, run)
        for path, run in read_sweep(own)
        if run[0]["args"]["algorithm"] == cell.method
    ]
    return board.measured(runs, facts_of(own), method, cell.command)


def verify(args: argparse.Namespace) -> None:
    """Run the cells' commands and say which figures differ."""
    cells = board.read(Path(args.board))
    if not cells:
        raise InputError(f"there are no cells in {args.board}.")
    known = [*dict.fromkeys(cell.name for cell in cells)]
    for name in args.cell or ():
        if name not in known:
            raise UnknownNameError("cell", name, known)
    wanted = [cell for cell in cells if not args.cell or cell.name in args.cell]
    for cell in wanted:
        sweep_of(cell)
    differing = 0
    with contextlib.ExitStack() as stack:
        folder = args.output_dir
        if folder is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory())
        for cell in wanted:
            again = measured_again(cell, args, folder)
            said = told(cell, again)
            differing += said is not None
            print(f"{cell.name}: {said or f'{again.figures}, as on the board'}")
    if differing:
        raise SystemExit(1)


def told(cell: Cell, again: Cell) -> str | None:
    """In what the two differ and what may be why; None if their figures are one."""
    old, new = cell._asdict(), again._asdict()
    changed = [name for name in FIGURES if old[name] != new[name]]
    if not changed:
        return None
    figures = ", ".join(f"{name} {new[name]}, not {old[name]}" for name in changed)
    why = [name for name in ("commit", "made_with") if old[name] != new[name]]
    others = (f"{old[name]} there, {new[name]} here" for name in why)
    return f"{figures} ({'; '.join(others) or 'of one commit, torch and device'})"


COMMANDS = {"add": add, "verify": verify}


@exits_on_input_error
def main(argv: list[str] | None = None) -> None:
    args = parse_args(argv)
    with silenced(args.quiet, result=True):
        COMMANDS[args.command](args)


if __name__ == "__main__":
    main()
