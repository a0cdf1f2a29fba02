"""Random images in three environments; as upstream, without class names."""

import torch
from torch.utils.data import TensorDataset

DATASETS = ["Debug28", "Debug224"]


class MultipleDomainDataset:
    N_STEPS = 5001
    CHECKPOINT_FREQ = 100
    N_WORKERS = 0
    ENVIRONMENTS = None
    INPUT_SHAPE = None

    def __getitem__(self, index):
        return self.datasets[index]

    def __len__(self):
        return len(self.datasets)


class Debug(MultipleDomainDataset):
    ENVIRONMENTS = ("0", "1", "2")

    def __init__(self, root, test_envs, hparams):
        self.input_shape = self.INPUT_SHAPE
        self.num_classes = 2
        self.datasets = [
            TensorDataset(torch.randn(16, *self.INPUT_SHAPE), torch.randint(2, (16,)))
            for _ in self.ENVIRONMENTS
        ]


class Debug28(Debug):
    INPUT_SHAPE = (3, 28, 28)


class Debug224(Debug):
    INPUT_SHAPE = (3, 224, 224)
