"""Head2ToeLinear, Head2Toe, VQT: against plain restatements, on two towers."""

import copy
import math

import pytest
import torch
import torch.nn.functional as F
from clip.model import CLIP
from towers import n_parameters_of_vit_b16, shapes

from domainbed import hparams_registry
from domainbed.algorithms import get_algorithm_class
from domainbed.algorithms_lfa import unit
from domainbed.algorithms_probe import pool
from domainbed.lib.errors import InputError

NAMES = ["dog", "sea_animal", "house"]
SHORT = {"h2t_frac": 0.05, "h2t_select_steps": 2, "lr": 0.01}


@pytest.fixture(scope="module", params=["emoji", "wide"])
def tower(request, tmp_path_factory):
    """A CLIP's name: emoji, all widths 128, and one whose three widths all differ."""
    if request.param == "emoji":
        return "emoji"
    torch.manual_seed(5)
    path = tmp_path_factory.mktemp("clip") / "wide.pt"
    torch.save(CLIP(64, 32, 3, 192, 8, 77, 49408, 128, 2, 2).state_dict(), path)
    return str(path)


def make(name, clip="emoji", **hparams):
    """The algorithm with everything that trains set at random."""
    torch.manual_seed(0)
    defaults = hparams_registry.default_hparams(name, "EmojiDG")
    facts = {"class_names": NAMES, "clip_transform": True, "clip_backbone": clip}
    cls = get_algorithm_class(name)
    algorithm = cls((3, 48, 48), len(NAMES), 3, defaults | facts | hparams)
    with torch.no_grad():
        for parameter in algorithm.parameters():
            if parameter.requires_grad:
                parameter.copy_(torch.randn_like(parameter) / 10)
    return algorithm


def images(algorithm, n=3):
    size = algorithm.backbone.resolution
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(2))


def batches(algorithm):
    labels = torch.tensor([0, 2, 1])
    return [(images(algorithm) + i, labels) for i in range(2)]


@torch.no_grad()
def tapped(visual, x):
    """The taps of methods.md, (B, N, width) or (B, width), spied on in CLIP's code."""
    seen, hooks = [], []

    def spy(module, inputs, output):
        output = output[0] if isinstance(output, tuple) else output
        seen.append(output.transpose(0, 1))

    for block in visual.transformer.resblocks:
        for part in (block.ln_1, block.attn, block.mlp.gelu, block.mlp):
            hooks.append(part.register_forward_hook(spy))
    first = visual.transformer.register_forward_pre_hook(
        lambda module, inputs: seen.append(inputs[0].transpose(0, 1))
    )
    last = visual.ln_post.register_forward_hook(
        lambda m, i, output: seen.append(output)
    )
    e = visual(x)
    for hook in (*hooks, first, last):
        hook.remove()
    return [*seen, e]


def test_linear_reads_unit_embeddings(tower):
    linear = make("LINEAR", tower)
    x, e = images(linear), linear.backbone.image_projection.shape[1]
    assert shapes(linear) == {"classifier.weight": (3, e), "classifier.bias": (3,)}
    with torch.no_grad():
        embedding = linear.backbone.model.encode_image(x)
        expected = linear.classifier(embedding / embedding.norm(dim=1, keepdim=True))
        torch.testing.assert_close(linear.predict(x), expected, rtol=1e-4, atol=1e-5)


def test_other_names_mean_the_same_classes():
    for alias, name in (("LINEAR", "Head2ToeLinear"), ("FINETUNING", "FineTuneCLIP")):
        assert get_algorithm_class(alias) is get_algorithm_class(name)


def test_a_tap_is_pooled_in_windows_of_tokens():
    tap = torch.randn(2, 11, 6)
    torch.testing.assert_close(pool(tap, 6), tap.mean(1))
    torch.testing.assert_close(pool(tap, 4), tap.mean(1))
    # 20 / 6 tokens are wanted, so windows of int(11 / (20 / 6)) = 3; two tokens drop
    means = [tap[:, i : i + 3].mean(1) for i in (0, 3, 6)]
    torch.testing.assert_close(pool(tap, 20), torch.cat(means, 1))
    torch.testing.assert_close(pool(tap, 66), tap.flatten(1))
    torch.testing.assert_close(pool(tap, 1000), tap.flatten(1))
    assert torch.equal(pool(tap[:, 0], 1000), tap[:, 0])


