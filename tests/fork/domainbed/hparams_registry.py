"""Each hyperparameter's default and random value."""

import numpy as np

from domainbed.lib import misc


def _hparams(algorithm, dataset, random_seed):
    hparams = {}

    def _hparam(name, default_val, random_val_fn):
        assert name not in hparams
        state = np.random.RandomState(misc.seed_hash(random_seed, name))
        hparams[name] = (default_val, random_val_fn(state))

    small = dataset in ["Debug28", "RotatedMNIST", "ColoredMNIST"]
    _hparam("data_augmentation", True, lambda r: True)
    _hparam("class_balanced", False, lambda r: False)
    _hparam("resnet_dropout", 0.0, lambda r: r.choice([0.0, 0.1, 0.5]))
    _hparam("mlp_width", 32, lambda r: 32)
    _hparam("mlp_depth", 3, lambda r: 3)
    _hparam("mlp_dropout", 0.0, lambda r: 0.0)
    _hparam("lr", 1e-3 if small else 5e-5, lambda r: 10 ** r.uniform(-5, -3.5))
    _hparam("weight_decay", 0.0, lambda r: 10 ** r.uniform(-6, -2))
    _hparam("batch_size", 64 if small else 32, lambda r: int(2 ** r.uniform(3, 5.5)))
    return hparams


def default_hparams(algorithm, dataset):
    return {a: b for a, (b, c) in _hparams(algorithm, dataset, 0).items()}


def random_hparams(algorithm, dataset, seed):
    return {a: c for a, (b, c) in _hparams(algorithm, dataset, seed).items()}
