"""What a run scores: accuracies of its splits, answers on the tested images."""

import math
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from torch.utils.data import Dataset

from domainbed.inputs import EVAL_BATCH, RunInputs
from domainbed.lib.fast_data_loader import FastDataLoader
from domainbed.model_selection import rank
from domainbed.runs import predictions
from domainbed.tasks import Split

STORED_EVAL_BATCH = 1024  # of stored features, a split in a few calls,
MOST_NUMBERS = 2**26  # but of no more than these: 256 MB


class RunEvaluation(RunInputs):
    """The part of a `training.Run` that asks its algorithm and keeps the answers."""

    def evaluate(self, splits: list[Split] | None = None) -> dict[str, float]:
        """What the task measures on every split, items unaugmented and in order.

        `answers` then are those on what is tested.
        """
        results, self.answers = {}, []
        self.tell(to_train=False)
        if self.algorithm.CHOOSES:
            self.algorithm.choose(self.examples_to_choose_by())
        for split in self.splits if splits is None else splits:
            items = self.items(split, to_train=False)
            batch = EVAL_BATCH if self.algorithm.BATCH_MATTERS else eval_batch(items)
            # A process to read a single batch would start for longer than it reads.
            workers = self.workers(1) if len(split.keys) > batch else 0
            loader = FastDataLoader(items, batch, workers)
            network = Watched(self.algorithm)
            noted = network.noting(loader)
            with self.in_precision():
                measures = self.task.measures(self, split, network, noted)
            results |= {f"{split.name}_{name}": v for name, v in measures.items()}
            if split.role == "test" and split.keys:
                self.answers.append(network.answers(split))
        return results

    def evaluate_checkpoint(self, step: int) -> dict[str, float]:
        """Accuracy on what --eval asks for.

        `chosen` is what selection needs: the splits to select on and, where these are
        at their best so far or the run ends, those to test on.
        """
        if self.args.eval == "all":
            return self.evaluate()
        accuracies = self.evaluate(self.splits_of("select"))
        before = map(self.validation_rank, self.records.read())
        last = step >= self.n_steps - 1
        if last or self.validation_rank(accuracies) > max(before, default=-math.inf):
            accuracies |= self.evaluate(self.splits_of("test"))
        return accuracies

    def keep_predictions(self, step: int) -> None:
        """Write what was answered on the tested images; see `runs.predictions`."""
        predictions.keep(
            self.output_dir / predictions.NAME,
            self.answers,
            [len(env) for env in self.dataset],
            {
                "data": self.about["dataset"],
                "classes": max(map(self.n_classes, range(len(self.dataset)))),
                "names": np.array(self.dataset.class_names or [], dtype=str),
            },
            step,
            self.task.chosen(self, self.records.read())[0]["step"],
            self.records.check_own,
        )

    def n_classes(self, env: int) -> int:
        """How many classes an environment has; in transfer they are its own."""
        own = getattr(self.dataset[env], "classes", ())
        return len(own) or self.dataset.num_classes

    def validation_accuracy(self, record: dict[str, Any]) -> float:
        """The mean over the splits to select on, 0 of none."""
        accs = [record[f"{split.name}_acc"] for split in self.splits_of("select")]
        return float(np.mean(accs or 0))

    def validation_rank(self, record: dict[str, Any]) -> float:
        """What records are chosen by: NaN is worse than all."""
        return rank(self.validation_accuracy(record))


def eval_batch(items: Dataset) -> int:
    """How many of them are evaluated at once."""
    if not hasattr(items, "gather") or not len(items):
        return EVAL_BATCH
    most = MOST_NUMBERS // items[0][0].numel()
    return max(EVAL_BATCH, min(STORED_EVAL_BATCH, most))


class Watched:
    """A network in another's place that notes what it answers to a loader's items."""

    def __init__(self, network: Any):
        self.network = network
        self.eval, self.train = network.eval, network.train
        self.noted: list[tuple[torch.Tensor, ...]] = []

    def noting(self, loader: Iterable) -> Iterator:
        """The loader's batches, the labels of which belong to the next `predict`."""
        for x, y in loader:
            self.labels = y
            yield x, y

    def predict(self, x: torch.Tensor) -> torch.Tensor:
        logits = self.network.predict(x)
        self.noted.append(
            tuple(
                part.cpu() for part in answered(logits, self.labels.to(logits.device))
            )
        )
        return logits

    def answers(self, split: Any) -> predictions.Answers:
        """What was noted, of that split's items."""
        noted = (torch.cat(parts).numpy() for parts in zip(*self.noted, strict=True))
        return predictions.Answers(split.env, split.part, np.array(split.keys), *noted)


def answered(logits: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, ...]:
    """(label, answer, its log-probability, the label's) of logits (B, C).

    One column is the logit of class 1 against 0.
    """
    if logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    logp = logits.detach().float().log_softmax(1)
    best, answer = logp.max(1)
    answer = torch.where(logp.isnan().any(1), logits.shape[1], answer)
    return labels, answer, best, logp.gather(1, labels[:, None])[:, 0]