@pytest.mark.parametrize(
    "target, widths",
    [(768, (768, 3072)), (15360, (16128, 15360)), (32448, (37632, 30720))],
)
def test_pooled_widths_of_vit_b16(target, widths):
    pooled = (pool(torch.zeros(1, 197, ch), target).shape[1] for ch in (768, 3072))
    assert tuple(pooled) == widths


@pytest.mark.parametrize("target", [0, 500])
def test_head2toe_is_its_equations_before_and_after_it_selects(tower, target):
    head2toe = make("Head2Toe", tower, h2t_target=target, h2t_frac=0.1, h2t_lasso=0.01)
    visual, x = head2toe.backbone.model.visual, images(head2toe)
    taps, width = tapped(visual, x), len(visual.ln_post.weight)
    g = [pool(tap, target or width) for tap in taps]
    n = sum(part.shape[1] for part in g)
    assert len(g) == 3 + 4 * head2toe.backbone.n_image_layers
    assert shapes(head2toe) == {
        "probe.weight": (3, n),
        "probe.bias": (3,),
        "classifier.weight": (3, int(0.1 * n)),
        "classifier.bias": (3,),
    }
    assert (head2toe.kept == -1).all()
    assert head2toe.kept.dtype == torch.int64

    (probe, classifier), y = (
        (head2toe.probe, head2toe.classifier),
        torch.tensor([0, 2, 1]),
    )
    with torch.no_grad():
        f = torch.cat([part / part.norm(dim=1, keepdim=True) for part in g], 1)
        logits = f @ probe.weight.T + probe.bias
        torch.testing.assert_close(head2toe.predict(x), logits, rtol=1e-4, atol=1e-4)
        price = sum(column.norm() for column in probe.weight.T)
        expected = F.cross_entropy(logits, y) + 0.01 * price
        torch.testing.assert_close(head2toe.loss([(x, y)]), expected, rtol=1e-5, atol=0)

        head2toe.select()
        kept, parts, start = set(head2toe.kept.tolist()), [], 0
        for part in g:
            own = [i for i in range(part.shape[1]) if start + i in kept]
            parts += [unit(part[:, own])] if own else []
            start += part.shape[1]
        logits = torch.cat(parts, 1) @ classifier.weight.T + classifier.bias
        torch.testing.assert_close(head2toe.predict(x), logits, rtol=1e-4, atol=1e-4)
        expected = F.cross_entropy(logits, y)
        torch.testing.assert_close(head2toe.loss([(x, y)]), expected, rtol=1e-5, atol=0)


def test_the_features_of_largest_weight_are_kept_in_order():
    head2toe = make("Head2Toe", h2t_frac=0.001)
    assert len(head2toe.kept) == int(0.001 * sum(head2toe.widths)) == 7
    large = [5, 130, 131, 900, 3000, 5000, 7551]
    with torch.no_grad():
        head2toe.probe.weight.zero_()
        head2toe.probe.weight[1, 7] = 0.5  # one large class is less than three
        for i, feature in enumerate(reversed(large)):
            head2toe.probe.weight[:, feature] = 0.3 + i / 100
    head2toe.select()
    assert head2toe.kept.tolist() == large
    assert sum(head2toe.kept_of_taps()) == 7
    assert head2toe.kept_of_taps()[:2] == [1, 2]  # x_0 has 128, ln_1 the next 128


def test_the_kept_features_are_counted_by_layer_and_tap():
    head2toe = make("Head2Toe", h2t_frac=0.001)
    with torch.no_grad():
        head2toe.kept.copy_(torch.tensor([5, 130, 400, 128 * 8, 7300, 7500, 7551]))
    used = head2toe.layers_used()
    found = {
        (name, layer): round(7 * share)
        for name, shares in used.items()
        for layer, share in enumerate(shares.tolist())
        if share
    }
    expected = {("x_0", 0): 1, ("ln_1", 1): 1, ("hidden", 1): 1, ("ln_1", 2): 1}
    expected |= {("class token", 8): 1, ("embedding", 8): 2}
    assert found == expected
    assert {len(shares) for shares in used.values()} == {9}


@pytest.mark.parametrize("name", ["Head2Toe", "VQT"])
def test_the_shares_of_layers_sum_to_one(name):
    used = make(name).layers_used()
    assert sum(used.values()).sum().item() == pytest.approx(1)
    assert all((shares >= 0).all() for shares in used.values())


def test_vqts_shares_are_of_its_weights_norms():
    vqt = make("VQT", vqt_T=2)
    with torch.no_grad():
        vqt.classifier.weight.zero_()
        vqt.classifier.weight[0, 0] = 3  # the class token
        vqt.classifier.weight[1, 128 + 256 * 4] = 1  # block 5's first query
    used = vqt.layers_used()
    assert used["class token"].tolist() == [0] * 8 + [0.75]
    assert used["queries"].tolist() == [0] * 5 + [0.25] + [0] * 3


