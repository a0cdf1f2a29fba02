"""Batches: endless random ones to train on, ordered ones to evaluate on.

Batch number t of a seed is a function of (seed, t) alone. So a run continues at any
step without a saved state, and stored features, any number of worker processes and any
launcher see the same examples in the same order, augmented the same way. A dataset
that can `gather(indices)` is read a batch at a time, here, without worker processes.
"""

import errno
import functools
import itertools
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial

import torch
from torch.utils.data import DataLoader, Dataset, Sampler

from domainbed.lib.children import die_with
from domainbed.lib.errors import InputError, one_line
from domainbed.lib.misc import seed_hash
from domainbed.lib.shots import batches_per_epoch, epoch_batches


def draw_indices(
    n: int, weights: Sequence[float] | None, batch_size: int, seed: int, t: int
) -> torch.Tensor:
    """Batch t's `batch_size` indices below n, drawn with replacement.

    With weights (n,), an item is drawn in proportion to its weight.
    """
    generator = torch.Generator().manual_seed(seed_hash(seed, "batch", t))
    if weights is None:
        return torch.randint(n, (batch_size,), generator=generator)
    weights = torch.as_tensor(weights, dtype=torch.double)
    return torch.multinomial(weights, batch_size, True, generator=generator)


class _Draws(Sampler):
    """Endless batches of (index, seed of this very draw); batch t has `indices(t)`."""

    def __init__(self, indices: Callable[[int], torch.Tensor], seed: int, first: int):
        self.indices, self.seed, self.first = indices, seed, first

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for t in itertools.count(self.first):
            yield [
                (index, seed_hash(self.seed, "item", t, position))
                for position, index in enumerate(self.indices(t).tolist())
            ]


class _SeededItems(Dataset):
    """A dataset indexed by (index, seed): augmentation draws from the seed alone."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, draw: tuple[int, int]):
        index, seed = draw
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.dataset[index]


def batches_of(loader: DataLoader) -> Iterator[list[torch.Tensor]]:
    """What the loader gives; InputError where its processes cannot live.

    They are started now, so that several loaders' start together. They are this
    process's children, also where Python would start them from a forkserver (3.14 does,
    and what was started so itself); on Linux they end with it: torch's wait for ever if
    it was killed before they have looked who it is.
    """
    if loader.num_workers:
        method = "fork" if sys.platform == "linux" else "spawn"
        loader.multiprocessing_context = method
        loader.worker_init_fn = partial(end_with, os.getpid())
    # What was half started complains when it goes, of anything but the cause.
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None
    try:
        return guarded(iter(loader))
    except OSError as error:
        refused = InputError(
            f"cannot start {loader.num_workers} processes that load images "
            f"({error.strerror}); lower --num_workers, or raise ulimit -n or -u."
        )
    finally:
        sys.unraisablehook = hook
    raise refused


def end_with(parent: int, worker: int) -> None:
    """What a loader's process begins with."""
    die_with(parent)


def guarded(iterator: Iterator) -> Iterator:
    """The same; InputError where one of its processes was killed or cannot be heard."""
    try:
        yield from iterator
    except (RuntimeError, OSError) as error:  # a process's error has no errno here
        if (too_many := os.strerror(errno.EMFILE)) in str(error):
            raise InputError(
                f"{too_many} for the processes that load images; lower --num_workers, "
                "or raise ulimit -n."
            ) from error
        if not str(error).startswith("DataLoader worker"):
            raise
        raise InputError(
            f"a process that loads images ended ({one_line(error)}), short of memory "
            "or /dev/shm; lower --num_workers, 0 loads without processes."
        ) from error


class InfiniteDataLoader:
    """Batches for ever, drawn with replacement (by weight where weights are given).

    Without a seed, one is taken from torch's generator. Iteration starts at batch
    `first`.
    """

    def __init__(
        self,
        dataset: Dataset,
        weights: Sequence[float] | None,
        batch_size: int,
        num_workers: int,
        seed: int | None = None,
        first: int = 0,
    ):
        if seed is None:
            seed = int(torch.randint(2**31, ()))
        indices = partial(draw_indices, len(dataset), weights, batch_size, seed)
        self.serve(dataset, _Draws(indices, seed, first), num_workers)

    def serve(self, dataset: Dataset, draws: _Draws, num_workers: int) -> None:
        """Give the dataset's items as they are drawn."""
        self.dataset, self.draws = dataset, draws
        self.loader = DataLoader(
            _SeededItems(dataset),
            batch_sampler=self.draws,
            num_workers=num_workers,
            generator=torch.Generator(),  # else it would draw from the global one
        )

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        if not hasattr(self.dataset, "gather"):
            return batches_of(self.loader)
        draws = map(self.draws.indices, itertools.count(self.draws.first))
        return map(self.dataset.gather, draws)


class EpochLoader(InfiniteDataLoader):
    """Batches for ever: in each epoch every item once, but for a last short batch.

    A dataset of several `views` holds the first of each item, then the second of each
    and so on; every draw takes one of them at random.
    """

    def __init__(
        self,
        dataset: Dataset,
        batch_size: int | None,
        num_workers: int,
        seed: int,
        first: int = 0,
        views: int = 1,
    ):
        n = len(dataset) // views
        indices = partial(epoch_indices, n, batch_size, views, seed)
        self.serve(dataset, _Draws(indices, seed, first), num_workers)


def epoch_indices(
    n: int, batch_size: int | None, views: int, seed: int, t: int
) -> torch.Tensor:
    """Batch t's indices below n views; of a `batch_size` of None, of all n items."""
    epoch, place = divmod(t, batches_per_epoch(n, batch_size))
    items = torch.tensor(epoch_batches(n, batch_size, seed, epoch)[place])
    if views == 1:
        return items
    generator = torch.Generator().manual_seed(seed_hash(seed, "views", t))
    return items + n * torch.randint(views, items.shape, generator=generator)


class FastDataLoader:
    """Every item once, in order; one that chance has a part in, the same every time."""

    def __init__(self, dataset: Dataset, batch_size: int, num_workers: int):
        self.dataset, self.batch_size = dataset, batch_size
        self.num_workers = num_workers

    @functools.cached_property
    def loader(self) -> DataLoader:
        """What reads items one by one, made once for all evaluations."""
        return DataLoader(
            _SeededItems(self.dataset),
            self.batch_size,
            sampler=[(i, seed_hash("evaluated", i)) for i in range(len(self.dataset))],
            num_workers=self.num_workers,
            generator=torch.Generator(),
        )

    def __iter__(self) -> Iterator[list[torch.Tensor]]:
        if not hasattr(self.dataset, "gather"):
            return batches_of(self.loader)
        n, size = len(self.dataset), self.batch_size
        starts = range(0, n, size)
        return (self.dataset.gather(range(i, min(i + size, n))) for i in starts)

    def __len__(self) -> int:
        return -(-len(self.dataset) // self.batch_size)
