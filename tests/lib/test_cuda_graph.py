"""A step recorded once and replayed: the same steps as without."""

import contextlib

import pytest
import torch

from domainbed.algorithms import LFA
from domainbed.hparams_registry import default_hparams
from domainbed.lib.cuda_graph import WARM_UP, GraphedStep

pytestmark = pytest.mark.filterwarnings("ignore:no class names")


class OnGPU(torch.Tensor):
    """A CPU tensor that says it is on a GPU."""

    is_cuda = True


def on_gpu(*values: float) -> OnGPU:
    return torch.tensor(values).as_subclass(OnGPU)


class FakeCUDA:
    """CUDA's part of a recording: what runs inside is run again by `replay`."""

    def __init__(self, monkeypatch, step):
        self.recording, self.replays, self.step = False, 0, step
        monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: self)
        monkeypatch.setattr(torch.cuda, "graph", self.graph)
        for name in ("Stream", "current_stream"):
            monkeypatch.setattr(torch.cuda, name, lambda: self)
        monkeypatch.setattr(torch.cuda, "stream", contextlib.nullcontext)
        self.wait_stream = lambda other: None

    @contextlib.contextmanager
    def graph(self, graph):
        self.recording = True
        try:
            yield
        finally:
            self.recording = False

    def replay(self):
        self.replays += 1
        self.graphed.result.copy_(self.step(*self.graphed.inputs))


@pytest.fixture
def fake(monkeypatch):
    """A step that doubles, graphed; `seen` is what it ran on, recording left out."""

    def step(x):
        if not cuda.recording:
            seen.append(x.tolist())
        return 2 * x

    seen = []
    cuda = FakeCUDA(monkeypatch, step)
    cuda.graphed, cuda.seen = GraphedStep(step), seen
    return cuda


def test_each_call_is_one_step_on_its_own_tensors(fake):
    for i in range(WARM_UP + 4):
        assert fake.graphed(on_gpu(i, 1)).tolist() == [2 * i, 2]
    assert fake.seen == [[i, 1] for i in range(WARM_UP + 4)]
    assert fake.replays == 4


def test_another_shape_is_an_ordinary_step(fake):
    for i in range(WARM_UP + 1):
        fake.graphed(on_gpu(i, 1))
    assert fake.graphed(on_gpu(3)).tolist() == [6]
    assert fake.graphed(on_gpu(4, 5)).tolist() == [8, 10]
    assert fake.replays == 2


def test_what_cannot_be_recorded_is_never_tried_again(fake):
    def step(x):
        if fake.recording:
            raise RuntimeError("operation not permitted when stream is capturing")
        return 3 * x

    fake.graphed.step = step
    with pytest.warns(UserWarning, match="no CUDA graph of the step: operation not"):
        results = [fake.graphed(on_gpu(i)).item() for i in range(WARM_UP + 3)]
    assert results == [3 * i for i in range(WARM_UP + 3)]
    assert fake.replays == 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("more", [{}, {"rank": 4}])
def test_lfa_on_a_gpu_takes_the_same_steps(more):
    losses = []
    for graphed in (False, True):
        torch.manual_seed(0)
        hparams = default_hparams("LFA", "EmojiDG") | {"momentum": 0.2, "lr": 0.1}
        lfa = LFA((3, 48, 48), 7, 2, hparams | more).to("cuda")
        lfa.graphed_step.possible = graphed
        shape = (8, lfa.backbone.n_image_layers, len(lfa.backbone.image_projection))
        z, y = torch.randn(4, *shape).cuda(), torch.arange(4).cuda() % 7
        for step in range(10):
            torch.manual_seed(step)
            at = step % 4
            batch = (z[at], y[at].expand(8))
            losses.append(lfa.update([batch, batch])["loss"])
        assert (lfa.graphed_step.graph is not None) == graphed
    torch.testing.assert_close(losses[:10], losses[10:], rtol=1e-4, atol=1e-5)