def test_every_tap_that_is_kept_is_a_unit_vector_or_zero():
    head2toe = make("Head2Toe", h2t_frac=0.01)
    head2toe.select()
    g = head2toe.features(images(head2toe))
    g[0, : head2toe.widths[0]] = 0
    for widths, of in (
        (head2toe.widths, g),
        (head2toe.kept_of_taps(), g[:, head2toe.kept]),
    ):
        f = head2toe.normalize(of, widths)
        for number, part in enumerate(f.split(widths, 1)):
            expected = torch.ones(3) if part.shape[1] else torch.zeros(3)
            if number == 0:
                expected[0] = 0
            torch.testing.assert_close(part.norm(dim=1), expected)


def test_all_features_can_be_kept():
    head2toe = make("Head2Toe", h2t_frac=1.0)
    x = images(head2toe)
    head2toe.classifier.load_state_dict(head2toe.probe.state_dict())
    before = head2toe.predict(x)
    head2toe.select()
    assert head2toe.kept.tolist() == list(range(sum(head2toe.widths)))
    assert torch.equal(head2toe.predict(x), before)


def test_lasso_shrinks_the_weights_of_most_features():
    small, large = {}, {}
    for lasso, norms in ((0.0, small), (0.1, large)):
        head2toe = make("Head2Toe", h2t_lasso=lasso, lr=0.02)
        for _ in range(20):
            head2toe.update(batches(head2toe))
        norms[0] = head2toe.probe.weight.norm(dim=0).median()
    assert large[0] < small[0] / 3


def test_head2toe_selects_once_and_trains_one_head_at_a_time():
    head2toe = make("Head2Toe", **SHORT)
    frozen = copy.deepcopy(head2toe.backbone.model.state_dict())
    for number in range(5):
        heads = copy.deepcopy([head2toe.probe, head2toe.classifier])
        kept = head2toe.kept.clone()
        head2toe.update(batches(head2toe))
        moved = [
            not torch.equal(old.weight, new.weight)
            for old, new in zip(
                heads, (head2toe.probe, head2toe.classifier), strict=True
            )
        ]
        assert moved == [number < 2, number >= 2]
        assert torch.equal(kept, head2toe.kept) == (number != 2)
    steps = [
        head2toe.optimizer.state[head.weight]["step"].item()
        for head in (head2toe.probe, head2toe.classifier)
    ]
    assert steps == [2, 3]  # the second head's Adam started afresh
    for name, weight in head2toe.backbone.model.state_dict().items():
        assert torch.equal(weight, frozen[name])


@pytest.mark.parametrize("finetune", [False, True])
@pytest.mark.parametrize("stop", [1, 2, 3])
def test_head2toe_goes_on_from_either_side_of_the_selection(stop, finetune):
    hparams = SHORT | {"h2t_finetune": finetune}
    whole, first = make("Head2Toe", **hparams), make("Head2Toe", **hparams)
    for _ in range(4):
        whole.update(batches(whole))
    for _ in range(stop):
        first.update(batches(first))
    second = make("Head2Toe", **hparams | {"lr": 0.01})
    second.load_training_state(copy.deepcopy(first.training_state()))
    for _ in range(4 - stop):
        second.update(batches(second))
    expected = whole.state_dict()
    for name, value in second.state_dict().items():
        if isinstance(value, torch.Tensor):
            assert torch.equal(value, expected[name])


def test_the_tower_can_train_after_the_selection():
    head2toe = make("Head2Toe", **SHORT, h2t_finetune=True, h2t_tower_lr=1e-3)
    visual = head2toe.backbone.model.visual
    head2toe.tower.load_state_dict(visual.state_dict())
    names = {f"tower.{name}" for name, _ in visual.named_parameters()}
    heads = {f"{h}.{p}" for h in ("probe", "classifier") for p in ("weight", "bias")}
    assert set(shapes(head2toe)) == names | heads
    assert not head2toe.TAKES_FEATURES
    rates = [group["lr"] for group in head2toe.optimizer.param_groups]
    assert rates == [0.01, 1e-3]
    frozen = copy.deepcopy(visual.state_dict())
    for number in range(4):
        before = copy.deepcopy(head2toe.tower.state_dict())
        head2toe.update(batches(head2toe))
        for name, weight in head2toe.tower.state_dict().items():
            # Keys' bias moves no softmax, whatever rounding leaves of its gradient.
            if name.endswith("weight"):
                assert torch.equal(weight, before[name]) == (number < 2), name
    for name, weight in visual.state_dict().items():
        assert torch.equal(weight, frozen[name])
    x = images(head2toe)
    with torch.no_grad():
        g = [pool(tap, 128) for tap in tapped(head2toe.tower, x)]
        torch.testing.assert_close(head2toe.features(x), torch.cat(g, 1))


