"""Objectives with an adversary: a second network that learns to find what the first
one shall not have.

Letters: M training domains, N items of all of them, C classes, F features; phi the
featurizer, w the classifier, z = phi(x) (N, F).
"""

import warnings
from collections import OrderedDict

import torch
import torch.nn.functional as F
from torch import nn

from domainbed import networks
from domainbed.algorithms import (
    ERM,
    SMALL_IMAGES,
    Featurized,
    Minibatches,
    all_of,
    descend,
    domain_labels,
    plain_numbers,
    register,
)
from domainbed.lib.bounds import at_least, between
from domainbed.lib.errors import check_choice


def discriminators_turn(step: int, d_steps: int) -> bool:
    """Whether that step, from 1 on, is the discriminator's: d_steps of 1 + d_steps."""
    return step % (1 + d_steps) < d_steps


@register
class DANN(Featurized):
    """Features that tell no domain: Ganin et al., 2016, "Domain-Adversarial Training of
    Neural Networks", https://arxiv.org/abs/1505.07818

    A discriminator learns the domain from z; phi and w learn the class and against it.
    """

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset) | {
            "lambda": at_least(0, 1.0, lambda r: 10 ** r.uniform(-2, 2)),
            "weight_decay_d": at_least(0, 0.0, lambda r: 10 ** r.uniform(-6, -2)),
            "d_steps_per_g_step": at_least(0, 1, lambda r: int(2 ** r.uniform(0, 3))),
            "grad_penalty": at_least(0, 0.0, lambda r: 10 ** r.uniform(-2, 1)),
            "beta1": between(0, 0.9999, 0.5, lambda r: r.choice([0.0, 0.5])),
            "mlp_width": at_least(1, 256, lambda r: int(2 ** r.uniform(6, 10))),
            "mlp_depth": at_least(1, 3, lambda r: int(r.choice([3, 4, 5]))),
            "mlp_dropout": between(0, 1, 0.0, lambda r: r.choice([0.0, 0.1, 0.5])),
        }
        if dataset in SMALL_IMAGES:
            rate = at_least(0, 1e-3, lambda r: 10 ** r.uniform(-4.5, -2.5))
            decay = at_least(0, 0.0)
        else:
            rate = at_least(0, 5e-5, lambda r: 10 ** r.uniform(-5, -3.5))
            decay = at_least(0, 0.0, lambda r: 10 ** r.uniform(-6, -2))
        return rows | {"lr_g": rate, "lr_d": rate, "weight_decay_g": decay}

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))
        n_features = self.featurizer.n_outputs
        self.discriminator = networks.MLP(n_features, num_domains, hparams)
        self.class_embeddings = nn.Embedding(num_classes, n_features)
        self.disc_opt = self.adversarial_adam(
            "d", self.discriminator, self.class_embeddings
        )
        self.gen_opt = self.adversarial_adam("g", self.featurizer, self.classifier)

    def adversarial_adam(self, side: str, *modules: nn.Module) -> torch.optim.Adam:
        """Adam with the rows of the discriminator, `d`, or of the generator, `g`."""
        return torch.optim.Adam(
            [p for module in modules for p in module.parameters()],
            lr=self.hparams[f"lr_{side}"],
            weight_decay=self.hparams[f"weight_decay_{side}"],
            betas=(self.hparams["beta1"], 0.9),
        )

    def shown(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """What the discriminator sees (N, F)."""
        return z

    def weigh(self, losses: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The discriminator's loss, of the items' (N,)."""
        return losses.mean()

    def domain_loss(
        self, z: torch.Tensor, y: torch.Tensor, d: torch.Tensor
    ) -> torch.Tensor:
        """The discriminator's loss, with the penalty on its input's gradient."""
        penalty = self.hparams["grad_penalty"]
        seen = self.shown(z, y)
        if penalty:
            seen.requires_grad_()
        losses = F.cross_entropy(self.discriminator(seen), d, reduction="none")
        loss = self.weigh(losses, y)
        if penalty:
            (slope,) = torch.autograd.grad(losses.sum(), seen, create_graph=True)
            loss = loss + penalty * (slope**2).sum(1).mean()
        return loss

    def update(self, minibatches, unlabeled=None):
        self.update_count += 1
        (x, y), d = all_of(minibatches), domain_labels(minibatches)
        d_steps = self.hparams["d_steps_per_g_step"]
        if discriminators_turn(self.update_count.item(), d_steps):
            with torch.no_grad():
                z = self.featurizer(x)
            disc_loss = self.domain_loss(z, y, d)
            descend(disc_loss, self.disc_opt)
            return plain_numbers({"disc_loss": disc_loss})
        z = self.featurizer(x)
        domain_loss = self.domain_loss(z, y, d)
        loss = F.cross_entropy(self.classifier(z), y)
        gen_loss = loss - self.hparams["lambda"] * domain_loss
        descend(gen_loss, self.gen_opt)
        return plain_numbers({"gen_loss": gen_loss})


@register
class CDANN(DANN):
    """Features that tell no domain of a class: Li et al., 2018, "Deep Domain
    Generalization via Conditional Invariant Adversarial Networks",
    https://openaccess.thecvf.com/content_ECCV_2018/papers/Ya_Li_Deep_Domain_Generalization_ECCV_2018_paper.pdf

    The discriminator is told the class, and all classes weigh the same.
    """

    def shown(self, z, y):
        return z + self.class_embeddings(y)

    def weigh(self, losses, y):
        # As many classes as upstream counts: those up to the batch's last.
        counts = y.bincount()
        return (losses / (counts[y] * len(counts)).float()).sum()


def risk_gap(
    classifier: nn.Module, features: list[torch.Tensor], minibatches: Minibatches
) -> torch.Tensor:
    """The highest of the domains' risks less the lowest."""
    R = [
        F.cross_entropy(classifier(z), y)
        for z, (_, y) in zip(features, minibatches, strict=True)
    ]
    values = torch.stack(R).detach()
    return R[values.argmax()] - R[values.argmin()]


@register
class Transfer(Featurized):
    """Risks that stay alike under any classifier near w: Zhang et al., 2021,
    "Quantifying and Improving Transferability in Domain Generalization", algorithm 1,
    https://arxiv.org/abs/2106.03632

    The adversary is the classifier within `delta` of w whose risks differ most. With
    `gda`, as every draw has it, SGD stands for Adam; `as_released` it then steps the
    adversary and not the network, which does not train.
    """

    HPARAMS = {
        "t_lambda": at_least(0, 1.0, lambda r: 10 ** r.uniform(-2, 1)),
        "delta": at_least(0, 2.0, lambda r: r.uniform(0.1, 3.0)),
        "d_steps_per_g": at_least(1, 10, lambda r: int(r.choice([1, 2, 5]))),
        "weight_decay_d": at_least(0, 0.0, lambda r: 10 ** r.uniform(-6, -2)),
        "gda": (False, lambda r: True),
        "beta1": between(0, 0.9999, 0.5, lambda r: r.choice([0.0, 0.5])),
        "lr_d": at_least(0, 1e-3, lambda r: 10 ** r.uniform(-4.5, -2.5)),
        "as_released": (True, None),
    }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        self.register_buffer("update_count", torch.tensor([0]))  # upstream's: unused
        n_features = self.featurizer.n_outputs
        self.adv_classifier = self.make_classifier(n_features, num_classes)
        self.adv_classifier.load_state_dict(self.classifier.state_dict())
        self.optimizer = self.make_optimizer(hparams["lr"])
        parameters = self.adv_classifier.parameters()
        self.adv_opt = torch.optim.SGD(parameters, hparams["lr_d"])

    def make_optimizer(self, lr):
        if not self.hparams["gda"]:
            return super().make_optimizer(lr)
        trained = [self.featurizer, self.classifier]
        if self.as_released:
            trained = [self.adv_classifier]
            warnings.warn(
                "nothing trains: as released, gda steps only the adversary; set "
                "hyperparameter gda or as_released of Transfer to false.",
                stacklevel=2,
            )
        return torch.optim.SGD([p for m in trained for p in m.parameters()], lr)

    def project(self) -> None:
        """Bring the adversary to within `delta` of w."""
        adversary, w = self.adv_classifier.parameters(), self.classifier.parameters()
        pairs = list(zip(adversary, w, strict=True))
        with torch.no_grad():
            distance = sum(((a - b) ** 2).sum() for a, b in pairs).sqrt()
            if distance > self.hparams["delta"]:
                for a, b in pairs:
                    a.copy_(b + self.hparams["delta"] / distance * (a - b))

    def update(self, minibatches, unlabeled=None):
        weight = self.hparams["t_lambda"]
        x, y = all_of(minibatches)
        loss = F.cross_entropy(self.predict(x), y)
        descend(loss, self.optimizer)
        features = [self.featurizer(x) for x, _ in minibatches]
        gap = weight * risk_gap(self.adv_classifier, features, minibatches)
        descend(gap, self.optimizer)
        self.adv_classifier.load_state_dict(self.classifier.state_dict())
        for _ in range(self.hparams["d_steps_per_g"]):
            with torch.no_grad():  # again each time: dropout, statistics
                features = [self.featurizer(x) for x, _ in minibatches]
            gap = weight * risk_gap(self.adv_classifier, features, minibatches)
            descend(-gap, self.adv_opt)
            self.project()
        return plain_numbers({"loss": loss, "gap": gap})


@register
class URM(ERM):
    """Features spread evenly: Krishnamachari et al., 2024, "Uniformly Distributed
    Feature Representations for Fair and Robust Learning",
    https://openreview.net/forum?id=PgLbS5yp8n

    An activation bounds the features; a discriminator learns to tell them from uniform
    noise, and they shall pass for it.
    """

    ACTIVATIONS = {  # and the range of the noise
        "tanh": (nn.Tanh, -1, 1),
        "relu": (nn.ReLU, 0, 1),
        "sigmoid": (nn.Sigmoid, 0, 1),
    }

    @classmethod
    def hparam_rows(cls, dataset):
        rate = at_least(0, 5e-5, lambda r: 10 ** r.uniform(-6, -4.5))
        if dataset in SMALL_IMAGES:
            rate = at_least(0, 1e-3, lambda r: 10 ** r.uniform(-5.5, -3.5))
        return super().hparam_rows(dataset) | {
            "urm": ("adversarial", None),
            "urm_adv_lambda": at_least(0, 0.1, lambda r: r.uniform(0, 0.2)),
            "urm_discriminator_label_smoothing": between(0, 1, 0.0),
            "urm_discriminator_optimizer": ("adam", None),
            "urm_discriminator_hidden_layers": at_least(
                0, 1, lambda r: int(r.choice([1, 2, 3]))
            ),
            "urm_generator_output": ("tanh", lambda r: str(r.choice(["tanh", "relu"]))),
            "urm_discriminator_lr": rate,
        }

    def __init__(self, input_shape, num_classes, num_domains, hparams):
        super().__init__(input_shape, num_classes, num_domains, hparams)
        output = check_choice(hparams, "urm_generator_output", self.ACTIVATIONS)
        activation, *self.noise_range = self.ACTIVATIONS[output]
        self.activation = activation()
        layers, n_inputs = OrderedDict(), self.featurizer.n_outputs
        for i in range(1, 2 + hparams["urm_discriminator_hidden_layers"]):
            layers |= {f"dense{i}": nn.Linear(n_inputs, 100), f"act{i}": nn.LeakyReLU()}
            n_inputs = 100
        layers["output"] = nn.Linear(100, 1)
        self.discriminator = nn.Sequential(layers)
        self.discriminator_opt = self.make_discriminator_optimizer()

    def make_discriminator_optimizer(self) -> torch.optim.Optimizer:
        optimizers = {
            "adam": torch.optim.Adam,
            "sgd": lambda *args, **kw: torch.optim.SGD(*args, momentum=0.9, **kw),
        }
        asked = check_choice(self.hparams, "urm_discriminator_optimizer", optimizers)
        return optimizers[asked](
            self.discriminator.parameters(),
            lr=self.hparams["urm_discriminator_lr"],
            weight_decay=self.hparams["weight_decay"],
        )

    def features(self, x: torch.Tensor) -> torch.Tensor:
        return self.activation(self.featurizer(x))

    def told(self, z: torch.Tensor, low: float, high: float) -> torch.Tensor:
        """The discriminator's loss where it should say a random number of a range."""
        target = z.new_full(z.shape[:1], low)
        if low < high:
            target = low + (high - low) * torch.rand(len(z), device=z.device)
        p = self.discriminator(z)[:, 0]
        return F.binary_cross_entropy_with_logits(p, target)

    def update(self, minibatches, unlabeled=None):
        x, y = all_of(minibatches)
        weight = self.hparams["urm_adv_lambda"]
        z = self.features(x)
        loss = F.cross_entropy(self.classifier(z), y)
        loss = loss + weight * self.told(z, 1.0, 1.0)
        descend(loss, self.optimizer)

        z, (low, high) = z.detach(), self.noise_range
        noise = low + (high - low) * torch.rand_like(z)
        smoothing = self.hparams["urm_discriminator_label_smoothing"]
        of_noise = self.told(noise, 1 - smoothing, 1.0)
        of_features = self.told(z, 0.0, smoothing)
        descend(of_noise + weight * of_features, self.discriminator_opt)
        return plain_numbers({"loss": loss})

    def predict(self, x):
        return self.classifier(self.features(x))
