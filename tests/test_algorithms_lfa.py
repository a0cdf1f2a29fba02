"""ZeroShotCLIP, LinearProbeCLIP and LFA: formulas, identities, parameter counts."""

import math

import pytest
import torch
from clip.model import CLIP
from torchvision.transforms import Compose, Normalize

from domainbed import backbones, hparams_registry
from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms_lfa import Projection, attend, attention, prompts_of, unit
from domainbed.lib.errors import InputError

NAMES = ["dog", "sea_animal", "house"]


def make(name, **hparams):
    hparams = hparams_registry.default_hparams(name, "EmojiDG") | hparams
    facts = {"class_names": NAMES}
    return get_algorithm_class(name)((3, 48, 48), len(NAMES), 3, hparams | facts)


def batches(n_domains=3, size=4):
    torch.manual_seed(0)
    return [
        (torch.randn(size, 3, 48, 48), torch.randint(len(NAMES), (size,)))
        for _ in range(n_domains)
    ]


def test_attend_equals_a_plain_loop():
    torch.manual_seed(0)
    q, k, v = torch.randn(2, 1, 6), torch.randn(3, 5, 6), torch.randn(3, 5, 6)
    pooled = attend(q, k, v)
    assert pooled.shape == (2, 3, 6)
    for b in range(2):
        for c in range(3):
            scores = [math.exp(q[b, 0] @ k[c, i] / math.sqrt(6)) for i in range(5)]
            expected = sum(s * v[c, i] for i, s in enumerate(scores)) / sum(scores)
            torch.testing.assert_close(pooled[b, c], expected)


def test_prompts_spell_names_with_spaces():
    assert prompts_of("a photo of a {name}", ["sea_animal"]) == [
        "a photo of a sea animal"
    ]
    assert prompts_of("{name}", ["dog"]) == ["dog"]


@torch.no_grad()
def test_zero_shot_is_clips_own_answer():
    algorithm = make("ZeroShotCLIP")
    x = torch.randn(2, 3, 48, 48)
    tokens = backbones.clip.tokenize(prompts_of("a photo of a {name}", NAMES))
    expected, _ = algorithm.backbone.model(x, tokens)
    torch.testing.assert_close(algorithm.predict(x), expected)


def restated(q, layers, k, v):
    """One query over one sequence of layers, restated with loops."""
    scores = torch.stack([q @ (layer @ k) for layer in layers]) / len(q) ** 0.5
    values = [layer @ v for layer in layers]
    return unit(sum(a * v for a, v in zip(scores.softmax(0), values, strict=True)))


@torch.no_grad()
def test_several_prompts_are_averaged_as_unit_embeddings():
    templates = ["a photo of a {name}", "{name}", "art of the {name}."]
    algorithm = make("ZeroShotCLIP", prompt=templates)
    x = torch.randn(2, 3, 48, 48)
    model = algorithm.backbone.model
    texts = []
    for template in templates:
        tokens = backbones.clip.tokenize(prompts_of(template, NAMES))
        texts.append(unit(model.encode_text(tokens)))
    image = unit(model.encode_image(x))
    expected = algorithm.backbone.scale * image @ unit(sum(texts) / 3).T
    torch.testing.assert_close(algorithm.predict(x), expected)
    one = make("ZeroShotCLIP", prompt=["{name}"]).predict(x)
    assert torch.equal(one, make("ZeroShotCLIPName").predict(x))


def test_several_prompts_are_zero_shots_only():
    message = r"LinearProbeCLIP takes one prompt, not .*ZeroShotCLIP"
    with pytest.raises(InputError, match=message):
        make("LinearProbeCLIP", prompt=["a {name}", "{name}"])


