"""DPLCLIP: its prompts, both losses written out, chunks, what its answers depend on."""

import clip
import pytest
import torch
import torch.nn.functional as F
from clip.model import CLIP
from torchvision.transforms import Compose, Normalize

from domainbed import backbones, hparams_registry
from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms_lfa import prompts_of
from domainbed.lib.errors import InputError

NAMES = ["dog", "sea_animal", "house"]


def make(**hparams):
    torch.manual_seed(0)
    default = hparams_registry.default_hparams("DPLCLIP", "EmojiDG")
    hparams = default | hparams | {"class_names": NAMES}
    return get_algorithm_class("DPLCLIP")((3, 48, 48), len(NAMES), 3, hparams)


def batches(sizes=(2, 3, 1)):
    torch.manual_seed(1)
    return [
        (torch.randn(size, 3, 48, 48), torch.randint(len(NAMES), (size,)))
        for size in sizes
    ]


def plain_text(dpl, tokens):
    """Unit embeddings (C, E) by OpenAI's own transformer over all 77 places."""
    model, n = dpl.backbone.model, len(tokens)
    prompts = [" ".join(["X"] * n + [f"a photo of a {c}."]) for c in NAMES]
    words = clip.tokenize([prompt.replace("_", " ") for prompt in prompts])
    x = model.token_embedding(words)
    x = torch.stack([torch.cat([row[:1], tokens, row[1 + n :]]) for row in x])
    x = (x + model.positional_embedding).transpose(0, 1)
    x = model.ln_final(model.transformer(x).transpose(0, 1))
    ends = x[torch.arange(len(NAMES)), words.argmax(1)]
    return F.normalize(ends @ model.text_projection, dim=-1)


def plain_loss(dpl, minibatches, released):
    """Both objectives, restated from their descriptions."""
    model, n = dpl.backbone.model, dpl.hparams["num_domain_tokens"]
    images = [model.encode_image(x) for x, _ in minibatches]
    texts = [plain_text(dpl, dpl.network(e).mean(0).reshape(n, -1)) for e in images]
    total = 0
    for m, (e, (_, y)) in enumerate(zip(images, minibatches, strict=True)):
        columns = torch.cat(texts) if released else texts[m]
        logits = model.logit_scale.exp() * F.normalize(e, dim=-1) @ columns.T
        total = total + F.cross_entropy(logits, y, reduction="sum")
    return total / sum(len(y) for _, y in minibatches)


@pytest.mark.parametrize("dpl_loss", ["domain", "released"])
def test_losses_and_gradients_written_out(dpl_loss):
    dpl = make(num_domain_tokens=4, mlp_dropout=0.0, dpl_loss=dpl_loss)
    minibatches = batches()
    parameters = list(dpl.network.parameters())
    loss = dpl.loss(minibatches)
    expected = plain_loss(dpl, minibatches, dpl_loss == "released")
    torch.testing.assert_close(loss, expected, rtol=1e-4, atol=1e-5)
    for own, plain in zip(
        torch.autograd.grad(loss, parameters),
        torch.autograd.grad(expected, parameters),
        strict=True,
    ):
        torch.testing.assert_close(own, plain, rtol=1e-3, atol=1e-5)


@torch.no_grad()
def test_with_the_placeholders_own_tokens_it_is_clip():
    dpl = make(num_domain_tokens=2)
    prompts = prompts_of("X X a photo of a {name}.", NAMES)
    held = dpl.backbone.embed_prompts(["X X"])[0][:, 1:3]  # (1, n, W)
    expected = dpl.backbone.model.encode_text(clip.tokenize(prompts))
    torch.testing.assert_close(
        dpl.encode_text(held)[0], F.normalize(expected, dim=-1), rtol=1e-4, atol=1e-5
    )


def test_chunks_change_no_gradient():
    minibatches = batches()
    gradients = []
    for text_chunk in (256, 2):
        dpl = make(num_domain_tokens=4, text_chunk=text_chunk)
        torch.manual_seed(2)  # dropout
        dpl.loss(minibatches).backward()
        gradients.append([p.grad for p in dpl.network.parameters()])
    for whole, chunked in zip(*gradients, strict=True):
        torch.testing.assert_close(whole, chunked, rtol=1e-4, atol=1e-6)


