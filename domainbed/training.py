"""One run: splits, loaders, steps, evaluation, records, the saved model.

    python -m domainbed.scripts.train

parses the arguments that a `Run` takes. All randomness comes from names: splits from
the trial's seed, batches from (seed, environment, step), everything else from the
generators that are set anew before each step from (seed, step).
"""

import argparse
import functools
import json
import os
import resource
import sys
import time
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.utils.data import Dataset, Subset

from domainbed import algorithms, datasets, hparams_registry
from domainbed.backbones import CLIPBackbone, Kind, load_clip
from domainbed.features.store import (
    StoredFeatures,
    default_feature_dir,
    open_features,
)
from domainbed.features.vectors import INPUTS, Vectors, vector_size
from domainbed.lib import misc, progress
from domainbed.lib.errors import InputError, UnknownNameError, check_at_least
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed.runs import layer_attention, provenance
from domainbed.runs.records import RunRecords
from domainbed.runs.tensorboard import TensorBoardLog

EVAL_BATCH = 64  # DomainBed's; DPL-CLIP's predictions depend on it
STORED_EVAL_BATCH = 1024  # of stored features, a split in a few calls


class Split(NamedTuple):
    """A part of an environment: `in` to train on, `out` to select on, `uda` unlabeled.

    `keys` are its items' numbers in the environment, `weights` their class balance.
    """

    env: int
    part: str
    keys: list[int]
    weights: torch.Tensor | None

    @property
    def name(self) -> str:
        return f"env{self.env}_{self.part}"


def resolve_hparams(args: argparse.Namespace) -> dict[str, Any]:
    """The run's hyperparameters: default or drawn, then what --hparams says."""
    given = hparams_registry.parse_hparams(args.hparams)
    hparams_registry.check_hparams(args.algorithm, args.dataset, given)
    if args.hparams_seed == 0:
        hparams = hparams_registry.default_hparams(args.algorithm, args.dataset)
    else:
        seed = misc.seed_hash(args.hparams_seed, args.trial_seed)
        hparams = hparams_registry.random_hparams(args.algorithm, args.dataset, seed)
    return hparams | given


def make_splits(
    dataset: datasets.MultipleDomainDataset,
    args: argparse.Namespace,
    class_balanced: bool,
) -> list[Split]:
    """Every environment's parts, all `in` first, then all `out`, then all `uda`."""
    splits: dict[str, list[Split]] = {"in": [], "out": [], "uda": []}
    for i, env in enumerate(dataset):
        seed = misc.seed_hash(args.trial_seed, i)
        n_out = int(len(env) * args.holdout_fraction)
        out, in_ = misc.split_dataset(env, n_out, seed)
        parts = {"out": out.indices, "in": in_.indices}
        if i in args.test_envs:
            n_uda = int(len(in_) * args.uda_holdout_fraction)
            uda, in_ = misc.split_dataset(in_, n_uda, seed)
            keys = parts["in"]
            parts["in"] = [keys[k] for k in in_.indices]
            parts["uda"] = [keys[k] for k in uda.indices]
        for part, keys in parts.items():
            weights = None
            if class_balanced:
                weights = misc.make_weights_for_balanced_classes(Subset(env, keys))
            if keys or part == "in":
                splits[part].append(Split(i, part, keys, weights))
    return [*splits["in"], *splits["out"], *splits["uda"]]


