"""One run: splits, loaders, steps, evaluation, records, the saved model.

    python -m domainbed.scripts.train

parses the arguments that a `Run` takes. All randomness comes from names: splits from
the trial's seed, batches from (seed, environment, step), everything else from the
generators that are set anew before each step from (seed, step).
"""

import argparse
import functools
import json
import resource
import sys
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from domainbed import algorithms
from domainbed.arguments import check_numbers
from domainbed.datasets import is_own
from domainbed.evaluation import RunEvaluation
from domainbed.features.vectors import vector_size
from domainbed.lib import misc, progress
from domainbed.lib.schedules import set_learning_rate
from domainbed.runs import layer_attention, predictions, provenance
from domainbed.runs.records import RunRecords
from domainbed.runs.tensorboard import TensorBoardLog


class Run(RunEvaluation):
    """A prepared run: `Run(args).train()` leaves results.jsonl, model.pkl and done.

    Where it was interrupted it goes on, with the numbers of a run that never was.
    """

    MARK = ""  # before what its records call their accuracies

    def __init__(self, args: argparse.Namespace):
        # Sums in another order end in other digits: the number of threads must not
        # depend on how many runs share the machine.
        torch.set_num_threads(misc.threads())
        check_numbers(args)
        misc.seed_everything(args.seed)
        super().__init__(args)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        algorithm_class = algorithms.get_algorithm_class(args.algorithm)
        self.check_takes(algorithm_class)
        self.splits = self.task.splits(self.dataset, args)
        facts = {"run": vars(args)}  # beside the hparams; plain types, they are saved
        if self.dataset.class_names:
            facts["class_names"] = self.dataset.class_names
        self.input_shape = self.dataset.input_shape
        if self.input != "images":
            self.input_shape = (vector_size(self.backbone, self.input),)
        self.algorithm = algorithm_class(
            self.input_shape,
            self.dataset.num_classes,
            len(self.dataset) - len(args.test_envs),
            facts | self.hparams,
        ).to(self.device)
        self.check_made()
        self.task.check_made(self)
        n_steps = self.task.n_steps(self)
        self.n_steps = min(n_steps, algorithm_class.MAX_STEPS or n_steps)
        self.algorithm.n_steps = self.n_steps
        self.output_dir = Path(args.output_dir)
        self.records = RunRecords(self.output_dir)
        folder = None if args.no_tensorboard else self.output_dir / "tensorboard"
        self.curves = TensorBoardLog(folder, self.records)
        self.header: list[str] = []  # of the rows that this process prints
        self.stepping = False  # whether `train` can be stopped between two steps
        self.stopping = False  # set by whoever wants it to save its state and return

    def train(self) -> None:
        """Take every step; at each checkpoint evaluate and append a record.

        Goes on where the folder's run was interrupted. Returns early, its state saved,
        once `stopping` is set.
        """
        first, logged = self.resume()
        if first == 0 and self.algorithm.NEEDS_SUPPORT:
            self.algorithm.support(self.support_set())
        if self.algorithm.WATCHES:
            self.algorithm.watch(self.examples("select"))
        steps_per_epoch = self.task.steps_per_epoch(self)
        batches = self.task.batches(self, first)
        self.stepping = True
        self.bar = progress.steps_bar(first, self.n_steps)
        for step in self.bar:
            started = time.perf_counter()
            misc.seed_everything(misc.seed_hash(self.args.seed, "step", step))
            for name, value in self.update(step, next(batches)).items():
                logged[name].append(value)
            logged["step_time"].append(time.perf_counter() - started)
            if self.task.is_checkpoint(self, step) or step == self.n_steps - 1:
                means = {name: float(np.mean(v)) for name, v in logged.items()}
                logged.clear()
                self.record({"step": step, "epoch": step / steps_per_epoch} | means)
                if self.args.save_model_every_checkpoint:
                    self.save_model(f"model_step{step}.pkl")
                self.save_state(step + 1, logged)
            if self.stopping:
                self.save_state(step + 1, logged)
                self.bar.close()
                print(f"stopped after step {step}; the same command goes on from there")
                return
        if not self.n_steps:
            self.record({"step": 0, "epoch": 0.0})
        self.finish()

    def finish(self) -> None:
        """Leave the model, what is seen of it, and `done`."""
        self.save_model("model.pkl")
        if attention := layer_attention.summarise(self):
            self.records.write("layer_attention.json", json.dumps(attention))
        self.curves.finish(attention)
        self.records.finish()
        self.print_summary()

    def update(self, step: int, batch: Any) -> dict[str, float]:
        """Take that step on a batch of the task's."""
        self.algorithm.step = step
        rate = self.task.learning_rate(self, step)
        if rate is not None:
            set_learning_rate(self.algorithm.optimizer, rate)
        self.tell(to_train=True)
        with self.in_precision():
            return self.algorithm.update(*self.to_device(batch))

    def resume(self) -> tuple[int, defaultdict[str, list[float]]]:
        """The step to take next, and what was logged since the last checkpoint.

        Before the first step the folder is made ready: what an interruption left half
        done is cut off, the state is loaded, run.json says what the run is made from.
        """
        state = self.records.load_state()
        self.records.begin(self.about, state["step"] if state else 0)
        if state is None:
            (self.output_dir / predictions.NAME).unlink(missing_ok=True)
            return 0, defaultdict(list)
        self.algorithm.load_training_state(state["algorithm"])
        print(f"goes on from step {state['step']}")
        return state["step"], defaultdict(list, state["logged"])

    def save_state(self, step: int, logged: dict[str, list[float]]) -> None:
        """Write all that a later process needs to go on with that step.

        Generators and samplers need nothing: they are functions of the step.
        """
        self.records.save_state(
            {
                "step": step,
                "logged": {name: list(map(float, v)) for name, v in logged.items()},
                "algorithm": self.algorithm.training_state(),
            }
        )

    @functools.cached_property
    def about(self) -> dict[str, Any]:
        """The content of run.json, but for the attempts."""
        return provenance.made_from(self)

    def record(self, values: dict[str, float]) -> None:
        """Evaluate, print a row, append a line to results.jsonl."""
        accuracies = self.evaluate_checkpoint(values["step"])
        self.algorithm.evaluated(values["step"], accuracies)
        results = values | accuracies | {"mem_gb": peak_memory_gb()}
        columns = sorted({*results, *(f"{split.name}_acc" for split in self.splits)})
        with progress.cleared(self.bar):
            if self.header != columns:
                print_row(columns)
                self.header = columns
            print_row([results.get(name, "") for name in columns])
        shown = {name: values[name] for name in ("loss",) if name in values}
        self.bar.set_postfix(shown | {"val_acc": self.validation_accuracy(results)})
        facts = {"hparams": self.hparams, "args": vars(self.args)}
        if is_own(self.args.dataset):  # the others' are known anywhere
            facts["environments"] = list(self.dataset.ENVIRONMENTS)
        self.records.append(results | facts)
        self.curves.add(results)
        if self.answers and not self.args.no_predictions:
            self.keep_predictions(values["step"])

    def print_summary(self) -> None:
        """Say in words what the run reached on each test environment."""
        best, why = self.task.chosen(self, self.records.read())
        for env in self.args.test_envs:
            name = self.dataset.environment_name(env)
            accuracy = 100 * best[f"{self.MARK}env{env}_in_acc"]
            print(f"target {name}: {accuracy:.1f} % at step {best['step']}, {why}")

    def save_model(self, filename: str) -> None:
        """Write what trains, and what rebuilds the algorithm around it."""
        if self.args.skip_model_save:
            return
        state = self.algorithm.state_dict()
        model = {
            "args": vars(self.args),
            "model_input_shape": self.input_shape,
            "model_num_classes": self.dataset.num_classes,
            "model_num_domains": len(self.dataset) - len(self.args.test_envs),
            "model_hparams": self.algorithm.hparams,
            "model_dict": {
                name: value.cpu() if isinstance(value, torch.Tensor) else value
                for name, value in state.items()
            },
        }
        self.records.save(filename, model)


def load_algorithm(run: str | Path) -> algorithms.Algorithm:
    """The trained algorithm of a finished run's folder, in eval mode on the CPU."""
    saved = torch.load(Path(run) / "model.pkl", map_location="cpu", weights_only=True)
    algorithm = algorithms.get_algorithm_class(saved["args"]["algorithm"])(
        tuple(saved["model_input_shape"]),
        saved["model_num_classes"],
        saved["model_num_domains"],
        saved["model_hparams"],
    )
    algorithm.load_state_dict(saved["model_dict"])
    return algorithm.eval()


def peak_memory_gb() -> float:
    """The most memory so far: allocated on the GPU if there is one, else resident."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss  # kB; bytes on macOS
    return peak / (2**30 if sys.platform == "darwin" else 2**20)


def print_row(cells: list[Any]) -> None:
    """A line of cells, each 12 wide."""
    texts = [f"{c:.10f}" if isinstance(c, float) else str(c) for c in cells]
    print("  ".join(text.ljust(12)[:12] for text in texts), flush=True)
