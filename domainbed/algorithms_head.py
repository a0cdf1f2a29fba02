"""Probes on a frozen CLIP's embeddings that train in seconds.

TaskRes: Yu et al., 2023, https://arxiv.org/abs/2211.10277
CLAP: Silva-Rodriguez et al., 2024, https://arxiv.org/abs/2312.12730
LP++: Huang et al., 2024, https://arxiv.org/abs/2404.02285
GDA: Wang et al., 2024, https://arxiv.org/abs/2402.04087
ProLIP: Fahes et al., 2026, https://arxiv.org/abs/2410.05270

Letters: B images, C classes, P templates, D image width, E joint embedding. f (B, E) is
an image's unit embedding, tau (C, E) a class's text embedding, t the same as a unit.
"""

from collections.abc import Iterable

import torch
from torch import nn

from domainbed.algorithms import register
from domainbed.algorithms_lfa import CLIPAlgorithm, prompts_of_all, unit
from domainbed.lib.bounds import at_least, between
from domainbed.lib.schedules import set_learning_rate

Batches = Iterable[tuple[torch.Tensor, torch.Tensor]]


class Probe(CLIPAlgorithm):
    """A head on unit embeddings, which may have a weight for each class.

    One that starts from examples, the support set, is shown it before its first step
    and keeps what it needs; nobody showing it any, its first batch is it.
    """

    FIXED_CLASSES = True
    NEEDS_SUPPORT = False

    @classmethod
    def hparam_rows(cls, dataset):
        support = {"support_shots": at_least(1, 16)} if cls.NEEDS_SUPPORT else {}
        return super().hparam_rows(dataset) | support

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        support = {"support_shots": at_least(1, shots)} if cls.NEEDS_SUPPORT else {}
        return super().few_shot_rows(dataset, shots) | support

    def write_prompts(self, class_names, template):
        return prompts_of_all(template, class_names)

    @torch.no_grad()
    def encode_prompts(self):
        """Make text embeddings: tau (P, C, E), not of unit length, and t (C, E), the
        unit mean of unit ones over templates.
        """
        super().encode_prompts()
        text = self.text_features[:, -1] @ self.backbone.text_projection
        tau = text.unflatten(0, (-1, self.num_classes))
        self.register_buffer("tau", tau, persistent=False)
        self.register_buffer("t", unit(unit(tau).mean(0)), persistent=False)

    def build(self):
        self.register_buffer("supported", torch.tensor(not self.NEEDS_SUPPORT))

    def embed(self, x: torch.Tensor) -> torch.Tensor:
        """f (B, E) of images or their layer features."""
        return self.unit_embedding(self.features(x))

    def unit_embedding(self, z: torch.Tensor) -> torch.Tensor:
        return unit(z[:, -1] @ self.backbone.image_projection)

    def zero_shot(self, f: torch.Tensor) -> torch.Tensor:
        return self.backbone.scale * f @ self.t.T

    def support(self, domains: list[Batches]) -> None:
        """Look at the support set, batches of (x, y) for each training domain."""
        with torch.no_grad():
            pairs = [(self.embed(x), y) for domain in domains for x, y in domain]
            f, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            self.start(f, y)
        self.supported.fill_(True)

    def start(self, f: torch.Tensor, y: torch.Tensor) -> None:
        """Set what the support set decides, of its f (N, E) and labels (N,)."""

    def class_means(self, f: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        """The mean of each class's rows, 0 of none: (C, ...)."""
        total = f.new_zeros(self.num_classes, *f.shape[1:]).index_add(0, y, f)
        n = torch.bincount(y, minlength=self.num_classes).clamp(min=1)
        return total / n.view(-1, *[1] * (f.ndim - 1))

    def update(self, minibatches, unlabeled=None):
        if not self.supported:
            self.support([[pair] for pair in minibatches])
        return super().update(minibatches, unlabeled)


class ChosenOnValidation(Probe):
    """A probe with numbers that accuracy on held-out examples chooses.

    `as_published` True chooses on the test examples, as the released code does.
    """

    CHOOSES = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {"as_published": (False, None)}

    @torch.no_grad()
    def choose(self, batches: Batches) -> None:
        """Take the first of the best; without an example all stays as it is."""
        pairs = [(self.embed(x), y) for x, y in batches]
        if pairs:
            self.search(*(torch.cat(parts) for parts in zip(*pairs, strict=True)))

    def search(self, f: torch.Tensor, y: torch.Tensor) -> None:
        """Set the numbers by f (N, E) and labels (N,)."""
        raise NotImplementedError


@register
class TaskRes(Probe):
    """Residuals on the text embeddings: w_c = tau_c + a x_c, x starting at 0."""

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["momentum"]
        return rows | {
            "taskres_scale": at_least(0, 0.5, lambda r: r.choice([0.1, 0.3, 0.5, 1.0])),
            "lr": at_least(0, 2e-3, lambda r: 10 ** r.uniform(-4, -2)),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        rows = super().few_shot_rows(dataset, shots)
        del rows["momentum"]
        return rows | {
            "taskres_scale": at_least(0, 1.0 if dataset == "OxfordFlowers" else 0.5),
            "lr": at_least(0, 2e-4 if dataset == "ImageNet" else 2e-3),
            "batch_size": at_least(1, 256),
            "epochs": at_least(1, 100 if shots <= 4 else 200),
        }

    def build(self):
        super().build()
        self.residual = nn.Parameter(torch.zeros_like(self.t))

    def make_optimizer(self, parameters):
        decay = self.hparams["weight_decay"]
        return torch.optim.Adam(parameters, self.hparams["lr"], weight_decay=decay)

    def logits(self, z):
        w = self.tau.mean(0) + self.hparams["taskres_scale"] * self.residual
        return self.backbone.scale * self.unit_embedding(z) @ unit(w).T


@register
class CLAP(Probe):
    """Prototypes that start at the text embeddings and are held there.

    The price is mean_c a_c |w_c - tau_c|^2; a_c, fixed, is zero-shot CLIP's mean
    probability of the class on its support. `clap_weight` 0 is ZS-LP.
    """

    NEEDS_SUPPORT = True

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "clap_weight": at_least(0, 1.0, lambda r: r.choice([0.0, 0.1, 1.0, 10.0])),
            "lr": at_least(0, 0.1, lambda r: 10 ** r.uniform(-2, 0)),
            "momentum": between(0, 1, 0.9),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        return super().few_shot_rows(dataset, shots) | {
            "lr": at_least(0, 0.1),
            "momentum": between(0, 1, 0.9),
            "weight_decay": at_least(0, 0.0),
            "batch_size": at_least(1, 256),
            "epochs": at_least(1, 300),
        }

    def build(self):
        super().build()
        self.prototypes = nn.Parameter(self.tau.mean(0).clone())
        self.register_buffer("held", torch.zeros(self.num_classes))

    def start(self, f, y):
        of_zero_shot = self.backbone.scale * f @ unit(self.tau.mean(0)).T
        true = of_zero_shot.softmax(1).gather(1, y[:, None])[:, 0]
        self.held.copy_(self.class_means(true, y))

    def logits(self, z):
        return self.backbone.scale * self.unit_embedding(z) @ unit(self.prototypes).T

    def loss(self, minibatches):
        distance = (self.prototypes - self.tau.mean(0)).square().sum(1)
        price = (self.held * distance).mean()
        return super().loss(minibatches) + self.hparams["clap_weight"] * price


@register
class LPPlusPlus(Probe):
    """LP++: f W^T + b + alpha_c (f . t_c), with step sizes from the support set.

    W_c starts at K times the class's mean. W and b step by 4 N / the largest eigenvalue
    of F^T F, alpha every tenth step by N / (4 max_c sum_i (f_i . t_c)^2). The released
    code never clears alpha's gradient: its step is along the sum of all, which
    `as_published` True keeps. It answers as after the step that was best on held-out
    examples, of equals the last; of no such example, as after the last step.
    """

    NEEDS_SUPPORT = WATCHES = True

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["lr"], rows["weight_decay"]
        return rows | {"momentum": between(0, 1, 0.9), "as_published": (False, None)}

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        rows = super().few_shot_rows(dataset, shots)
        del rows["lr"], rows["weight_decay"]
        return rows | {
            "momentum": between(0, 1, 0.9),
            "batch_size": at_least(1, None),
            "epochs": at_least(1, 300),
            "schedule": ("constant", None),
        }

    def build(self):
        super().build()
        self.head = nn.Linear(self.t.shape[1], self.num_classes)
        self.alpha = nn.Parameter(torch.ones(self.num_classes))
        self.register_buffer("alpha_gradient", torch.zeros(self.num_classes))
        self.register_buffer("rates", torch.zeros(2))  # of W and b, of alpha
        width = self.t.shape[1]
        self.register_buffer("watched", torch.zeros(0, width), persistent=False)
        self.register_buffer("labels", torch.zeros(0, dtype=int), persistent=False)
        # Of the best step: how many watched examples were right, W, b and alpha.
        self.register_buffer("most", torch.tensor(-1))
        self.register_buffer("best", torch.zeros(self.num_classes, width + 2))

    def make_optimizer(self, parameters):
        momentum = self.hparams["momentum"]
        return torch.optim.SGD(self.head.parameters(), lr=0.0, momentum=momentum)

    def start(self, f, y):
        n, cosines = len(f), f @ self.t.T  # (N, C)
        self.head.weight.copy_(self.hparams["support_shots"] * self.class_means(f, y))
        of_true = self.class_means(cosines.gather(1, y[:, None])[:, 0], y)
        self.alpha.fill_(250 * of_true[y.unique()].mean())
        largest = torch.linalg.eigvalsh((f.T @ f).double())[-1]
        self.rates[0] = 4 * n / largest
        self.rates[1] = n / (4 * cosines.square().sum(0).max())

    @torch.no_grad()
    def watch(self, batches):
        pairs = [(self.embed(x), y) for x, y in batches]
        if pairs:
            f, y = (torch.cat(parts) for parts in zip(*pairs, strict=True))
            self.watched, self.labels = f, y

    def logits(self, z):
        f = self.unit_embedding(z)
        if self.training or self.most < 0:
            return self.own_logits(f)
        w, b, alpha = self.best.split([f.shape[1], 1, 1], 1)
        return f @ w.T + b.T + alpha.T * (f @ self.t.T)

    def own_logits(self, f: torch.Tensor) -> torch.Tensor:
        """Scores (B, C) as after the last step."""
        return self.head(f) + self.alpha * (f @ self.t.T)

    @torch.no_grad()
    def keep_best(self) -> None:
        """Note the weights if no step before was better on what is watched."""
        right = (self.own_logits(self.watched).argmax(1) == self.labels).sum()
        if len(self.labels) and right >= self.most:
            own = self.head.weight, self.head.bias[:, None], self.alpha[:, None]
            self.most.copy_(right)
            self.best.copy_(torch.cat(own, 1))

    def take_step(self, *tensors):
        set_learning_rate(self.optimizer, self.rates[0].item())
        self.alpha.grad = None
        loss = super().take_step(*tensors)
        if not self.hparams["as_published"]:
            self.alpha_gradient.zero_()
        self.alpha_gradient += self.alpha.grad
        if self.step % 10 == 9:
            self.alpha.data -= self.rates[1] * self.alpha_gradient
        self.keep_best()
        return loss


@register
class GDA(ChosenOnValidation):
    """Gaussian discriminant analysis beside zero-shot CLIP; nothing is trained.

    g_c(f) = f A mu_c - mu_c A mu_c / 2 - log C, with the classes' means mu of unit
    embeddings and A = E ((n - 1) S + gda_shrink tr(S) I)^-1 of the centred ones'
    covariance S. Logits are zero-shot's + alpha g.
    """

    NEEDS_SUPPORT = True
    MAX_STEPS = 1
    GRID = tuple(10.0**power for power in range(-4, 3))

    @classmethod
    def hparam_rows(cls, dataset):
        return super().hparam_rows(dataset) | {
            "gda_alpha": at_least(
                0, 0.1, lambda r: 10 ** r.uniform(-4, 2)
            ),  # if none is chosen
            "gda_shrink": at_least(0, 1.0, lambda r: 10 ** r.uniform(-1, 1)),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        own = {"epochs": at_least(1, 1), "batch_size": at_least(1, None)}
        own |= {"schedule": ("constant", None)}
        return super().few_shot_rows(dataset, shots) | own

    def build(self):
        super().build()
        self.register_buffer("weight", torch.zeros_like(self.t))  # (C, E)
        self.register_buffer("bias", torch.zeros(self.num_classes))
        self.register_buffer("alpha", torch.tensor(self.hparams["gda_alpha"]))

    def start(self, f, y):
        means = self.class_means(f, y).double()
        centred = f.double() - means[y]
        n, width = f.shape
        covariance = centred.T.cov()
        spread = self.hparams["gda_shrink"] * covariance.trace()
        eye = torch.eye(width, dtype=f.double().dtype, device=f.device)
        scatter = (n - 1) * covariance + spread * eye
        precision = width * torch.linalg.pinv(scatter, hermitian=True)
        weight = means @ precision
        self.weight.copy_(weight)
        prior = torch.tensor(self.num_classes).log()
        self.bias.copy_(-(weight * means).sum(1) / 2 - prior)

    def discriminants(self, f: torch.Tensor) -> torch.Tensor:
        """g (B, C)."""
        return f @ self.weight.T + self.bias

    def logits(self, z):
        f = self.unit_embedding(z)
        return self.zero_shot(f) + self.alpha * self.discriminants(f)

    def search(self, f, y):
        plain, g = self.zero_shot(f), self.discriminants(f)
        right = [((plain + a * g).argmax(1) == y).sum().item() for a in self.GRID]
        self.alpha.fill_(self.GRID[right.index(max(right))])


@register
class ProLIP(Probe):
    """CLIP's image projection trained, held to where it started.

    The price is prolip_lambda |P - P_0|^2, a sum; for K shots 1 / K of it.
    """

    FIXED_CLASSES = False

    @classmethod
    def hparam_rows(cls, dataset):
        rows = super().hparam_rows(dataset)
        del rows["momentum"], rows["weight_decay"]
        return rows | {
            "prolip_lambda": at_least(0, 0.1, lambda r: 10 ** r.uniform(-3, 1)),
            "lr": at_least(0, 1e-5, lambda r: 10 ** r.uniform(-6, -3)),
        }

    @classmethod
    def few_shot_rows(cls, dataset, shots):
        rows = super().few_shot_rows(dataset, shots)
        del rows["momentum"], rows["weight_decay"]
        return rows | {
            "prolip_lambda": at_least(0, 1 / shots),
            "lr": at_least(0, 1e-5),
            "batch_size": at_least(1, None),
            "epochs": at_least(1, 300),
            "schedule": ("cosine", None),
        }

    def build(self):
        super().build()
        self.image_projection = nn.Parameter(self.backbone.image_projection.clone())

    def make_optimizer(self, parameters):
        return torch.optim.Adam(parameters, self.hparams["lr"])

    def logits(self, z):
        image = unit(z[:, -1] @ self.image_projection)
        return self.backbone.scale * image @ self.t.T

    def loss(self, minibatches):
        moved = self.image_projection - self.backbone.image_projection
        price = self.hparams["prolip_lambda"] * moved.square().sum()
        return super().loss(minibatches) + price
