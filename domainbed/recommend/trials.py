"""The runs of a recommendation: every method on every left-out domain, in a budget.

Selection looks at the training domains' held-out parts alone, as in any sweep; what
ranks the methods is their accuracy on the domain that was left out.
"""

import argparse
import contextlib
import io
import json
import re
import subprocess
import sys
import time
from pathlib import Path

from domainbed import command_launchers, datasets, hparams_registry
from domainbed.datasets_folds import PREFIX as FOLDS
from domainbed.lib import misc
from domainbed.lib.errors import InputError
from domainbed.lib.pictures import pictures, subfolders
from domainbed.lib.progress import notice
from domainbed.runs.jobs import Job, make_args_list
from domainbed.runs.provenance import dataset_fingerprint

# The methods, and about how many seconds a run of one takes where a core is free: its
# own of benchmarks/recommend.json, and one to start.
COSTS = {
    "ZeroShotCLIP": 1.0,
    "GDA": 1.1,
    "TipAdapter": 1.1,
    "LinearERM": 1.9,
    "LPPlusPlus": 2.1,
    "TaskRes": 2.1,
    "CLAP": 2.1,
    "CLIPAdapter": 2.2,
    "LinearProbeCLIP": 2.2,
    "ProLIP": 2.2,
    "TipAdapterF": 3.4,
    "LFA": 5.5,
    "Head2Toe": 7.3,
    "BatchFormerCLIP": 7.5,
    "CoOp": 27.9,
    "DPLCLIP": 104.5,
}
STEPS, CHECKPOINT_FREQ = 1001, 100
# What every method has been given before any of them gets more: (trial, draws).
ROUNDS = ((0, (0,)), (0, (1, 2)), (1, (0, 1, 2)), (2, (0, 1, 2)))
# Not drawn, for a draw of it takes minutes a run: the finer features of Head2Toe.
FIXED = {"Head2Toe": {"h2t_target": 0}}
# Of the time left that a method may take in the first round: all want further ones.
FIRST_SHARE = 1 / 3
FOR_REPORT = 0.05  # of the budget: no run goes on into it
TIME = "the budget ended"  # why something was not measured
FEWEST = 5  # pictures of a domain, of which a fifth is held out
UNITS = {"s": 1, "m": 60, "h": 3600}


class Budget:
    """A time, from now on."""

    def __init__(self, text: str):
        match = re.fullmatch(r"(\d+(?:\.\d+)?)([smh])", text)
        if not match or not float(match[1]):
            raise InputError(
                f"--budget is {text!r}; it must be a time as 90s, 10m or 1h."
            )
        self.text, self.started = text, time.monotonic()
        self.seconds = float(match[1]) * UNITS[match[2]]
        self.ends = self.started + (1 - FOR_REPORT) * self.seconds

    @property
    def spent(self) -> float:
        return time.monotonic() - self.started

    @property
    def left(self) -> float:
        """Seconds for runs."""
        return self.ends - time.monotonic()


def shown(seconds: float) -> str:
    """As 8s or 3m20s."""
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}m{rest:02}s" if minutes else f"{rest}s"


def extent(n_rounds: int) -> tuple[int, int]:
    """How many trials, and draws in each, so many rounds are."""
    done = ROUNDS[:n_rounds]
    return done[-1][0] + 1, len({draw for _, draws in done for draw in draws})


def cost_of(algorithm: str) -> float:
    return COSTS.get(algorithm, COSTS["LFA"])


def dataset_in(folder: Path) -> str:
    """The name of the dataset that the folder is: of domains, or of classes only."""
    if not folder.is_dir():
        raise InputError(f"--data {folder} is no folder.")
    depths = {}  # of folders above a picture, each with an example
    for path in map(Path, pictures(folder)):
        depths.setdefault(min(len(path.relative_to(folder).parts), 3), path)
    if not {2, 3} & {*depths}:
        found = f"only {depths[1]} and the like" if depths else "no pictures"
        raise InputError(
            f"--data {folder} holds {found}; it should hold DOMAIN/CLASS/PICTURE or "
            "CLASS/PICTURE."
        )
    if {2, 3} <= {*depths}:
        raise InputError(
            f"--data {folder} holds both CLASS/PICTURE, {depths[2]}, and "
            f"DOMAIN/CLASS/PICTURE, {depths[3]}; it should hold one of them."
        )
    if 2 in depths:
        return f"{FOLDS}{folder.resolve()}"
    if len(domains := subfolders(folder)) < 2:
        raise InputError(
            f"--data {folder} holds a single domain, so that none can be left out; "
            f"--data {folder / domains[0]} leaves out folds of its pictures."
        )
    return f"{datasets.ANY_FOLDER}{folder.resolve()}"