def test_vqt_is_its_equations(tower):
    vqt = make("VQT", tower, vqt_T=2)
    backbone, x = vqt.backbone, images(vqt)
    visual, blocks = backbone.model.visual, backbone.model.visual.transformer.resblocks
    n, width = len(blocks), len(visual.ln_post.weight)
    assert shapes(vqt) == {
        "queries": (n, 2, width),
        "classifier.weight": (3, (1 + 2 * n) * width),
        "classifier.bias": (3,),
    }
    vqt.eval()
    with torch.no_grad():
        states = backbone.image_states(x)
        pieces = [visual.ln_post(states[-1][:, 0])]
        for i, block in enumerate(blocks):
            p = vqt.queries[i].expand(3, 2, width).transpose(0, 1)  # (T, B, D)
            keys = block.ln_1(states[i].transpose(0, 1))
            u = p + block.attn(block.ln_1(p), keys, keys, need_weights=False)[0]
            z = u + block.mlp(block.ln_2(u))
            pieces.append(z.transpose(0, 1).reshape(3, -1))
        f = torch.cat([piece / piece.norm(dim=1, keepdim=True) for piece in pieces], 1)
        logits = f @ vqt.classifier.weight.T + vqt.classifier.bias
        torch.testing.assert_close(vqt.predict(x), logits, rtol=1e-4, atol=1e-4)
        expected = F.cross_entropy(logits, torch.tensor([0, 2, 1]))
        actual = vqt.loss([(x, torch.tensor([0, 2, 1]))])
        torch.testing.assert_close(actual, expected)


