import ctypes
import itertools
import multiprocessing
import os
import signal
import subprocess
import sys

import pytest
import torch
from torch.utils.data import Dataset, TensorDataset

from domainbed.lib import children, fast_data_loader
from domainbed.lib.errors import InputError
from domainbed.lib.fast_data_loader import (
    EpochLoader,
    FastDataLoader,
    InfiniteDataLoader,
    draw_indices,
)


class Augmented(Dataset):
    """Items of random numbers, as a random augmentation makes them."""

    def __len__(self):
        return 7

    def __getitem__(self, index):
        return torch.rand(3) + index, index


class Deadly(Augmented):
    """No process that reads an item lives."""

    def __getitem__(self, index):
        os.kill(os.getpid(), signal.SIGKILL)


def first_batches(n, **kwargs):
    loader = InfiniteDataLoader(Augmented(), None, 4, **kwargs)
    return list(itertools.islice(loader, n))


def assert_equal(batches, others):
    for (x, y), (other_x, other_y) in zip(batches, others, strict=True):
        assert torch.equal(x, other_x)
        assert torch.equal(y, other_y)


def test_batches_do_not_depend_on_the_number_of_workers():
    here = first_batches(3, num_workers=0, seed=1)
    assert_equal(here, first_batches(3, num_workers=2, seed=1))
    assert not torch.equal(here[0][0], first_batches(1, num_workers=0, seed=2)[0][0])


def test_each_draw_is_augmented_by_a_seed_of_its_own():
    batches = first_batches(3, num_workers=0, seed=1)
    noise = torch.cat([x - y[:, None] for x, y in batches])[:, 0]
    assert len({*noise.mul(1e4).round().tolist()}) == 12


def test_a_loader_continues_where_another_stopped():
    whole = first_batches(5, num_workers=0, seed=1)
    assert_equal(whole[2:], first_batches(3, num_workers=0, seed=1, first=2))


def test_drawing_leaves_the_global_generator_alone():
    torch.manual_seed(0)
    expected = torch.rand(1)
    torch.manual_seed(0)
    first_batches(2, num_workers=0, seed=1)
    assert torch.equal(torch.rand(1), expected)


def test_weights_decide_what_is_drawn():
    assert draw_indices(3, [0, 1, 0], 50, seed=0, t=0).tolist() == [1] * 50
    drawn = draw_indices(3, None, 3000, seed=0, t=0).bincount()
    assert drawn.min() > 900  # each is drawn about 1000 times


def test_chance_in_an_evaluation_does_not_depend_on_the_workers():
    def read(n_workers):
        return torch.cat([x for x, _ in FastDataLoader(Augmented(), 4, n_workers)])

    torch.manual_seed(0)
    alone, state = read(0), torch.get_rng_state()
    assert torch.equal(read(2), alone)
    assert torch.equal(read(0), alone) and len(alone.unique()) == 21
    assert torch.equal(torch.get_rng_state(), state)


def test_ordered_loader_reads_every_item_once():
    data = TensorDataset(torch.arange(7))
    batches = [x.tolist() for (x,) in FastDataLoader(data, 3, 0)]
    assert batches == [[0, 1, 2], [3, 4, 5], [6]]


def test_what_gathers_is_read_without_a_loader_of_torchs(monkeypatch):
    """Nor is a seed made for each of its items."""
    for name in ("DataLoader", "seed_hash"):
        monkeypatch.setattr(fast_data_loader, name, None)

    class Gathers(list):
        def gather(self, indices):
            return [self[i] for i in indices]

    loader = FastDataLoader(Gathers("abcde"), 2, 0)
    assert [*loader] == [["a", "b"], ["c", "d"], ["e"]]
    assert len(loader) == 3


def stderr_of(code):
    """By a process of its own, which may open few files."""
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    return ended.stderr


def test_processes_that_cannot_start_are_said_with_the_remedy():
    code = (
        "import resource, torch\n"
        "from domainbed.lib.fast_data_loader import FastDataLoader\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (12, 12))\n"
        "iter(FastDataLoader(torch.utils.data.TensorDataset(torch.ones(9)), 2, 8))"
    )
    said = stderr_of(code)
    last = said.splitlines()[-1]
    assert "cannot start 8 processes" in last and "lower --num_workers" in last
    assert "_workers_status" not in said


def test_files_that_run_out_while_processes_load_are_said_with_the_remedy():
    """Each tensor that comes from a process takes one until it is read."""
    code = (
        "import os, resource, torch\n"
        "from domainbed.lib.fast_data_loader import FastDataLoader\n"
        "data = torch.utils.data.TensorDataset(torch.ones(99))\n"
        "batches = iter(FastDataLoader(data, 1, 2))\n"
        "n = len(os.listdir('/dev/fd'))\n"
        "resource.setrlimit(resource.RLIMIT_NOFILE, (n, n))\n"
        "kept = list(batches)"
    )
    last = stderr_of(code).splitlines()[-1]
    assert "InputError: Too many open files for the processes that load" in last


def test_a_killed_process_is_said_with_the_remedy():
    with pytest.raises(
        InputError, match=r"a process that loads images ended .*lower --num_workers"
    ):
        list(FastDataLoader(Deadly(), 2, 1))


class Killed(Dataset):
    """What Linux sends a process that reads an item when its parent ends."""

    def __len__(self):
        return 1

    def __getitem__(self, index):
        number = ctypes.c_int()
        ctypes.CDLL(None).prctl(2, ctypes.byref(number))  # PR_GET_PDEATHSIG
        return number.value, os.getppid()


@pytest.fixture(params=["fork", "forkserver", "spawn"])
def method(request):
    """How Python starts processes; the second is the default of 3.14."""
    before = multiprocessing.get_start_method()
    multiprocessing.set_start_method(request.param, force=True)
    yield
    multiprocessing.set_start_method(before, force=True)


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's way")
def test_processes_that_load_are_their_runs_children_and_end_with_it(method):
    """Not when they notice, which some never do."""
    (killed_by, parent), *_ = FastDataLoader(Killed(), 1, 1)
    assert (killed_by.item(), parent.item()) == (signal.SIGKILL, os.getpid())


@pytest.mark.skipif(sys.platform != "linux", reason="Linux's way")
def test_a_process_whose_parent_has_ended_ends():
    orphan = os.fork()
    if not orphan:
        children.die_with(os.getppid() + 1)  # as if the parent had ended before
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(orphan, 0)[1]) == -signal.SIGKILL


def test_an_epoch_takes_one_view_of_each_item():
    n, views = 6, 3
    data = [(item, item % n) for item in range(n * views)]
    plain = EpochLoader(data[:n], 2, 0, seed=4)
    viewed = EpochLoader(data, 2, 0, seed=4, views=views)
    batches = list(itertools.islice(viewed, 12))
    for (x, y), (own, _) in zip(batches, plain, strict=False):
        assert torch.equal(x % n, own) and torch.equal(y, own)
    assert {int(x) // n for batch, _ in batches for x in batch} == {0, 1, 2}
    later = EpochLoader(data, 2, 0, seed=4, first=7, views=views)
    assert torch.equal(next(iter(later))[0], batches[7][0])