@torch.no_grad()
def test_lfa_written_out():
    torch.manual_seed(0)
    lfa = make("LFA")
    for parameter in lfa.parameters():
        if parameter.requires_grad:
            parameter.add_(0.05 * torch.randn_like(parameter))
    z, t = torch.randn(2, 8, 128), lfa.text_features
    w = {n: m.weight for n, m in lfa.named_children() if isinstance(m, Projection)}
    logits = lfa.logits(z)
    for b in range(2):
        q = z[b, -1] @ w["image_q"]
        image = restated(q, z[b], w["image_k"], w["image_v"])
        for c in range(len(NAMES)):
            own = restated(t[c, -1] @ w["self_q"], t[c], w["self_k"], w["self_v"])
            cross = restated(q, t[c], w["cross_k"], w["cross_v"])
            expected = lfa.backbone.scale * (0.9 * image @ cross + 0.1 * image @ own)
            torch.testing.assert_close(logits[b, c], expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", ["LFA", "LinearProbeCLIP"])
def test_a_step_is_sgd_with_momentum_and_weight_decay(name):
    """v = m v + g + w p; p = p - lr v: restated over three steps."""
    lr, m, w = 0.05, 0.2, 0.3
    algorithm, restated = (
        make(name, lr=lr, momentum=m, weight_decay=w) for _ in range(2)
    )
    own = [p for p in algorithm.parameters() if p.requires_grad]
    other = [p for p in restated.parameters() if p.requires_grad]
    velocity = [torch.zeros_like(p) for p in other]
    for _ in range(3):
        algorithm.update(batches())
        loss = restated.loss(batches())
        gradients = torch.autograd.grad(loss, other, allow_unused=True)
        with torch.no_grad():
            for p, v, g in zip(other, velocity, gradients, strict=True):
                v.mul_(m).add_(g).add_(w * p)
                p.sub_(lr * v)
    for a, b in zip(own, other, strict=True):
        torch.testing.assert_close(a, b)


def test_the_fast_head_has_the_plain_ones_numbers_and_gradients():
    torch.manual_seed(0)
    lfa = make("LFA").double()
    trained = [p for p in lfa.parameters() if p.requires_grad]
    for parameter in trained:
        parameter.data.add_(0.05 * torch.randn_like(parameter))
    z = torch.randn(5, 8, 128, dtype=torch.double)
    y = torch.tensor([0, 1, 2, 1, 0])
    results = []
    for head in (lfa.plain_logits, lfa.fast_logits):
        logits = head(z, lfa.text_features)
        loss = torch.nn.functional.cross_entropy(logits, y)
        results.append((logits, *torch.autograd.grad(loss, trained)))
    for plain, fast in zip(*results, strict=True):
        torch.testing.assert_close(fast, plain, rtol=1e-5, atol=1e-8)


@torch.no_grad()
@pytest.mark.parametrize("rest", [1e-2, 1e-3, 1e-4, 0])
def test_the_fast_head_holds_where_a_classs_layers_cancel(rest):
    """Layers alternate in sign: of what is summed, `rest` remains."""
    torch.manual_seed(0)
    lfa = make("LFA")
    t, z = lfa.text_features, torch.randn(5, 8, 128)
    lfa.cross_k.weight.zero_()  # every layer weighs alike
    sign = torch.tensor([1.0, -1.0] * (t.shape[1] // 2))[:, None]
    t.copy_(torch.randn(len(t), 1, t.shape[2]) * sign + rest * torch.randn_like(t))
    fast, plain = lfa.fast_logits(z, t), lfa.plain_logits(z, t)
    exact = lfa.double().plain_logits(z.double(), t.double())
    assert (fast - exact).abs().max() <= 4 * (plain - exact).abs().max() + 1e-4


def test_the_fast_head_of_class_values_that_vanish_is_finite():
    lfa = make("LFA")
    lfa.cross_v.weight.data.zero_()
    t, z = lfa.text_features, torch.randn(5, 8, 128)
    fast, plain = lfa.fast_logits(z, t), lfa.plain_logits(z, t)
    torch.testing.assert_close(fast, plain)
    trained = [p for p in lfa.parameters() if p.requires_grad]
    for gradient in torch.autograd.grad(fast.logsumexp(1).sum(), trained):
        assert gradient.isfinite().all()


@torch.no_grad()
def test_the_fast_head_is_used_unless_there_is_a_rank():
    z = torch.randn(2, 8, 128)
    full, low = make("LFA"), make("LFA", rank=2).eval()
    t = full.text_features
    assert torch.equal(full.logits(z), full.fast_logits(z, t))
    assert torch.equal(low.logits(z), low.plain_logits(z, t))


@torch.no_grad()
def test_lfa_with_one_layer_is_the_linear_probe():
    lfa, probe = make("LFA", beta=0.3), make("LinearProbeCLIP")
    z = torch.randn(4, 8, 128)
    lfa.text_features = lfa.text_features[:, -1:]
    torch.testing.assert_close(lfa.logits(z[:, -1:]), probe.logits(z))


@torch.no_grad()
@pytest.mark.parametrize("beta, unused", [(0.0, "cross"), (1.0, "self")])
def test_beta_chooses_a_branch(beta, unused):
    lfa = make("LFA", beta=beta)
    z = torch.randn(4, 8, 128)
    before = lfa.logits(z)
    for name, parameter in lfa.named_parameters():
        if name.startswith(unused):
            parameter.add_(torch.randn_like(parameter))
    assert torch.equal(lfa.logits(z), before)
    mixed = make("LFA", beta=0.25).logits(z)
    parts = [make("LFA", beta=b).logits(z) for b in (0.0, 1.0)]
    torch.testing.assert_close(mixed, 0.75 * parts[0] + 0.25 * parts[1])


@torch.no_grad()
def test_layer_attention_is_what_logits_use():
    lfa = make("LFA")
    x = torch.randn(2, 3, 48, 48)
    weights = lfa.layer_attention(x)
    shapes = {name: tuple(a.shape) for name, a in weights.items()}
    assert shapes == {"image": (2, 8), "self": (3, 4), "cross": (2, 3, 4)}
    for a in weights.values():
        torch.testing.assert_close(a.sum(-1), torch.ones(a.shape[:-1]))
    z, t, beta = lfa.features(x), lfa.text_features, lfa.hparams["beta"]
    image = unit((weights["image"][..., None] * lfa.image_v(z)).sum(1))
    own = unit((weights["self"][..., None] * lfa.self_v(t)).sum(1))
    cross = unit((weights["cross"][..., None] * lfa.cross_v(t)).sum(2))
    expected = beta * (image[:, None] * cross).sum(-1) + (1 - beta) * image @ own.T
    torch.testing.assert_close(lfa.predict(x), lfa.backbone.scale * expected)


def test_attention_is_over_scaled_products():
    q, k = torch.tensor([2.0, 0.0]), torch.tensor([[1.0, 5.0], [3.0, -7.0]])
    expected = (torch.tensor([2.0, 6.0]) / math.sqrt(2)).softmax(0)
    torch.testing.assert_close(attention(q, k), expected)


def test_low_rank_projection_adds_to_a_frozen_one():
    torch.manual_seed(0)
    weight, x = torch.randn(6, 4), torch.randn(3, 6)
    full, low = Projection(weight, None), Projection(weight, 2).eval()
    assert [p.shape for p in full.parameters() if p.requires_grad] == [(6, 4)]
    trained = [p for p in low.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trained) == 6 * 2 + 2 * 4
    down, up, _ = low.low_rank
    expected = x @ weight + (x @ down.weight.T) @ up.weight.T
    torch.testing.assert_close(low(x), expected)
    assert not torch.equal(low.train()(x), low.train()(x))  # dropout


@pytest.mark.parametrize("layer", [0, -1])
@torch.no_grad()
def test_linear_probe_reads_the_layer_it_is_told(layer):
    probe = make("LinearProbeCLIP", layer=layer)
    z = torch.randn(2, 8, 128)
    before = probe.logits(z)
    others = [i for i in range(8) if i != layer % 8]
    z[:, others] = torch.randn(2, 7, 128)
    assert torch.equal(probe.logits(z), before)
    z[:, layer] += 1
    assert not torch.equal(probe.logits(z), before)


@pytest.fixture(scope="module")
def vit_b16():
    """A CLIP of ViT-B/16's sizes; its weights take no memory."""
    with torch.device("meta"):
        model = CLIP(512, 224, 12, 768, 16, 77, 49408, 512, 8, 12)
    return model, Compose([Normalize([0] * 3, [1] * 3)])


@pytest.mark.parametrize(
    "name, hparams, count",
    [
        ("ZeroShotCLIP", {}, 0),
        ("LinearProbeCLIP", {}, 655_360),
        ("LFA", {}, 2_490_368),
        ("LFA", {"rank": 4}, 35_840),
    ],
)
def test_parameter_counts_of_vit_b16(name, hparams, count, vit_b16, monkeypatch):
    monkeypatch.setattr(backbones.clip, "read_clip", lambda name: vit_b16)
    text = torch.zeros(len(NAMES), 12, 512)
    monkeypatch.setattr(
        backbones.CLIPBackbone, "encode_text_layers", lambda self, prompts: text
    )
    algorithm = make(name, **hparams)
    trainable = [p for p in algorithm.parameters() if p.requires_grad]
    assert sum(p.numel() for p in trainable) == count
    if trainable:
        held = algorithm.optimizer.param_groups[0]["params"]
        assert {id(p) for p in held} == {id(p) for p in trainable}


def test_images_and_their_features_train_alike():
    minibatches = batches()
    from_images, from_features = make("LFA", lr=0.1), make("LFA", lr=0.1)
    stored = [(from_features.features(x), y) for x, y in minibatches]
    from_features.given = from_features.stored_kind.name
    for _ in range(3):
        losses = [from_images.update(minibatches), from_features.update(stored)]
        assert losses[0]["loss"] == pytest.approx(losses[1]["loss"], rel=1e-5)


@pytest.mark.parametrize("alias, name", [
    ("ZSCLIP", "ZeroShotCLIP"), ("LPCLIP", "LinearProbeCLIP"), ("CLIP_LFA", "LFA")
])  # fmt: skip
def test_names_that_lfas_users_know(alias, name):
    assert get_algorithm_class(alias) is get_algorithm_class(name)


ASKABLE = ["ZeroShotCLIP", "ZeroShotCLIPName", "LinearProbeCLIP", "LFA", "DPLCLIP"]


@pytest.mark.parametrize("name", ASKABLE)
@torch.no_grad()
def test_asking_for_other_classes_changes_the_texts_alone(name):
    torch.manual_seed(0)
    algorithm, x = make(name), torch.randn(2, 3, 48, 48)
    for parameter in algorithm.parameters():
        if parameter.requires_grad:
            parameter.add_(0.02 * torch.randn_like(parameter))
    algorithm.eval()
    state = {n: v.clone() for n, v in algorithm.named_parameters()}
    before = algorithm.predict(x)
    algorithm.ask(["moon", "red_car"], "a drawing of a {name}.")
    assert algorithm.predict(x).shape == (2, 2)
    assert algorithm.prompts[1] == "a drawing of a red car."
    algorithm.ask(list(reversed(NAMES)))
    torch.testing.assert_close(algorithm.predict(x), before.flip(1))
    algorithm.ask(NAMES)
    assert torch.equal(algorithm.predict(x), before)
    after = dict(algorithm.named_parameters())
    assert all(torch.equal(after[n], v) for n, v in state.items())


def test_what_was_learnt_of_some_classes_answers_for_others():
    lfa = make("LFA", lr=0.1)
    for _ in range(3):
        lfa.update(batches())
    saved = lfa.state_dict()
    others = ["moon", "car"]
    lfa.eval().ask(others)
    fresh = make("LFA")
    fresh.ask(others)
    fresh.load_state_dict(saved)
    z = torch.randn(2, 8, 128)
    assert torch.equal(fresh.eval().logits(z), lfa.logits(z))


def test_weights_of_classes_answer_for_no_others():
    probe = make("LinearERM")
    probe.ask(NAMES)
    with pytest.raises(InputError, match=r"LinearERM has weights for each .*moon"):
        probe.ask(["moon", "car", "dog"])


def test_released_queries_and_keys_start_at_random_values_at_clips():
    torch.manual_seed(0)
    lfa = make("LFA", start="released")
    tower = lfa.backbone
    for name in ("image", "self", "cross"):
        own = tower.image_projection if name == "image" else tower.text_projection
        assert torch.equal(getattr(lfa, f"{name}_v").weight, own)
        key = getattr(lfa, f"{name}_k").weight
        bound = len(own) ** -0.5
        assert key.abs().max() <= bound
        assert key.std().item() == pytest.approx(bound / 3**0.5, rel=0.05)
    assert not torch.equal(lfa.image_q.weight, lfa.image_k.weight)
    with pytest.raises(InputError, match="released"):
        make("LFA", start="random")


def test_dropout_acts_on_layer_features_in_training_only():
    lfa, plain = make("LFA", dropout=0.2), make("LFA")
    z = torch.randn(3, 8, 128)
    assert torch.equal(lfa.eval().logits(z), plain.logits(z))
    torch.manual_seed(5)
    dropped = lfa.train().logits(z)
    torch.manual_seed(5)
    z_mask = torch.nn.functional.dropout(torch.ones_like(z), 0.2)
    t_mask = torch.nn.functional.dropout(torch.ones_like(lfa.text_features), 0.2)
    expected = plain.fast_logits(z * z_mask, lfa.text_features * t_mask)
    torch.testing.assert_close(dropped, expected)


def test_the_probes_dropout_acts_on_unit_embeddings():
    probe = make("LinearProbeCLIP", dropout=0.2, train_text=False)
    trained = [n for n, p in probe.named_parameters() if p.requires_grad]
    assert trained == ["image_projection"]
    z = torch.randn(3, 8, 128)
    torch.manual_seed(5)
    dropped = probe.logits(z)
    torch.manual_seed(5)
    image = unit(z[:, -1] @ probe.backbone.image_projection)
    text = unit(probe.text_features[:, -1] @ probe.backbone.text_projection)
    image, text = (torch.nn.functional.dropout(v, 0.2) for v in (image, text))
    torch.testing.assert_close(dropped, probe.backbone.scale * image @ text.T)


@torch.no_grad()
def test_lfa_averages_the_pooled_vectors_of_several_prompts():
    templates = ["a photo of a {name}.", "art of the {name}."]
    several = make("LFA", prompt=templates)
    singles = [make("LFA", prompt=s) for s in templates]
    z = torch.randn(2, 8, 128)
    logits = several.logits(z)
    q = singles[0].image_q(z[:, -1])
    image = unit(attend(q, several.image_k(z), several.image_v(z)))
    own, cross = 0, 0
    for one in singles:
        t = one.text_features
        own = own + attend(one.self_q(t[:, -1]), one.self_k(t), one.self_v(t)) / 2
        cross = cross + attend(q[:, None], one.cross_k(t), one.cross_v(t)) / 2
    mixed = 0.9 * unit(cross) + 0.1 * unit(own)
    expected = several.backbone.scale * torch.einsum("be,bce->bc", image, mixed)
    torch.testing.assert_close(logits, expected)
    twice = make("LFA", prompt=templates[:1] * 2).logits(z)
    torch.testing.assert_close(twice, singles[0].logits(z), rtol=1e-4, atol=1e-4)