def test_chunks_leave_the_generators_alone(monkeypatch):
    """A recording on the GPU cannot read their state, and nothing there is random."""
    dpl, states = make(num_domain_tokens=4, text_chunk=2), []
    monkeypatch.setattr(torch, "get_rng_state", lambda: states.append(None))
    width = dpl.backbone.text_projection.shape[0]
    tokens = torch.randn(2, 4, width, requires_grad=True)
    dpl.encode_text(tokens).sum().backward()
    assert tokens.grad.any() and not states


def test_chunks_hold_no_activations_until_the_backward_pass():
    def held(text_chunk):
        dpl = make(num_domain_tokens=4, text_chunk=text_chunk)
        sizes = {}

        def pack(tensor):
            storage = tensor.untyped_storage()
            sizes[storage.data_ptr()] = storage.nbytes()
            return tensor

        own = {p.untyped_storage().data_ptr() for p in dpl.parameters()}
        minibatches = batches()
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
            loss = dpl.loss(minibatches)
        loss.backward()
        return sum(size for pointer, size in sizes.items() if pointer not in own)

    assert held(text_chunk=2) < held(text_chunk=256) / 10


def test_only_the_network_trains_and_is_saved():
    dpl = make()
    frozen = {n: p.clone() for n, p in dpl.backbone.named_parameters()}
    before = [p.clone() for p in dpl.network.parameters()]
    assert all((p == 0.01).all() for p in before if p.ndim == 1)
    for _ in range(2):
        dpl.update(batches())
    after = dict(dpl.backbone.named_parameters())
    assert all(torch.equal(after[n], p) for n, p in frozen.items())
    pairs = zip(before, dpl.network.parameters(), strict=True)
    assert not any(torch.equal(old, new) for old, new in pairs)
    saved = set(dpl.state_dict()) - {"backbone._extra_state"}
    assert saved == {f"network.{n}" for n in dpl.network.state_dict()}
    other = make()
    other.load_state_dict(dpl.state_dict())
    x = torch.randn(5, 3, 48, 48)
    with torch.no_grad():
        assert torch.equal(dpl.eval().predict(x), other.eval().predict(x))


@torch.no_grad()
def test_an_answer_depends_on_its_batch_but_not_on_its_order():
    dpl = make().eval()
    x = torch.randn(6, 3, 48, 48)
    logits, order = dpl.predict(x), torch.randperm(6)
    close = {"rtol": 1e-4, "atol": 1e-4}
    torch.testing.assert_close(dpl.predict(x[order]), logits[order], **close)
    alone = dpl.predict(x[:1])
    assert alone.shape == (1, len(NAMES))
    assert not torch.allclose(alone, logits[:1], **close)
    z = dpl.features(x)
    dpl.given = dpl.stored_kind.name
    torch.testing.assert_close(dpl.predict(z), logits, **close)


def test_an_unknown_loss_is_refused():
    with pytest.raises(InputError, match="dpl_loss: 'relesed'; known: domain, rel"):
        make(dpl_loss="relesed")


@pytest.mark.parametrize("n, count", [(16, 4_727_808), (8, 2_626_560)])
def test_parameter_counts_of_vit_b16(n, count, monkeypatch):
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    transform = Compose([Normalize([0] * 3, [1] * 3)])
    monkeypatch.setattr(backbones.clip, "read_clip", lambda name: (model, transform))
    for method, result in (
        ("encode_text_layers", torch.zeros(3, 12, 512)),
        ("embed_prompts", (torch.zeros(3, 30, 512), torch.zeros(3))),
    ):
        monkeypatch.setattr(
            backbones.CLIPBackbone, method, lambda self, prompts, r=result: r
        )
    dpl = make(num_domain_tokens=n)
    assert sum(p.numel() for p in dpl.parameters() if p.requires_grad) == count