class Trials:
    """The runs on a dataset, and how long they take."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.budget = args, Budget(args.budget)
        self.name = dataset_in(Path(args.data))
        self.folder = Path(args.output_dir)
        self.dataset = self.look()
        self.launcher = command_launchers.get_launcher(
            "pool", jobs=args.jobs, until=self.budget.ends
        )
        self.spent = self.cost = 0.0  # seconds, and what COSTS says of what took them

    def look(self) -> datasets.MultipleDomainDataset:
        """The dataset; InputError if it is too small or the output folder another's."""
        hparams = hparams_registry.default_hparams("ERM", self.name)
        allowed = {"allow_missing_classes": self.args.allow_missing_classes}
        dataset = datasets.get_dataset_class(self.name)(None, [], hparams | allowed)
        for i, environment in enumerate(dataset):
            if len(environment) < FEWEST:
                raise InputError(
                    f"{dataset.environment_name(i)} of {self.args.data} has "
                    f"{len(environment)} pictures; a domain needs at least {FEWEST}, "
                    "one of which is held out to choose by."
                )
        about = {
            "dataset": self.name,
            "fingerprint": dataset_fingerprint(dataset),
            "clip_backbone": self.args.clip_backbone,
        }
        file = self.folder / "recommend.json"
        try:
            before = json.loads(file.read_text()) if file.exists() else about
            changed = [name for name in about if before[name] != about[name]]
            self.folder.mkdir(parents=True, exist_ok=True)
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(
                f"cannot use --output_dir {self.folder} ({error}); name another."
            ) from error
        if changed:
            raise InputError(
                f"{self.folder} holds runs of another {changed[0]}, "
                f"{before[changed[0]]}, not {about[changed[0]]}; name another "
                "--output_dir."
            )
        misc.write_whole(file, json.dumps(about, indent=1))
        return dataset

    def hparams(self, algorithm: str = "") -> str:
        """What is given of a method's hyperparameters, as --hparams."""
        given = {"clip_backbone": self.args.clip_backbone}
        return json.dumps(given | FIXED.get(algorithm, {}))

    @property
    def features(self) -> str:
        return str(self.folder / "features")

    def store(self) -> None:
        """Store the pictures' features; InputError where the budget ends before."""
        command = [sys.executable, "-m", "domainbed.scripts.features", "build"]
        command += ["--dataset", self.name, "--hparams", self.hparams()]
        command += ["--feature_dir", self.features, "--quiet"]
        if self.args.allow_missing_classes:
            command.append("--allow_missing_classes")
        try:
            ended = subprocess.run(command, timeout=max(1, self.budget.left))
        except subprocess.TimeoutExpired:
            raise InputError(
                f"the budget of {self.budget.text} ended while the pictures' features "
                "were stored; what is stored is kept: the same command with a larger "
                "--budget goes on from there."
            ) from None
        if ended.returncode:
            raise SystemExit(ended.returncode)
        self.storing = self.budget.spent

    def jobs(self, algorithm: str, number: int) -> list[Job]:
        """The runs of that round."""
        trial, draws = ROUNDS[number]
        args_list = make_args_list(
            n_trials=trial + 1,
            dataset_names=[self.name],
            algorithms=[algorithm],
            n_hparams_from=draws[0],
            n_hparams=draws[-1] + 1,
            steps=STEPS,
            data_dir=str(Path(self.args.data).resolve()),
            task="domain_generalization",
            holdout_fraction=0.2,
            single_test_envs=True,
            hparams=self.hparams(algorithm),
        )
        further = {"checkpoint_freq": CHECKPOINT_FREQ}
        if self.args.allow_missing_classes:
            further["allow_missing_classes"] = True
        jobs = [
            Job(own | further, self.round_folder(number))
            for own in args_list
            if own["trial_seed"] == trial
        ]
        for job in jobs:
            job.options = {"feature_dir": self.features, "eval": "chosen"}
            flags = ("skip_model_save", "no_tensorboard", "quiet")
            job.options |= dict.fromkeys(flags, True)
        return jobs

    def round_folder(self, number: int) -> str:
        return str(self.folder / f"round{number + 1}")

    def run(self, algorithm: str, number: int) -> str | None:
        """Run what is not done of that round; gives why it is not, None if it is."""
        jobs = self.jobs(algorithm, number)
        todo = [job for job in jobs if job.state != Job.DONE]
        if not todo:
            return None
        started = time.monotonic()
        with contextlib.redirect_stdout(io.StringIO()):
            Job.launch(todo, self.launcher)
        seconds = time.monotonic() - started
        self.spent += seconds
        self.cost += cost_of(algorithm) * len(todo)
        notice(
            f"round {number + 1}, {algorithm}: {len(todo)} runs in {shown(seconds)}; "
            f"{shown(self.budget.spent)} of {self.budget.text}"
        )
        unfinished = [job for job in todo if job.state != Job.DONE]
        if unfinished and self.budget.left <= 0:
            return TIME
        return next((job.folder.last_error() for job in unfinished), None)

    def fits(self, names: list[str], number: int, share: float = 1.0) -> bool:
        """Whether that share of the time left is enough for their runs of that round,
        by what others took.
        """
        todo = {
            name: sum(job.state != Job.DONE for job in self.jobs(name, number))
            for name in names
        }
        if not any(todo.values()):
            return True
        rate = self.spent / self.cost if self.cost else 0.0
        expected = rate * sum(cost_of(name) * n for name, n in todo.items())
        if number == 0 and "Head2Toe" in names:  # it has features of its own stored
            expected += self.storing
        return 0 < share * self.budget.left >= expected

    def first_round(self, names: list[str]) -> tuple[list[str], dict[str, str]]:
        """The methods that have a run for each domain; why others have not."""
        measured, left_out = [], dict.fromkeys(names, TIME)
        for share in (FIRST_SHARE, 1.0):
            for name in [name for name, why in left_out.items() if why == TIME]:
                if not self.fits([name], 0, share):
                    continue
                if why := self.run(name, 0):
                    left_out[name] = why
                else:
                    measured.append(name)
                    del left_out[name]
            if len(ROUNDS) > 1 and self.fits(measured, 1):
                break  # the rest is for a further round of these
        return measured, left_out

    def further_rounds(self, names: list[str]) -> int:
        """How many rounds there are of all of them, after as many as time allows."""
        for number in range(1, len(ROUNDS)):
            if not self.fits(names, number):
                return number
            for name in names:
                if why := self.run(name, number):
                    notice(f"no further round: {name}: {why}")
                    return number
        return len(ROUNDS)