class Run:
    """A prepared run: `Run(args).train()` leaves results.jsonl, model.pkl and done.

    Where it was interrupted it goes on, with the numbers of a run that never was.
    """

    def __init__(self, args: argparse.Namespace):
        check_numbers(args)
        self.args = args
        self.hparams = resolve_hparams(args)
        # Sums in another order end in other digits: the number of threads must not
        # depend on how many runs share the machine.
        torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", 1)))
        misc.seed_everything(args.seed)
        torch.backends.cudnn.deterministic = True
        torch.backends.cudnn.benchmark = False
        self.device = "cuda" if torch.cuda.is_available() else "cpu"
        algorithm_class = algorithms.get_algorithm_class(args.algorithm)
        dataset_class = datasets.get_dataset_class(args.dataset)
        args.test_envs = environment_numbers(args.test_envs, dataset_class.ENVIRONMENTS)
        self.input = check_input(self.hparams.get("input", "images"))
        asked = {"allow_missing_classes": args.allow_missing_classes}
        if self.input != "images":
            asked["clip_transform"] = True
        self.dataset = dataset_class(
            args.data_dir, args.test_envs, self.hparams | asked
        )
        self.splits = make_splits(self.dataset, args, self.hparams["class_balanced"])
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
        n_steps = self.dataset.N_STEPS if args.steps is None else args.steps
        self.n_steps = min(n_steps, algorithm_class.MAX_STEPS or n_steps)
        self.checkpoint_freq = args.checkpoint_freq or self.dataset.CHECKPOINT_FREQ
        self.output_dir = Path(args.output_dir)
        self.records = RunRecords(self.output_dir)
        folder = None if args.no_tensorboard else self.output_dir / "tensorboard"
        self.curves = TensorBoardLog(folder, self.records)
        self.stepping = False  # whether `train` can be stopped between two steps
        self.stopping = False  # set by whoever wants it to save its state and return

    @functools.cached_property
    def backbone(self) -> CLIPBackbone:
        """The frozen CLIP that makes stored features."""
        if self.input == "images":
            return self.algorithm.backbone
        return load_clip(self.hparams["clip_backbone"]).to(self.device)

    @functools.cached_property
    def stored(self) -> list[StoredFeatures] | list[Vectors] | None:
        """What a frozen CLIP makes of every environment, computed once.

        Layer features where the tower is frozen and chance has no part in what it
        sees, else None; vectors of them where the hparam `input` wants vectors.
        """
        stores = isinstance(self.dataset[0], datasets.ImageEnvironment)
        stores = stores and not self.args.no_feature_store
        if self.input != "images":
            if not stores:
                raise InputError(
                    f"hyperparameter input is {self.input!r}, which needs a dataset of "
                    "image folders and the feature store (no --no_feature_store)."
                )
            own = self.backbone.image_projection.cpu()
            projection = own if self.input == "features" else None
            return [Vectors(stored, projection) for stored in self.open_features()]
        if self.algorithm.TAKES_FEATURES and self.hparams["clip_transform"] and stores:
            kind = self.algorithm.stored_kind
            self.algorithm.given = kind.name
            return self.open_features(kind)
        return None

    def open_features(self, kind: Kind | None = None) -> list[StoredFeatures]:
        """Every environment's entry in the feature store."""
        return [
            open_features(
                environment,
                self.backbone,
                Path(self.args.feature_dir or default_feature_dir(self.args.data_dir)),
                self.hparams["feature_dtype"],
                self.workers(1),
                self.args.strict_fingerprint,
                kind,
            )
            for environment in self.dataset
        ]

    def items(self, split: Split, to_train: bool) -> Dataset:
        """A split's (x, y) pairs; only training sees them augmented."""
        if self.stored:
            return self.stored[split.env].subset(split.keys)
        if to_train or self.hparams["augment_validation"]:
            return Subset(self.dataset[split.env], split.keys)
        return Subset(self.dataset.unaugmented(split.env), split.keys)

    def workers(self, n_loaders: int) -> int:
        """Worker processes for each of `n_loaders` loaders that read at once.

        Unless --num_workers says how many, they never outnumber the cores together; on
        few cores the run reads for itself.
        """
        if self.args.num_workers is not None:
            return self.args.num_workers
        return min(self.dataset.N_WORKERS, (os.cpu_count() or 1) // (n_loaders + 1))

    def loaders(self, part: str, first: int = 0) -> list[InfiniteDataLoader]:
        """Endless batches, from number `first` on, of every split of that part that
        training may see.
        """
        seen_in_test = part == "uda"
        splits = [
            split
            for split in self.splits
            if split.part == part and (split.env in self.args.test_envs) == seen_in_test
        ]
        return [
            InfiniteDataLoader(
                self.items(split, to_train=True),
                split.weights,
                self.hparams["batch_size"],
                self.workers(len(splits)),
                seed=misc.seed_hash(self.args.seed, split.name),
                first=first,
            )
            for split in splits
        ]

    def train(self) -> None:
        """Take every step; at each checkpoint evaluate and append a record.

        Goes on where the folder's run was interrupted. Returns early, its state saved,
        once `stopping` is set.
        """
        first, logged = self.resume()
        in_sizes = [len(split.keys) for split in self.splits if split.part == "in"]
        steps_per_epoch = min(in_sizes) / self.hparams["batch_size"]
        adapting = self.args.task == "domain_adaptation"
        labeled = zip(*self.loaders("in", first), strict=True)
        unlabeled = zip(*self.loaders("uda", first), strict=True) if adapting else None
        self.stepping = True
        self.bar = progress.steps_bar(first, self.n_steps)
        for step in self.bar:
            started = time.perf_counter()
            misc.seed_everything(misc.seed_hash(self.args.seed, "step", step))
            minibatches = [self.to_device(batch) for batch in next(labeled)]
            targets = unlabeled and [self.to_device(b)[0] for b in next(unlabeled)]
            for name, value in self.algorithm.update(minibatches, targets).items():
                logged[name].append(value)
            logged["step_time"].append(time.perf_counter() - started)
            if step % self.checkpoint_freq == 0 or step == self.n_steps - 1:
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
        if not self.args.skip_model_save:
            self.save_model("model.pkl")
        if attention := layer_attention.summarise(self):
            path = self.output_dir / "layer_attention.json"
            misc.write_whole(path, json.dumps(attention))
        self.curves.finish(attention)
        self.records.finish()
        self.print_summary()

    def resume(self) -> tuple[int, defaultdict[str, list[float]]]:
        """The step to take next, and what was logged since the last checkpoint.

        Before the first step the folder is made ready: what an interruption left half
        done is cut off, the state is loaded, run.json says what the run is made from.
        """
        state = self.records.load_state()
        if state is None:
            misc.write_whole(self.records.about, json.dumps(self.about(), indent=1))
            return 0, defaultdict(list)
        self.algorithm.load_state_dict(state["algorithm"])
        for name, optimizer in self.optimizers().items():
            optimizer.load_state_dict(state["optimizers"][name])
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
                "algorithm": self.algorithm.state_dict(),
                "optimizers": {
                    name: optimizer.state_dict()
                    for name, optimizer in self.optimizers().items()
                },
            }
        )

    def optimizers(self) -> dict[str, torch.optim.Optimizer]:
        """The algorithm's optimizers, by the names of its attributes."""
        return {
            name: value
            for name, value in vars(self.algorithm).items()
            if isinstance(value, torch.optim.Optimizer)
        }

    def about(self) -> dict[str, Any]:
        """What this run is made from, in plain types: the content of run.json."""
        trainable = [p for p in self.algorithm.parameters() if p.requires_grad]
        splits = (f"{split.name} {split.keys}" for split in self.splits)
        return misc.plain(
            {
                "args": vars(self.args),
                "hparams": self.hparams,
                "parameters": sum(p.numel() for p in trainable),
                "versions": provenance.versions(),
                "git": provenance.git_state(),
                "device": provenance.device_name(),
                "dataset": provenance.dataset_fingerprint(self.dataset),
                "split": misc.digest(splits),
            }
        )

    def to_device(self, batch: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
        return tuple(tensor.to(self.device) for tensor in batch)

    def evaluate(self) -> dict[str, float]:
        """Accuracy on every split, items unaugmented and in order."""
        accuracies = {}
        large = self.stored and not self.algorithm.BATCH_MATTERS
        batch_size = STORED_EVAL_BATCH if large else EVAL_BATCH
        for split in self.splits:
            items = self.items(split, to_train=False)
            loader = FastDataLoader(items, batch_size, self.workers(1))
            accuracies[f"{split.name}_acc"] = misc.accuracy(
                self.algorithm, loader, split.weights, self.device
            )
        return accuracies

    def record(self, values: dict[str, float]) -> None:
        """Evaluate, print a row, append a line to results.jsonl."""
        results = values | self.evaluate() | {"mem_gb": peak_memory_gb()}
        with progress.cleared(self.bar):
            if values["step"] == 0:
                print_row(sorted(results))
            print_row([results[name] for name in sorted(results)])
        shown = {name: values[name] for name in ("loss",) if name in values}
        self.bar.set_postfix(shown | {"val_acc": self.validation_accuracy(results)})
        facts = {"hparams": self.hparams, "args": vars(self.args)}
        self.records.append(results | facts)
        self.curves.add(results)

    def validation_accuracy(self, record: dict[str, Any]) -> float:
        """The mean over the `out` splits of the training environments, 0 of none."""
        trained = {*range(len(self.dataset))} - {*self.args.test_envs}
        keys = [f"env{i}_out_acc" for i in sorted(trained)]
        return float(np.mean([record[key] for key in keys if key in record] or 0))

    def print_summary(self) -> None:
        """Say in words what the run reached on each test environment."""
        best = max(self.records.read(), key=self.validation_accuracy)
        for env in self.args.test_envs:
            name = self.dataset.environment_name(env)
            accuracy = 100 * best[f"env{env}_in_acc"]
            print(
                f"target {name}: {accuracy:.1f} % at step {best['step']}, chosen by "
                "training-domain validation"
            )

    def save_model(self, filename: str) -> None:
        """Write what trains, and what rebuilds the algorithm around it."""
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
        misc.save_whole(self.output_dir / filename, model)


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


def check_input(what: Any) -> str:
    """The value of the hparam `input`; InputError if it is not one that there is."""
    if what not in INPUTS:
        raise UnknownNameError("value of the hyperparameter input:", what, INPUTS)
    return what


def check_numbers(args: argparse.Namespace) -> None:
    """InputError for a count below its least value, or a fraction that leaves none."""
    check_at_least(args, steps=0, checkpoint_freq=1, num_workers=0)
    for name in ("holdout_fraction", "uda_holdout_fraction"):
        value = getattr(args, name)
        if not 0 <= value < 1:
            raise InputError(f"--{name} is {value}; it must be from 0 to below 1.")
    if args.task == "domain_adaptation" and not args.uda_holdout_fraction:
        raise InputError(
            "--task domain_adaptation needs --uda_holdout_fraction above 0: the share "
            "of a test environment that is seen unlabeled."
        )


def environment_numbers(
    wanted: list[int | str], environments: Sequence[str]
) -> list[int]:
    """The numbers of the environments given by number or by name.

    InputError unless they are environments and one is left to train on.
    """
    numbers = []
    for env in map(str, wanted):
        if env.isdecimal() and int(env) < len(environments):
            numbers.append(int(env))
        elif env in environments:
            numbers.append(environments.index(env))
        else:
            raise InputError(
                f"--test_envs {env} is no environment; there are "
                + ", ".join(f"{i} ({name})" for i, name in enumerate(environments))
                + "."
            )
    if len(set(numbers)) >= len(environments):
        raise InputError(
            f"--test_envs {' '.join(map(str, wanted))} leaves none to train on."
        )
    return numbers


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
