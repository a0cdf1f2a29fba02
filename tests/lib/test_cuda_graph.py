"""A step recorded once and replayed: the same steps as without."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from domainbed.algorithms import LFA
from domainbed.hparams_registry import default_hparams
from domainbed.lib.cuda_graph import WARM_UP, GraphedStep
from domainbed.lib.schedules import set_learning_rate

pytestmark = pytest.mark.filterwarnings("ignore:no class names")


class OnGPU(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    is_cuda = True


def on_gpu(values) -> OnGPU:
    return torch.as_tensor(values).as_subclass(OnGPU)


class FakeGraph(TorchDispatchMode):
    """CUDA's part of a recording: it notes operations, `replay` repeats these alone.

    As on a GPU, what is recorded does not happen, no Python runs again, and a number
    cannot be read while recording.
    """

    def __init__(self):
        super().__init__()
        self.operations, self.before, self.replays = [], {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError("operation not permitted when stream is capturing")
        if func._schema.is_mutable:
            for tensor in filter(torch.is_tensor, tree_leaves((args, kwargs))):
                self.before.setdefault(id(tensor), (tensor, tensor.clone()))
        out = func(*args, **kwargs)
        self.operations.append((func, args, kwargs, out))
        return out

    @contextlib.contextmanager
    def recording(self):
        with self:
            yield
        with torch.no_grad():
            for tensor, value in self.before.values():
                tensor.copy_(value)

    def replay(self):
        self.replays += 1
        with torch.no_grad():
            for func, args, kwargs, out in self.operations:
                again = func(*args, **kwargs)
                for old, new in zip(tree_leaves(out), tree_leaves(again), strict=True):
                    if torch.is_tensor(old) and old is not new:
                        old.copy_(new)


@pytest.fixture
def graph(monkeypatch):
    graph = FakeGraph()
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", FakeGraph.recording)
    for name in ("Stream", "current_stream"):
        monkeypatch.setattr(torch.cuda, name, lambda: graph)
    monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
    graph.wait_stream = lambda other: None
    return graph


def double(x):
    return 2 * x


def test_each_call_is_one_step_on_its_own_tensors(graph):
    graphed = GraphedStep(double, None, recordable=True)
    for i in range(WARM_UP + 4):
        assert graphed(on_gpu([i, 1])).tolist() == [2 * i, 2]
    assert graph.replays == 4


def test_another_shape_is_an_ordinary_step(graph):
    graphed = GraphedStep(double, None, recordable=True)
    for i in range(WARM_UP + 1):
        graphed(on_gpu([i, 1]))
    assert graphed(on_gpu([3])).tolist() == [6]
    assert graphed(on_gpu([4, 5])).tolist() == [8, 10]
    assert graph.replays == 2


def test_what_cannot_be_recorded_is_never_tried_again(graph):
    graphed = GraphedStep(lambda x: x * x.sum().item(), None, recordable=True)
    with pytest.warns(UserWarning, match="no CUDA graph of the step: operation not"):
        results = [graphed(on_gpu([i])).item() for i in range(WARM_UP + 3)]
    assert results == [i * i for i in range(WARM_UP + 3)]
    assert graph.replays == 0


def test_a_replay_repeats_operations_not_python(graph):
    """Why recording is opt-in: a step that counts in Python counts no further."""
    counted = []

    def step(x):
        counted.append(len(counted))
        return x + len(counted)

    graphed = GraphedStep(step, None, recordable=True)
    results = [graphed(on_gpu([0])).item() for _ in range(WARM_UP + 4)]
    assert results == [1, 2, 3, 4, 4, 4, 4]
    assert len(counted) == WARM_UP + 1
    plain = GraphedStep(step, None, recordable=False)
    assert [plain(on_gpu([0])).item() for _ in range(6)] == [5, 6, 7, 8, 9, 10]


def losses_of_lfa(recordable: bool, device="cpu", more=()) -> tuple[list[float], LFA]:
    """Ten steps; the learning rate falls at the seventh."""
    torch.manual_seed(0)
    hparams = default_hparams("LFA", "EmojiDG") | {"momentum": 0.2, "lr": 0.1}
    lfa = LFA((3, 48, 48), 7, 2, hparams | dict(more)).to(device)
    lfa.given = lfa.stored_kind.name
    lfa.graphed_step.possible = recordable
    shape = (8, lfa.backbone.n_image_layers, len(lfa.backbone.image_projection))
    z, y = torch.randn(4, *shape).to(device), torch.arange(4).to(device) % 7
    if device == "cpu":
        z, y = on_gpu(z), on_gpu(y)
    losses = []
    for step in range(10):
        if step == 6:
            set_learning_rate(lfa.optimizer, 0.01)
        torch.manual_seed(step)
        batch = (z[step % 4], y[step % 4].expand(8))
        losses.append(lfa.update([batch, batch])["loss"])
    return losses, lfa


def test_lfa_recorded_takes_the_same_steps_at_the_rates_set(graph):
    plain, _ = losses_of_lfa(False)
    recorded, _ = losses_of_lfa(True)
    assert graph.replays == 10 - WARM_UP
    torch.testing.assert_close(plain, recorded, rtol=1e-5, atol=1e-6)


def test_a_subclass_is_not_recorded_unless_it_says_so():
    class OwnStep(LFA):
        pass

    hparams = default_hparams("LFA", "EmojiDG")
    assert LFA((3, 48, 48), 7, 2, hparams).graphed_step.possible
    assert not OwnStep((3, 48, 48), 7, 2, hparams).graphed_step.possible


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [{}, {"rank": 4}])
def test_lfa_on_a_gpu_takes_the_same_steps(more):
    plain, _ = losses_of_lfa(False, "cuda", more)
    recorded, lfa = losses_of_lfa(True, "cuda", more)
    assert lfa.graphed_step.graph is not None
    torch.testing.assert_close(plain, recorded, rtol=1e-4, atol=1e-5)
