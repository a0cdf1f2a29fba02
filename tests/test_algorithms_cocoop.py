"""CoCoOp: its prompts written out, identities, counts."""

import clip.model
import pytest
import torch
import torch.nn.functional as F
from towers import NAMES, make, n_parameters_of_vit_b16, set_all, shapes

from domainbed import backbones
from domainbed.algorithms import get_algorithm_class

E = W = 128  # of the emoji CLIP


def features(n=5):
    generator = torch.Generator().manual_seed(1)
    return torch.randn(n, 8, 128, generator=generator), torch.arange(n) % len(NAMES)


def answers(cocoop, z):
    cocoop.given = "all"
    return cocoop.predict(z)


def written_out(cocoop, tensors, z):
    """Its logits as the released code goes: image after image, all 77 tokens."""
    model, (v, w1, b1, w2, b2) = cocoop.backbone.model, tensors
    names = [name.replace("_", " ") for name in NAMES]
    tokens = backbones.clip.tokenize([f"X X X X {name}." for name in names])
    words = model.token_embedding(tokens)  # (C, 77, W)
    rows = []
    for image in z[:, -1] @ model.visual.proj:
        f = image / image.norm()
        moved = v + F.linear(F.relu(F.linear(f, w1, b1)), w2, b2)
        text = torch.cat([words[:, :1], moved.expand(3, -1, -1), words[:, 5:]], 1)
        text = (text + model.positional_embedding).permute(1, 0, 2)
        text = model.ln_final(model.transformer(text).permute(1, 0, 2))
        t = text[torch.arange(3), tokens.argmax(1)] @ model.text_projection
        rows.append(model.logit_scale.exp() * f @ (t / t.norm(dim=1, keepdim=True)).T)
    return torch.stack(rows)


def test_twenty_steps_of_one_image_written_out(float64, monkeypatch):
    # OpenAI's LayerNorm computes in float32, whatever it is given.
    monkeypatch.setattr(clip.model.LayerNorm, "forward", torch.nn.LayerNorm.forward)
    cocoop = make("CoCoOp", weight_decay=5e-4, lr=2e-3)
    cocoop.double().given = "all"
    names = ["context"]
    names += [f"meta_net.linear{i}.{p}" for i in (1, 2) for p in ("weight", "bias")]
    own = dict(cocoop.named_parameters())
    tensors = [own[name].detach().clone().requires_grad_() for name in names]
    optimizer = torch.optim.SGD(tensors, lr=2e-3, momentum=0.9, weight_decay=5e-4)
    z, y = (part.double() if part.is_floating_point() else part for part in features())
    for step in range(20):
        one = slice(step % 5, step % 5 + 1)
        loss = F.cross_entropy(written_out(cocoop, tensors, z[one]), y[one])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        assert cocoop.update([(z[one], y[one])])["loss"] == pytest.approx(loss.item())
    for name, tensor in zip(names, tensors, strict=True):
        torch.testing.assert_close(own[name], tensor, rtol=1e-7, atol=1e-9)


def test_names_and_shapes_are_the_released_ones():
    narrow = E // 16
    assert shapes(make("CoCoOp")) == {
        "context": (4, W),
        "meta_net.linear1.weight": (narrow, E),
        "meta_net.linear1.bias": (narrow,),
        "meta_net.linear2.weight": (W, narrow),
        "meta_net.linear2.bias": (W,),
    }


@torch.no_grad()
def test_a_network_that_says_nothing_is_zero_shot():
    cocoop, (z, _) = make("CoCoOp"), features()
    zero_shot = answers(make("ZeroShotCLIP", prompt="a photo of a {name}."), z)
    assert not torch.allclose(answers(cocoop, z), zero_shot)
    for parameter in cocoop.meta_net.linear2.parameters():
        parameter.zero_()
    torch.testing.assert_close(answers(cocoop, z), zero_shot)


def test_prompts_in_chunks_are_the_same_prompts():
    whole, parts = set_all(make("CoCoOp")), set_all(make("CoCoOp", text_chunk=4))
    z, y = features()
    for cocoop in (whole, parts):
        cocoop.given = "all"
        cocoop.loss([(z, y)]).backward()
    torch.testing.assert_close(answers(whole, z), answers(parts, z))
    for name, parameter in whole.named_parameters():
        if parameter.requires_grad:
            other = parts.get_parameter(name)
            assert parameter.grad.abs().sum() > 0
            torch.testing.assert_close(parameter.grad, other.grad)


@torch.no_grad()
def test_other_classes_are_asked_with_the_same_words():
    cocoop, (z, _) = set_all(make("CoCoOp")), features()
    before = answers(cocoop, z)
    cocoop.ask(["house", "dog"], "an ignored {name}")
    torch.testing.assert_close(answers(cocoop, z), before[:, [2, 0]])


def test_parameter_count_of_vit_b16(monkeypatch):
    # Counted with context_words "": the towers here have no words to start from.
    own = {"context_words": "", "context_length": 4}
    assert n_parameters_of_vit_b16("CoCoOp", monkeypatch, **own) == 35_360


@pytest.mark.parametrize("shots", [1, 16])
def test_the_released_protocol(shots):
    rows = get_algorithm_class("CoCoOp").few_shot_rows("OxfordPets", shots)
    found = {name: rows[name][0] for name in ("batch_size", "epochs", "lr", "momentum")}
    assert found == {"batch_size": 1, "epochs": 10, "lr": 2e-3, "momentum": 0.9}
    own = get_algorithm_class("CoCoOp").hparam_rows("PACS")
    assert own["batch_size"][0] == 1 and own["context_words"][0] == "a photo of a"
