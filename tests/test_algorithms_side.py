"""UniPT, SHERL, LST, HST: names, equations, where they start, where gradients go."""

import copy

import pytest
import torch
import torch.nn.functional as F
from towers import (
    TOWERS,
    attention,
    images,
    make,
    n_parameters_of_vit_b16,
    set_all,
    shapes,
    sizes,
    text_head,
    trained,
    zero_shot,
)

from domainbed.algorithms_side import weigh_layers
from domainbed.backbones import clip
from domainbed.lib.errors import InputError

CLOSE = {"rtol": 1e-4, "atol": 1e-4}


def linear(name, n_in, n_out):
    return {f"{name}.weight": (n_out, n_in), f"{name}.bias": (n_out,)}


def norm(name, n):
    return {f"{name}.weight": (n,), f"{name}.bias": (n,)}


def read_towers(algorithm, x):
    """States (B, N, D) and embedding of the images and of whole 77-token prompts."""
    model = algorithm.backbone.model
    seen = []
    hooks = [
        block.register_forward_hook(lambda m, i, out: seen.append((i[0], out)))
        for tower in (model.visual, model)
        for block in tower.transformer.resblocks
    ]
    tokens = clip.tokenize(algorithm.prompts)
    e, t = model.encode_image(x), model.encode_text(tokens)
    for hook in hooks:
        hook.remove()
    states = [given.transpose(0, 1) for given, _ in seen]
    outs = [out.transpose(0, 1) for _, out in seen]
    n = algorithm.backbone.n_image_layers
    return [*states[:n], outs[n - 1]], e, [*states[n:], outs[-1]], t, tokens


def of_towers(algorithm, x, adapt, with_text):
    """Logits of the embeddings that `adapt` makes of each image and each prompt."""
    image, e, text, t, tokens = read_towers(algorithm, x)
    rows = [
        adapt(algorithm.image, [s[b] for s in image], e[b], len(image[0][b]), 0)
        for b in range(len(x))
    ]
    if with_text:
        ends = tokens.argmax(1).tolist()
        t = torch.stack(
            [
                adapt(algorithm.text, [s[c] for s in text], t[c], end + 1, end)
                for c, end in enumerate(ends)
            ]
        )
    return text_head(algorithm, torch.stack(rows), t)


def apply(module, v):
    return v @ module.weight.T + module.bias


def unipt_written_out(network, states, e, n, at):
    """One image or prompt, whose first n tokens count, the own one standing `at`."""
    g = apply(network.anchor, F.relu(e))
    vectors, gates = [], []
    for down, x in zip(network.down, states, strict=True):
        f = apply(down, F.relu(x[:n]))
        w = torch.stack([F.relu(token @ g) for token in f])
        w = w / max(w.sum(), torch.tensor(1e-6))
        vectors.append(sum(a * token for a, token in zip(w, f, strict=True)) + f[at])
        gates.append(apply(network.gate, g * f.sum(0) / n))
    alpha = torch.cat(gates).softmax(0)
    mixed = sum(a * v for a, v in zip(alpha, vectors, strict=True))
    return e + apply(network.up, F.relu(mixed))


def merged_written_out(layers, guide, weigh, eps):
    """Sum of a_i layer_i + guide, (m,) each."""
    u = [s / (s.norm() + 1e-8) for s in layers]
    b = []
    for s, own in zip(layers, u, strict=True):
        rho = sum(F.relu(own @ other) for other in u)
        assert rho > 0.999
        b.append(F.relu(apply(weigh, s * guide)) / rho)
    a = [score / (sum(b) + eps) for score in b]
    return sum(w * s for w, s in zip(a, layers, strict=True)) + guide


def sherl_written_out(network, states, e, n, at):
    g = apply(network.anchor, F.relu(e))
    vectors = []
    for down, pool, x in zip(network.down, network.pool, states, strict=True):
        f = apply(down, F.relu(x[:n]))
        w = F.relu(apply(pool, g * f))
        vectors.append((w * f).sum(0) / (w.sum() + 1e-6) + f[at])
    return e + apply(
        network.out, F.relu(merged_written_out(vectors, g, network.weigh, 1e-6))
    )


