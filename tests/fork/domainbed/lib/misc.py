import hashlib
import sys

import numpy as np
import torch


def seed_hash(*args):
    return int(hashlib.md5(str(args).encode("utf-8")).hexdigest(), 16) % (2**31)


def split_dataset(dataset, n, seed=0):
    keys = list(range(len(dataset)))
    np.random.RandomState(seed).shuffle(keys)
    parts = keys[:n], keys[n:]
    return tuple(torch.utils.data.Subset(dataset, part) for part in parts)


def accuracy(network, loader, weights, device):
    correct = total = 0
    network.eval()
    with torch.no_grad():
        for x, y in loader:
            p = network.predict(x.to(device))
            correct += (p.argmax(1) == y.to(device)).sum().item()
            total += len(y)
    network.train()
    return correct / total


class Tee:
    def __init__(self, fname, mode="a"):
        self.stdout = sys.stdout
        self.file = open(fname, mode)  # noqa: SIM115

    def write(self, message):
        self.stdout.write(message)
        self.file.write(message)
        self.flush()

    def flush(self):
        self.stdout.flush()
        self.file.flush()