@torch.no_grad()
def test_vqts_queries_are_a_block_of_more_queries_than_keys_and_change_no_token():
    vqt = make("VQT", vqt_T=3).eval()
    block = vqt.backbone.model.visual.transformer.resblocks[0]
    states = vqt.features(images(vqt))
    joint = torch.cat([vqt.queries[0].expand(3, -1, -1), states[0]], 1).transpose(0, 1)
    normed = block.ln_1(joint)  # (T + N, B, D), of which the last N are keys
    u = joint + block.attn(normed, normed[3:], normed[3:], need_weights=False)[0]
    joint = (u + block.mlp(block.ln_2(u))).transpose(0, 1)
    z = next(iter(vqt.answers(states)))
    torch.testing.assert_close(joint[:, :3].flatten(1), z, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(joint[:, 3:], states[1], rtol=1e-4, atol=1e-5)

    before = vqt.features(images(vqt))[-1]
    vqt.queries.mul_(7)
    assert torch.equal(vqt.features(images(vqt))[-1], before)


def test_vqt_reads_unit_pieces_and_drops_queries_of_each_image_apart():
    vqt = make("VQT", vqt_T=2, vqt_dropout=0.5)
    seen = []
    vqt.classifier.register_forward_pre_hook(lambda m, inputs: seen.append(*inputs))
    x = images(vqt)[:1].expand(3, -1, -1, -1)
    with torch.no_grad():
        vqt.eval().predict(x)
        assert torch.equal(*seen[0][:2])
        for piece in seen[0].split([128] + 8 * [256], 1):
            torch.testing.assert_close(piece.norm(dim=1), torch.ones(3))
        vqt.train().predict(x)
    assert torch.equal(*seen[1][:2, :128])
    for piece in seen[1].split([128] + 8 * [256], 1)[1:]:
        assert not torch.equal(piece[0], piece[1])


def test_vqt_starts_as_it_is_written_and_spares_its_bias_the_decay():
    torch.manual_seed(0)
    defaults = hparams_registry.default_hparams("VQT", "EmojiDG")
    names = {"class_names": list("abcdefghijklmnopq")}
    vqt = get_algorithm_class("VQT")((3, 48, 48), 17, 3, defaults | names)
    bound = math.sqrt(6 / (3 * 8**2 + 128))
    assert 0.98 * bound < vqt.queries.max() < bound
    assert -bound < vqt.queries.min() < -0.98 * bound
    assert vqt.classifier.weight.std().item() == pytest.approx(
        (2 / 17) ** 0.5, rel=0.02
    )
    assert vqt.classifier.bias.unique().item() == pytest.approx(-4.595, abs=1e-3)
    decays = {
        id(p): g["weight_decay"]
        for g in vqt.optimizer.param_groups
        for p in g["params"]
    }
    assert decays.pop(id(vqt.classifier.bias)) == 0
    assert set(decays.values()) == {1e-4}
    assert len(decays) == 2


def saved_for_backward(algorithm):
    """Bytes that a step's graph holds: what it saved, parameters and images aside."""
    held, aside = {}, {p.data_ptr() for p in algorithm.parameters()}

    def pack(tensor):
        storage = tensor.untyped_storage()
        held[storage.data_ptr()] = storage.nbytes()
        return tensor

    x = images(algorithm, 8)
    aside.add(x.data_ptr())
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        loss = algorithm.loss([(x, torch.arange(8) % 3)])
    total = sum(size for place, size in held.items() if place not in aside)
    return total, loss


def test_no_gradient_goes_through_the_tower():
    costs = {}
    for name, hparams in (
        ("Head2ToeLinear", {}),
        ("Head2Toe", {}),
        ("VQT", {"vqt_T": 1}),
        ("VQT", {"vqt_T": 10}),
        ("FineTuneCLIP", {}),
    ):
        algorithm = make(name, **hparams)
        features = algorithm.features(images(algorithm))
        states = features if isinstance(features, list) else [features]
        through = any(state.requires_grad for state in states)
        assert through == (name == "FineTuneCLIP")
        costs[(name, *hparams.values())], loss = saved_for_backward(algorithm)
        loss.backward()
        assert all(p.grad is None for p in algorithm.backbone.parameters())
    ordered = sorted(costs, key=costs.get)
    assert [name for name, *_ in ordered] == [
        *("Head2ToeLinear", "Head2Toe", "VQT", "VQT", "FineTuneCLIP")
    ]
    assert costs["VQT", 1] < costs["VQT", 10]
    assert costs[("Head2Toe",)] < costs[("FineTuneCLIP",)] / 50
    assert costs["VQT", 10] < costs[("FineTuneCLIP",)] / 2.5


@pytest.mark.parametrize(
    "name, hparams, count",
    [
        ("Head2ToeLinear", {}, 512 * 7 + 7),
        ("Head2Toe", {}, 470_589),
        ("Head2Toe", {"h2t_frac": 1.0}, 2 * 465_927),
        ("Head2Toe", {"h2t_target": 15360}, 7 * (782_336 + 7_823) + 14),
        ("VQT", {}, 79_111),
        ("VQT", {"vqt_T": 5}, 374_023),
        ("VQT", {"vqt_T": 10}, 742_663),
        ("VQT", {"vqt_T": 20}, 1_479_943),
    ],
)
def test_parameter_counts_of_vit_b16(name, hparams, count, monkeypatch):
    assert n_parameters_of_vit_b16(name, monkeypatch, **hparams) == count


@pytest.mark.parametrize(
    "name, hparams, says",
    [
        ("Head2Toe", {"h2t_frac": 1.5}, "h2t_frac' is 1.5; .* from 0 to 1"),
        ("Head2Toe", {"h2t_frac": 1e-6}, "which keeps 0 of 7552 features"),
    ],
)
def test_settings_that_cannot_be_are_refused(name, hparams, says):
    with pytest.raises(InputError, match=says):
        make(name, **hparams)


def test_vqt_refuses_stored_features():
    vqt = make("VQT")
    assert not vqt.TAKES_FEATURES
    with pytest.raises(InputError, match="VQT takes no stored features"):
        vqt.predict(torch.randn(2, 8, 128))


def test_the_search_space_of_the_papers_datasets():
    rows = hparams_registry.default_hparams("Head2Toe", "PACS")
    assert {name: rows[name] for name in rows if name.startswith("h2t")} == {
        "h2t_target": 0,
        "h2t_frac": 0.01,
        "h2t_lasso": 1e-4,
        "h2t_select_steps": 1000,
        "h2t_finetune": False,
        "h2t_tower_lr": 5e-5,
    }
    drawn = [hparams_registry.random_hparams("Head2Toe", "PACS", i) for i in range(40)]
    assert {row["h2t_target"] for row in drawn} == {0, 3072, 15360}
    assert {row["h2t_select_steps"] for row in drawn} == {500, 1000, 2000}
    shares = {0.001, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2}
    assert {row["h2t_frac"] for row in drawn} <= shares