@pytest.mark.parametrize("tower", TOWERS)
def test_names_and_shapes_of_parallel_networks(tower, monkeypatch):
    unipt = make("UniPT", monkeypatch, tower, unipt_reduction=8)
    width, of_text, joint, n_layers, n_text = sizes(unipt)
    m = joint // 8

    def network(name, ends, n, width):
        expected = {}
        for i in range(n + 1):
            expected |= linear(f"{name}.down.{i}", width, m)
        expected |= linear(f"{name}.anchor", joint, m)
        for end, n_in, n_out in ends:
            expected |= linear(f"{name}.{end}", n_in, n_out)
        return expected

    ends = [("gate", m, 1), ("up", m, joint)]
    image = network("image", ends, n_layers, width)
    text = network("text", ends, n_text, of_text)
    assert shapes(unipt) == image | text
    only = make("UniPT", monkeypatch, tower, unipt_reduction=8, unipt_text=False)
    assert shapes(only) == image

    output = {"sherl_form": "output", "sherl_reduction": 8}
    ends = [("weigh", m, 1), ("out", m, joint)]
    image = network("image", ends, n_layers, width)
    text = network("text", ends, n_text, of_text)
    for i in range(n_layers + 1):
        image |= linear(f"image.pool.{i}", m, 1)
    for i in range(n_text + 1):
        text |= linear(f"text.pool.{i}", m, 1)
    assert shapes(make("SHERL", monkeypatch, tower, **output)) == image | text
    only = make("SHERL", monkeypatch, tower, **output, sherl_text=False)
    assert shapes(only) == image

    m = width // 8
    late = {"gate": (1,)} | linear("weigh", m, 1)
    late |= linear("out.0", m, width) | norm("out.1", width)
    for i in range(n_layers):
        late |= linear(f"down.{i}.0", width, m) | norm(f"down.{i}.1", m)
    assert shapes(make("SHERL", monkeypatch, tower, sherl_reduction=8)) == late


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("with_text", [True, False])
@torch.no_grad()
def test_unipts_logits_are_the_equations(with_text, tower, monkeypatch):
    unipt = set_all(make("UniPT", monkeypatch, tower, unipt_text=with_text))
    x = images(unipt)
    expected = of_towers(unipt, x, unipt_written_out, with_text)
    torch.testing.assert_close(unipt.predict(x), expected, **CLOSE)
    assert (expected - zero_shot(unipt, x)).abs().max() > 0.1


@pytest.mark.parametrize("tower", TOWERS)
@pytest.mark.parametrize("with_text", [True, False])
@torch.no_grad()
def test_sherls_output_form_is_the_equations(with_text, tower, monkeypatch):
    how = {"sherl_form": "output", "sherl_text": with_text}
    sherl = set_all(make("SHERL", monkeypatch, tower, **how))
    x = images(sherl)
    expected = of_towers(sherl, x, sherl_written_out, with_text)
    torch.testing.assert_close(sherl.predict(x), expected, **CLOSE)
    assert (expected - zero_shot(sherl, x)).abs().max() > 0.1


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_sherls_late_form_is_the_equations(tower, monkeypatch):
    sherl = set_all(make("SHERL", monkeypatch, tower))
    x = images(sherl, 2)
    states = read_towers(sherl, x)[0][:-1]
    merged = torch.empty_like(states[0])
    for b in range(len(x)):
        for n in range(merged.shape[1]):
            f = [down(s[b, n]) for down, s in zip(sherl.down, states, strict=True)]
            z = merged_written_out(f[:-1], f[-1], sherl.weigh, 1e-8)
            out = sherl.out[1](apply(sherl.out[0], F.relu(z)))
            merged[b, n] = out + torch.tanh(10 * sherl.gate) * states[-1][b, n]
    block = sherl.backbone.model.visual.transformer.resblocks[-1]
    normed = block.ln_1(merged)
    a = merged + attention(block, normed, normed)
    token = (a + block.mlp(block.ln_2(a)))[:, 0]
    visual = sherl.backbone.model.visual
    expected = text_head(sherl, visual.ln_post(token) @ visual.proj)
    torch.testing.assert_close(sherl.predict(x), expected, **CLOSE)


