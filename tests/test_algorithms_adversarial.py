"""What has an adversary, beside plain statements of its papers and upstream's code."""

import pytest
import torch
import torch.nn.functional as F
from helpers import float64
from plainly import assert_steps, step
from test_zoo import batches, build, take

from domainbed.lib.errors import InputError


def joined(minibatches):
    x, y = zip(*minibatches, strict=True)
    return torch.cat(x), torch.cat(y)


def domains(minibatches):
    return torch.tensor([d for d, (_, y) in enumerate(minibatches) for _ in y])


def dann(conditional, d_steps, penalty):
    def plain(copy, minibatches):
        copy.update_count += 1
        (x, y), d = joined(minibatches), domains(minibatches)
        z = copy.featurizer(x)
        seen = z + copy.class_embeddings(y) if conditional else z
        losses = F.cross_entropy(copy.discriminator(seen), d, reduction="none")
        w = torch.full((len(y),), 1 / len(y))
        if conditional:
            n = [(y == label).sum().item() for label in y]
            w = 1 / (torch.tensor(n).float() * (y.max() + 1)).double()
        (slope,) = torch.autograd.grad(losses.sum(), seen, create_graph=True)
        disc_loss = (w * losses).sum() + penalty * (slope**2).sum(1).mean()
        if int(copy.update_count) % (1 + d_steps) < d_steps:
            return {"disc_loss": step(disc_loss, copy.disc_opt)}
        loss = F.cross_entropy(copy.classifier(z), y) - 0.7 * disc_loss
        return {"gen_loss": step(loss, copy.gen_opt)}

    return plain


@pytest.mark.parametrize("penalty", [0.0, 0.5])
@pytest.mark.parametrize("d_steps", [1, 2])
@pytest.mark.parametrize("name", ["DANN", "CDANN"])
def test_dann_takes_turns(name, d_steps, penalty):
    plain = dann(name == "CDANN", d_steps, penalty)
    changed = {"d_steps_per_g_step": d_steps, "grad_penalty": penalty, "lambda": 0.7}
    assert_steps(name, plain, **changed)


@pytest.mark.parametrize(
    "d_steps, turns", [(1, "gdgdgd"), (2, "dgddgd"), (3, "ddgddd")]
)
def test_whose_turn_it_is(d_steps, turns):
    algorithm = build("DANN", d_steps_per_g_step=d_steps)
    logged = take(algorithm, batches([4, 4, 4], n=6))
    assert "".join(next(iter(values))[0] for values in logged) == turns


def gap_of(copy, minibatches):
    R = [
        F.cross_entropy(copy.adv_classifier(copy.featurizer(x)), y)
        for x, y in minibatches
    ]
    return 0.5 * (max(R) - min(R))


def transfer(copy, minibatches):
    x, y = joined(minibatches)
    loss = step(F.cross_entropy(copy.predict(x), y), copy.optimizer)
    step(gap_of(copy, minibatches), copy.optimizer)
    copy.adv_classifier.load_state_dict(copy.classifier.state_dict())
    for _ in range(3):
        gap = -step(-gap_of(copy, minibatches), copy.adv_opt)
        pairs = list(
            zip(
                copy.adv_classifier.parameters(),
                copy.classifier.parameters(),
                strict=True,
            )
        )
        distance = torch.cat([(a - b).detach().flatten() for a, b in pairs]).norm()
        for a, b in pairs:
            if distance > 0.1:
                a.data = (b + 0.1 / distance * (a - b)).detach()
    return {"loss": loss, "gap": gap}


@pytest.mark.parametrize("gda", [False, True])
def test_transfer_climbs_within_a_ball(gda):
    changed = {"t_lambda": 0.5, "delta": 0.1, "d_steps_per_g": 3, "lr_d": 1.0}
    trained = assert_steps("Transfer", transfer, gda=gda, as_released=False, **changed)
    heads = trained.adv_classifier, trained.classifier
    a, w = (torch.nn.utils.parameters_to_vector(head.parameters()) for head in heads)
    assert (a - w).norm().item() == pytest.approx(0.1)


def test_transfer_with_gda_as_released_trains_nothing_and_says_so():
    with pytest.warns(UserWarning, match="nothing trains"):
        algorithm = build("Transfer", gda=True)
    before = (
        algorithm.featurizer.input.weight.clone(),
        algorithm.classifier.weight.clone(),
    )
    take(algorithm, batches([4, 4, 4], n=2))
    after = algorithm.featurizer.input.weight, algorithm.classifier.weight
    assert all(map(torch.equal, before, after))


