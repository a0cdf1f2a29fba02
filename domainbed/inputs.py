"""What a run reads: images, or stored features of them; in batches, on its device."""

import argparse
import contextlib
import functools
import itertools
import os
import random
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import Dataset, Subset

from domainbed import datasets
from domainbed.algorithms import Algorithm, get_algorithm_class, reads_stored
from domainbed.arguments import resolve_hparams
from domainbed.backbones import CLASS_TOKENS, CLIPBackbone, Kind, load_clip
from domainbed.datasets_features import FeaturesDataset
from domainbed.features.entries import digest_files
from domainbed.features.store import (
    DTYPES,
    StoredFeatures,
    default_feature_dir,
    open_all,
)
from domainbed.features.vectors import Vectors, check_input
from domainbed.lib import misc
from domainbed.lib.errors import InputError, check_choice
from domainbed.lib.fast_data_loader import FastDataLoader, InfiniteDataLoader
from domainbed.lib.memory import free_bytes
from domainbed.lib.precision import computed_in
from domainbed.lib.shots import k_shots
from domainbed.runs import provenance
from domainbed.tasks import Split, get_task

EVAL_BATCH = 64  # DomainBed's; DPL-CLIP's predictions depend on it
SHARE = 0.1  # of free memory, at most, for features: other runs want theirs