@torch.no_grad()
def test_sherl_with_an_open_gate_and_nothing_added_is_clip():
    sherl = make("SHERL")
    assert sherl.gate.item() == 0
    assert sherl.out[1].eps == 1e-12
    sherl.out[1].weight.zero_()
    sherl.gate.fill_(10.0)
    x = images(sherl)
    torch.testing.assert_close(sherl.predict(x), zero_shot(sherl, x), **CLOSE)


def test_sherl_counts_what_repeats_itself_less():
    torch.manual_seed(0)
    layers, guide = torch.randn(3, 6), torch.randn(6)
    scorer = torch.nn.Linear(6, 1)
    scorer.bias.data.fill_(5.0)  # every score is positive
    weights = weigh_layers(layers, guide, scorer, 1e-8)
    assert weights.sum().item() == pytest.approx(1)
    twice = weigh_layers(torch.cat([layers, layers[:1]]), guide, scorer, 1e-8)
    assert twice[0].item() == pytest.approx(twice[3].item())
    # Alone it weighed w; each of the two now weighs less against the other layers.
    assert twice[0] / twice[1] < weights[0] / weights[1]
    scorer.bias.data.fill_(-50.0)
    assert not weigh_layers(layers, guide, scorer, 1e-8).any()


@torch.no_grad()
def test_unipts_weights():
    unipt = set_all(make("UniPT"))
    _, alpha = unipt.image.layers(unipt.features(images(unipt)))
    torch.testing.assert_close(alpha.sum(1), torch.ones(3))
    assert alpha.shape == (3, 9)


@pytest.mark.parametrize("form", ["late", "output"])
@torch.no_grad()
def test_sherl_says_what_it_weighs_each_state_with(form):
    sherl = set_all(make("SHERL", sherl_form=form))
    weights = sherl.layer_attention(images(sherl))["states"]
    assert weights.shape == (3, 9)
    assert (weights >= 0).all()
    late = torch.tensor([True] * 7 + [False] * 2)
    torch.testing.assert_close(weights.sum(1), torch.ones(3), **CLOSE)
    assert form == "output" or not weights[:, ~late].any()


@torch.no_grad()
def test_the_ladders_shares_are_what_its_gates_leave():
    lst = make("LST", lst_drop=[6, 7])
    torch.testing.assert_close(
        lst.layers_used()["states"],
        torch.tensor([1 / 64, *(2.0**i / 64 for i in range(6)), 0, 0]).double(),
    )
    lst.mix[5] = -99  # closed to all before it
    assert lst.layers_used()["states"].tolist() == [0] * 6 + [1, 0, 0]


@torch.no_grad()
def test_unipt_starts_at_zero_shot_if_asked():
    unipt = make("UniPT", unipt_zero_init=True)
    x = images(unipt)
    torch.testing.assert_close(unipt.predict(x), zero_shot(unipt, x), **CLOSE)
    elsewhere = make("UniPT")
    assert (elsewhere.predict(x) - zero_shot(elsewhere, x)).abs().max() > 0.1


def test_unipts_biases_do_not_decay():
    decayed, let_be = make("UniPT", weight_decay=0.2).optimizer.param_groups
    assert (decayed["weight_decay"], let_be["weight_decay"]) == (0.2, 0.0)
    assert all(p.ndim > 1 for p in decayed["params"])
    assert all(p.ndim == 1 for p in let_be["params"])


@pytest.mark.parametrize(
    "name, hparams", [("UniPT", {}), ("SHERL", {"sherl_form": "output"})]
)
@torch.no_grad()
def test_other_classes_are_read_anew(name, hparams):
    algorithm = set_all(make(name, **hparams))
    x = images(algorithm)
    before = algorithm.predict(x)
    algorithm.ask(["house", "dog"])
    torch.testing.assert_close(algorithm.predict(x), before[:, [2, 0]], **CLOSE)