def contrastive(z, y):
    z = F.normalize(z, dim=1)
    losses = []
    for i in range(len(y)):
        others = [j for j in range(len(y)) if j != i]
        a = {j: 0.5 * (z[i] @ z[j] / 0.07).exp() for j in others}
        shares = [a[j] / (sum(a.values()) + 1e-5) for j in others if y[j] == y[i]]
        if shares:
            losses.append(-torch.stack([(s + 1e-5).log() for s in shares]).mean())
    return sum(losses) / (len(losses) + 1)


def adrmx(as_released):
    def plain(copy, minibatches):
        copy.update_count += 1
        (x, y), d = joined(minibatches), domains(minibatches)
        a, b = copy.featurizer_label(x), copy.featurizer_domain(x)
        c = a - b
        disc = F.cross_entropy(copy.discriminator(c), d)
        if int(copy.update_count) % 3 < 2:
            return {"loss_disc": step(disc, copy.disc_opt)}
        remixed = 0
        for label in range(3):
            items = [i for i in range(len(y)) if y[i] == label]
            perm = torch.randperm(len(items)).tolist()
            j, k = perm[:2]
            if not as_released:
                j, *others = [items[i] for i in perm]
                k = next(o for o in others if d[o] != d[j])
            p = copy.classifier_label_1(c[j] + b[k]).log_softmax(0)
            remixed = remixed - p[y[j]] / 3
        clf_int = F.cross_entropy(copy.classifier_label_1(a), y)
        clf_fin = F.cross_entropy(copy.classifier_label_2(c), y)
        dmn = F.cross_entropy(copy.classifier_domain(b), d)
        cnt = contrastive(a, y), contrastive(c, y)
        logged = {
            "loss_clf_int": clf_int.item(),
            "loss_clf_fin": clf_fin.item(),
            "loss_dmn": dmn.item(),
            "loss_disc": disc.item(),
            "loss_remixed": remixed.item(),
            "loss_cnt_int": cnt[0].item(),
            "loss_cnt_final": cnt[1].item(),
        }
        total = clf_int + clf_fin + 2 * dmn + 3 * remixed + 4 * sum(cnt) - 0.5 * disc
        return logged | {"loss_total": step(total, copy.opt)}

    return plain


@pytest.mark.parametrize("as_released", [True, False])
def test_adrmx_remixes_and_contrasts(as_released):
    weights = {"dclf_lambda": 2.0, "rmxd_lambda": 3.0, "cnt_lambda": 4.0}
    changed = weights | {"disc_lambda": 0.5, "as_released": as_released}
    assert_steps("ADRMX", adrmx(as_released), n=5, **changed)


def test_adrmx_without_two_of_a_class():
    """Where upstream crashes there is nothing to contrast or to remix."""
    algorithm = build("ADRMX", n_domains=1)
    for minibatches in batches([3], n=2):
        logged = algorithm.update(minibatches)
    assert (logged["loss_cnt_int"], logged["loss_remixed"]) == (0, 0)


def urm(copy, minibatches):
    x, y = joined(minibatches)
    n = len(y)
    z = copy.featurizer(x).tanh()
    log = F.logsigmoid
    fooled = -log(copy.discriminator(z)).mean()
    loss = step(F.cross_entropy(copy.classifier(z), y) + 0.3 * fooled, copy.optimizer)
    z = z.detach()
    u = 2 * torch.rand(z.shape) - 1
    real, fake = 0.8 + 0.2 * torch.rand(n), 0.2 * torch.rand(n)
    p, q = copy.discriminator(u)[:, 0], copy.discriminator(z)[:, 0]
    of_u = -(real * log(p) + (1 - real) * log(-p)).mean()
    of_z = -(fake * log(q) + (1 - fake) * log(-q)).mean()
    step(of_u + 0.3 * of_z, copy.discriminator_opt)
    return {"loss": loss}


@pytest.mark.parametrize("optimizer", ["adam", "sgd"])
def test_urm_tells_features_from_noise(optimizer):
    changed = {
        "urm_adv_lambda": 0.3,
        "urm_discriminator_label_smoothing": 0.2,
        "urm_discriminator_optimizer": optimizer,
        "urm_discriminator_hidden_layers": 2,
    }
    assert_steps("URM", urm, **changed)


def test_urm_without_its_adversary_is_erm_on_an_activation():
    with float64():
        algorithm = build("URM", urm_adv_lambda=0.0, urm_generator_output="relu")
        for minibatches in batches([4, 4, 4], n=2):
            x, y = joined(minibatches)
            p = algorithm.classifier(algorithm.featurizer(x).relu())
            expected = F.cross_entropy(p, y).item()
            assert algorithm.update(minibatches)["loss"] == pytest.approx(expected)


@pytest.mark.parametrize(
    "row, value",
    [("urm_generator_output", "identity"), ("urm_discriminator_optimizer", "lamb")],
)
def test_urm_names_what_it_has(row, value):
    with pytest.raises(InputError, match=f"{row}: '{value}'; known: "):
        build("URM", **{row: value})
