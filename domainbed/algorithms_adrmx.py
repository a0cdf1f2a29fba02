"""ADRMX: label features less domain features.

Letters: N items of all training domains, C classes, F features.
"""

import torch
import torch.nn.functional as F
from torch import nn

from domainbed import networks
from domainbed.algorithms import (
    SMALL_IMAGES,
    OwnNetwork,
    all_of,
    descend,
    domain_labels,
    plain_numbers,
    register,
)
from domainbed.algorithms_adversarial import discriminators_turn
from domainbed.lib.bounds import at_least, between


def contrastive_loss(
    z: torch.Tensor, y: torch.Tensor, temperature: float = 0.07
) -> torch.Tensor:
    """How far items of a class (N, F) are from each other, against all others; 0 of
    items that are each alone in their class.

    Pairs in a domain and across domains weigh a half each, so domains do not matter.
    """
    unit = F.normalize(z, dim=1)
    other = ~torch.eye(len(y), dtype=torch.bool, device=y.device)
    weights = 0.5 * (unit @ unit.T / temperature).exp() * other
    share = weights / (weights.sum(1, keepdim=True) + 1e-5)
    positive = (y[:, None] == y) & other
    n = positive.sum(1)
    losses = -(positive * (share + 1e-5).log()).sum(1)[n > 0] / n[n > 0]
    return losses.sum() / (len(losses) + 1)


@register
class ADRMX(OwnNetwork):
    """Label features less domain features: Demirel et al., 2023, "ADRMX: Additive
    Disentanglement of Domain Features with Remix Loss", https://arxiv.org/abs/2308.06624

    a and b are two featurizers' outputs, for the class and for the domain; of c = a - b
    a discriminator shall not tell the domain, and c with another item's b is the class
    still. `as_released` the remixed items are any of the batch; otherwise c and b come
    from two of a class, of two domains if there are.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        rates = [2e-5, 3e-5, 4e-5, 5e-5]
        lr = at_least(0, 3e-5, lambda r: r.choice(rates))
        if dataset in SMALL_IMAGES:
            small = [5e-4, 1e-3, 2e-3, 3e-3]
            lr = at_least(0, 3e-3, lambda r: r.choice(small))
        return super().hparam_rows(dataset) | {
            "lr": lr,
            "cnt_lambda": at_least(0, 1.0),
            "dclf_lambda": at_least(0, 1.0),
            "disc_lambda": at_least(0, 0.75),
            "rmxd_lambda": at_least(0, 1.0),
            "d_steps_per_g_step": at_least(0, 2),
            "beta1": between(0, 0.9999, 0.5),
            "mlp_width": at_least(1, 256),
            "mlp_depth": at_least(1, 9, lambda r: int(r.choice([8, 9, 10]))),
            "mlp_dropout": between(0, 1, 0.0),
            "as_released": (True, None),
        }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.num_classes = num_classes
        self.register_buffer("update_count", torch.tensor([0]))
        self.featurizer_label = networks.Featurizer(input_shape, hparams)
        self.featurizer_domain = networks.Featurizer(input_shape, hparams)
        n = self.featurizer_label.n_outputs
        self.discriminator = networks.MLP(n, num_domains, hparams)
        self.classifier_label_1 = networks.Classifier(n, num_classes, True)
        self.classifier_label_2 = networks.Classifier(n, num_classes, True)
        self.classifier_domain = networks.Classifier(n, num_domains, True)
        self.network = nn.Sequential(self.featurizer_label, self.classifier_label_1)
        rest = (
            self.featurizer_label,
            self.featurizer_domain,
            self.classifier_label_1,
            self.classifier_label_2,
            self.classifier_domain,
        )
        self.disc_opt = self.adversarial_adam(self.discriminator)
        self.opt = self.adversarial_adam(*rest)

    def adversarial_adam(self, *modules: nn.Module) -> torch.optim.Adam:
        parameters = [p for module in modules for p in module.parameters()]
        betas = (self.hparams["beta1"], 0.9)
        return torch.optim.Adam(parameters, self.hparams["lr"], betas)

    def remixed(
        self, c: torch.Tensor, b: torch.Tensor, y: torch.Tensor, d: torch.Tensor
    ) -> torch.Tensor:
        """The sum over classes, divided by C, of the loss of one c plus another's b."""
        pairs = []
        for label in range(self.num_classes):
            items = (y == label).nonzero()[:, 0]
            order = torch.randperm(len(items))
            if len(items) < 2:
                continue
            j, *others = (order if self.as_released else items[order]).tolist()
            same_domain = [not self.as_released and bool(d[k] == d[j]) for k in others]
            pairs.append((j, others[same_domain.index(min(same_domain))]))
        if not pairs:
            return c.new_zeros(())
        js, ks = map(list, zip(*pairs, strict=True))
        p = self.classifier_label_1(c[js] + b[ks])
        return F.cross_entropy(p, y[js], reduction="sum") / self.num_classes

    def update(self, minibatches, unlabeled=None):
        self.update_count += 1
        (x, y), d = all_of(minibatches), domain_labels(minibatches)
        d_steps = self.hparams["d_steps_per_g_step"]
        if discriminators_turn(self.update_count.item(), d_steps):
            with torch.no_grad():
                c = self.featurizer_label(x) - self.featurizer_domain(x)
            loss_disc = F.cross_entropy(self.discriminator(c), d)
            descend(loss_disc, self.disc_opt)
            return plain_numbers({"loss_disc": loss_disc})
        a, b = self.featurizer_label(x), self.featurizer_domain(x)
        c = a - b
        logged = {
            "loss_clf_int": F.cross_entropy(self.classifier_label_1(a), y),
            "loss_clf_fin": F.cross_entropy(self.classifier_label_2(c), y),
            "loss_dmn": F.cross_entropy(self.classifier_domain(b), d),
            "loss_remixed": self.remixed(c, b, y, d),
            "loss_cnt_int": contrastive_loss(a, y),
            "loss_cnt_final": contrastive_loss(c, y),
            "loss_disc": F.cross_entropy(self.discriminator(c), d),
        }
        rows = {
            "loss_dmn": "dclf_lambda",
            "loss_remixed": "rmxd_lambda",
            "loss_cnt_int": "cnt_lambda",
            "loss_cnt_final": "cnt_lambda",
            "loss_disc": "disc_lambda",
        }
        weights = {name: self.hparams[row] for name, row in rows.items()}
        weights["loss_disc"] *= -1
        total = sum(weights.get(name, 1.0) * loss for name, loss in logged.items())
        descend(total, self.opt)
        return plain_numbers(logged | {"loss_total": total})

    def predict(self, x):
        return self.network(x)