@pytest.mark.parametrize("tower", TOWERS)
def test_names_and_shapes_of_the_ladder(tower, monkeypatch):
    lst = make("LST", monkeypatch, tower, lst_drop=[1])
    width, _, _, n_layers, _ = sizes(lst)
    d, n = width // 8, n_layers - 1
    expected = {"mix": (n,)} | linear("first", width, d) | norm("norm", d)
    expected |= linear("up", d, width)
    for i in range(n):
        side = f"side.{i}"
        expected |= linear(f"down.{i}", width, d)
        expected |= norm(f"{side}.ln_1", d) | norm(f"{side}.ln_2", d)
        expected |= linear(f"{side}.attn.out_proj", d, d)
        expected |= linear(f"{side}.mlp.c_fc", d, 4 * d)
        expected |= linear(f"{side}.mlp.c_proj", 4 * d, d)
        expected[f"{side}.attn.in_proj_weight"] = (3 * d, d)
        expected[f"{side}.attn.in_proj_bias"] = (3 * d,)
    assert shapes(lst) == expected
    assert {block.attn.num_heads for block in lst.side} == {width // 64}
    head = linear("classifier", width, 3)
    again = make("LST", monkeypatch, tower, lst_drop=[1], head="linear")
    assert shapes(again) == expected | head


@pytest.mark.parametrize("head", ["text", "linear"])
@pytest.mark.parametrize("add", [True, False])
@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_lsts_logits_are_the_equations(tower, add, head, monkeypatch):
    how = {"lst_add": add, "head": head, "lst_drop": [0, 2]}
    lst = set_all(make("LST", monkeypatch, tower, **how))
    x = images(lst)
    states = read_towers(lst, x)[0]
    h, n = apply(lst.first, states[0]), 0
    for i in range(len(states) - 1):
        if i in (0, 2):
            continue
        mu = 1 / (1 + torch.exp(-lst.mix[n] / 0.1))
        u = mu * h + (1 - mu) * apply(lst.down[n], states[i + 1])
        block = lst.side[n]
        normed = block.ln_1(u)
        a = u + attention(block, normed, normed)
        hidden = apply(block.mlp.c_fc, block.ln_2(a))
        h = a + apply(block.mlp.c_proj, hidden * torch.sigmoid(1.702 * hidden))
        n += 1
    token = apply(lst.up, lst.norm(h[:, 0]))
    if add:
        token = token + states[-1][:, 0]
    visual = lst.backbone.model.visual
    normed = visual.ln_post(token)
    expected = (
        text_head(lst, normed @ visual.proj)
        if head == "text"
        else apply(lst.classifier, normed)
    )
    torch.testing.assert_close(lst.predict(x), expected, **CLOSE)


@pytest.mark.parametrize("tower", TOWERS)
@torch.no_grad()
def test_lst_starts_at_zero_shot_with_blocks_cut_from_clips(tower, monkeypatch):
    lst = make("LST", monkeypatch, tower)
    x = images(lst)
    torch.testing.assert_close(lst.predict(x), zero_shot(lst, x), **CLOSE)
    assert torch.equal(torch.sigmoid(lst.mix / 0.1), torch.full_like(lst.mix, 0.5))
    width = sizes(lst)[0]
    for thin, block in zip(lst.side, lst.blocks, strict=True):
        q, k, v = (w[::8, ::8] for w in block.attn.in_proj_weight.split(width))
        assert torch.equal(thin.attn.in_proj_weight, torch.cat([q, k, v]))
        assert torch.equal(thin.mlp.c_proj.weight, block.mlp.c_proj.weight[::8, ::8])
        assert torch.equal(thin.ln_2.bias, block.ln_2.bias[::8])
    alone = make("LST", monkeypatch, tower, lst_add=False)
    assert (alone.predict(x) - zero_shot(alone, x)).abs().max() > 0.1


@torch.no_grad()
def test_a_closed_gate_of_lst_forgets_what_came_before():
    lst = set_all(make("LST"))
    x = images(lst)
    lst.mix[4] = -1e4
    before = lst.predict(x)
    for module in (lst.first, lst.down[:4], lst.side[:4]):
        for parameter in module.parameters():
            parameter.normal_()
    assert torch.equal(lst.predict(x), before)
    lst.mix[4] = 0
    assert not torch.equal(lst.predict(x), before)


BESIDE = [("UniPT", {}), ("SHERL", {"sherl_form": "output"}), ("LST", {})]


@pytest.mark.parametrize("name, hparams", BESIDE)
def test_no_gradient_goes_through_the_tower(name, hparams):
    algorithm = make(name, **hparams).train()
    seen = []
    for block in algorithm.blocks:
        block.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    algorithm.loss([(images(algorithm), torch.tensor([0, 1, 2]))]).backward()
    assert seen == [False] * len(algorithm.blocks)
    assert all(p.grad is not None for p in trained(algorithm).values())


def test_sherls_late_form_has_gradients_through_the_last_block_alone():
    sherl = make("SHERL").train()
    seen = []
    for block in sherl.blocks:
        block.register_forward_hook(lambda m, i, out: seen.append(out.requires_grad))
    sherl.loss([(images(sherl), torch.tensor([0, 1, 2]))]).backward()
    assert seen == [False] * 7 + [True]
    assert all(p.grad is None for p in sherl.blocks.parameters())
    assert all(p.grad is not None for p in trained(sherl).values())


@torch.no_grad()
def test_sherls_dropout_is_for_training_only_and_can_be_0():
    x = images(make("SHERL"))
    dropped = make("SHERL", sherl_dropout=0.5).train()
    assert not torch.equal(dropped.predict(x), dropped.predict(x))
    kept = make("SHERL", sherl_dropout=0.0).train()
    assert torch.equal(kept.predict(x), dropped.eval().predict(x))


@pytest.mark.parametrize(
    "name, hparams, count",
    [
        ("UniPT", {}, 2_396_930),
        ("UniPT", {"unipt_reduction": 1}, 9_584_642),
        ("UniPT", {"unipt_text": False}, 1_411_457),
        ("SHERL", {}, 964_322),
        ("SHERL", {"sherl_reduction": 4}, 1_926_338),
        ("SHERL", {"sherl_form": "output"}, 1_200_668),
        ("SHERL", {"sherl_form": "output", "sherl_reduction": 1}, 9_597_980),
        ("LST", {}, 2_376_492),
        ("LST", {"lst_drop": [0, 4, 8]}, 1_819_497),
        ("LST", {"lst_reduction": 16}, 856_860),
    ],
)
def test_parameter_counts_of_vit_b16(name, hparams, count, monkeypatch):
    assert n_parameters_of_vit_b16(name, monkeypatch, **hparams) == count


@pytest.mark.parametrize(
    "name, hparams, says",
    [
        (
            "UniPT",
            {"unipt_reduction": 3},
            "unipt_reduction is 3; it must divide 128.*2",
        ),
        ("SHERL", {"sherl_reduction": 0}, "sherl_reduction is 0; .* divide 128.* 1."),
        ("SHERL", {"sherl_form": "lat"}, "sherl_form: 'lat'.*Did you mean 'late'"),
        ("SHERL", {"sherl_dropout": 2.0}, "sherl_dropout' is 2.0; .*from 0 to 1"),
        ("LST", {"lst_reduction": 48}, "lst_reduction is 48; it must divide 64.* 32."),
        ("LST", {"lst_drop": [3, 8]}, "lst_drop names layer 8; .* layers 0 to 7"),
    ],
)
def test_wrong_values_are_named(name, hparams, says):
    with pytest.raises(InputError, match=says):
        make(name, **hparams)


def test_sherl_needs_two_blocks(monkeypatch):
    model, transform = copy.deepcopy(clip.read_clip("emoji"))
    del model.visual.transformer.resblocks[1:]
    monkeypatch.setattr(clip, "read_clip", lambda name: (model, transform))
    with pytest.raises(InputError, match="has 1 block and needs at least 2"):
        make("SHERL")


def test_a_classifier_of_its_own_knows_no_other_classes():
    with pytest.raises(InputError, match="LST has weights for each of its classes"):
        make("LST", head="linear").ask(["house", "dog"])