class RunInputs:
    """The part of a `training.Run` that reads its args, hparams, dataset and splits."""

    def __init__(self, args: argparse.Namespace):
        self.args, self.task = args, get_task(args.task)
        self.task.check(args)
        self.hparams = resolve_hparams(args, self.task.hparam_rows(args))
        if "feature_dtype" in self.hparams:
            check_choice(self.hparams, "feature_dtype", DTYPES)
        self.input = check_input(self.hparams.get("input", "images"))
        asked = {"allow_missing_classes": args.allow_missing_classes}
        if self.input != "images":
            asked["clip_transform"] = True
        self.dataset = self.task.dataset(args, self.hparams | asked)

    def share(self) -> None:
        """Make what other runs on the same data need, too, where `once` remembers it.

        No GPU is asked for anything: those that fork later could not use it.
        """
        provenance.git_state()
        provenance.dataset_fingerprint(self.dataset)
        reads = reads_stored(get_algorithm_class(self.args.algorithm), self.hparams)
        if reads and not self.args.no_feature_store:
            _ = load_clip(self.hparams["clip_backbone"]).fingerprint  # which is kept
            for environment in self.dataset:
                if isinstance(environment, datasets.ImageEnvironment):
                    digest_files(environment, self.args.strict_fingerprint)

    @functools.cached_property
    def backbone(self) -> CLIPBackbone:
        """The frozen CLIP that makes stored features."""
        if self.input == "images":
            return self.algorithm.backbone
        return load_clip(self.hparams["clip_backbone"]).to(self.device)

    @functools.cached_property
    def stored(self) -> list[StoredFeatures] | list[Vectors] | None:
        """What a frozen CLIP makes of every environment, computed once.

        The algorithm's `stored_kind` where the tower is frozen and chance has no part
        in what it sees, else None; vectors where the hparam `input` wants vectors.
        """
        stores = isinstance(self.dataset[0], datasets.ImageEnvironment)
        stores = (stores and not self.args.no_feature_store) or self.of_file
        if self.input != "images":
            if not stores:
                raise InputError(
                    f"hyperparameter input is {self.input!r}, which needs a dataset of "
                    "image folders and the feature store (no --no_feature_store)."
                )
            own = self.backbone.image_projection.cpu()
            projection = own if self.input == "features" else None
            return [Vectors(stored, projection) for stored in self.open_features()]
        if stores and (self.of_file or reads_stored(self.algorithm, self.hparams)):
            self.algorithm.given = self.algorithm.stored_kind.name
            return self.open_features()
        return None

    @property
    def of_file(self) -> bool:
        """Whether the dataset is features already, and no images."""
        return isinstance(self.dataset, FeaturesDataset)

    def check_takes(self, algorithm_class: type[Algorithm]) -> None:
        """InputError if it takes images and the dataset has none."""
        if not self.of_file or self.input != "images" or algorithm_class.TAKES_FEATURES:
            return
        how = "methods on stored features, such as LFA, take these"
        if "input" in self.hparams:
            how = "with hyperparameter input=features it takes these"
        raise InputError(
            f"{self.args.algorithm} takes images, and {self.args.dataset} has "
            f"{self.dataset.FILE.content}; {how}."
        )

    def check_made(self) -> None:
        """InputError if a dataset of features has others than what is asked for."""
        if not self.of_file:
            return
        name, file = self.args.dataset, self.dataset.FILE
        made_by, own = file.fingerprint, self.backbone.fingerprint
        if own != made_by:
            raise InputError(
                f"clip_backbone {self.hparams['clip_backbone']} ({own}) has not made "
                f"what {name} has, {made_by} has."
            )
        vectors = self.input != "images"
        if not vectors and self.algorithm.stored_kind.name != CLASS_TOKENS:
            raise InputError(
                f"{self.args.algorithm} takes {self.algorithm.stored_kind.name}, and "
                f"{name} has {file.content}."
            )
        reads_layers = not vectors and self.algorithm.READS_LAYERS
        if file.z.shape[1] == 1 and (reads_layers or self.input == "layers"):
            raise InputError(
                f"{self.args.algorithm} reads all of the image's layers here, and "
                f"{name} has {file.content}."
            )

    def in_precision(self) -> contextlib.AbstractContextManager[None]:
        """--precision, for what runs through a tower; stored features are of it."""
        precision = "float32" if self.stored else self.args.precision
        return computed_in(precision, self.device)

    @functools.cached_property
    def at_hand(self) -> list[StoredFeatures] | list[Vectors] | None:
        """`stored`, read once into the memory of the device where it fits well.

        Else it stays on the disk, read by memory map; the batches are the same.
        """
        if not self.stored:
            return None
        size = sum(features.size for features in self.stored)
        if size > free_bytes(self.device) * SHARE:
            return self.stored
        return [features.on(self.device) for features in self.stored]

    @property
    def fresh_crops(self) -> bool:
        """Whether training sees crops, new at each step, and only tests are stored."""
        fresh = self.hparams.get("augment") and not self.hparams.get("views")
        return bool(fresh) and self.input == "images"

    def tell(self, to_train: bool) -> None:
        """Tell the algorithm what it is given from now on."""
        if self.stored and self.input == "images":
            images = to_train and self.fresh_crops
            kind = "images" if images else self.algorithm.stored_kind.name
            self.algorithm.given = kind

    @property
    def kind(self) -> Kind:
        """What of the images is stored; in another precision it is another kind."""
        kind = self.backbone.class_tokens
        if self.input == "images":
            kind = self.algorithm.stored_kind
        precision = self.args.precision
        if precision == "float32":
            return kind

        def encode(x: torch.Tensor) -> torch.Tensor:
            with computed_in(precision, self.device):
                return kind.encode(x).float()

        return Kind(f"{kind.name} {precision}", encode)

    def open_features(self) -> list[StoredFeatures]:
        """Every environment's entry in the feature store, then that of the views.

        Of a dataset of features it is what its file has.
        """
        if self.of_file:
            return [StoredFeatures(e.z, e.targets, range(len(e))) for e in self.dataset]
        views = getattr(self.dataset, "views", None)
        environments = [*map(self.dataset.unaugmented, range(len(self.dataset)))]
        return open_all(
            environments + ([views] if views else []),
            self.backbone,
            Path(self.args.feature_dir or default_feature_dir(self.args.data_dir)),
            self.hparams["feature_dtype"],
            self.workers(1),
            self.args.strict_fingerprint,
            self.kind,
        )

    def items(self, split: Split, to_train: bool) -> Dataset:
        """A split's (x, y) pairs; only training sees them augmented, or their views."""
        if to_train and self.hparams.get("views"):
            return (
                self.at_hand[len(self.dataset)] if self.at_hand else self.dataset.views
            )
        if self.at_hand and not (to_train and self.fresh_crops):
            return self.at_hand[split.env].subset(split.keys)
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

    def weights(self, split: Split) -> torch.Tensor | None:
        """How often training draws each item, None for all alike."""
        if not self.hparams["class_balanced"]:
            return None
        items = Subset(self.dataset[split.env], split.keys)
        return misc.make_weights_for_balanced_classes(items)

    def splits_of(self, role: str) -> list[Split]:
        """Those of that role."""
        return [split for split in self.splits if split.role == role]

    def loaders(self, role: str, first: int = 0) -> list[InfiniteDataLoader]:
        """Endless batches, from number `first` on, of every split of that role."""
        splits = self.splits_of(role)
        return [
            InfiniteDataLoader(
                self.items(split, to_train=True),
                self.weights(split),
                self.hparams["batch_size"],
                self.workers(len(splits)),
                seed=misc.seed_hash(self.args.seed, split.name),
                first=first,
            )
            for split in splits
        ]

    def support_set(self) -> list[Iterable]:
        """Batches of each training domain's support set, drawn by the trial's seed.

        It has `support_shots` examples of each class, all that there are of fewer.
        """
        self.tell(to_train=False)
        domains = []
        for split in self.splits_of("train"):
            labels = misc.labels_of(Subset(self.dataset[split.env], split.keys))
            seed = misc.seed_hash(self.args.trial_seed, split.env)
            n = self.hparams["support_shots"]
            places = k_shots(labels, n, random.Random(seed))
            own = split._replace(keys=[split.keys[i] for i in places])
            domains.append(self.read_once(own))
        return domains

    def examples_to_choose_by(self) -> Iterable:
        """Batches of what is held out or, for `as_published`, of what is tested."""
        return self.examples("test" if self.hparams["as_published"] else "select")

    def examples(self, role: str) -> Iterable:
        """Batches of the items of every split of that role."""
        self.tell(to_train=False)
        return itertools.chain.from_iterable(map(self.read_once, self.splits_of(role)))

    def read_once(self, split: Split) -> Iterable:
        """Batches of a split's items as evaluation sees them, on the run's device."""
        items = self.items(split, to_train=False)
        return map(self.to_device, FastDataLoader(items, EVAL_BATCH, self.workers(1)))

    def to_device(self, batch: Any) -> Any:
        """Tensors, or lists and tuples of them, on the run's device."""
        if isinstance(batch, list | tuple):
            return type(batch)(map(self.to_device, batch))
        return batch if batch is None else batch.to(self.device)
