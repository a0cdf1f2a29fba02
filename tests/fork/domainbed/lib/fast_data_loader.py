from torch.utils.data import DataLoader


class InfiniteDataLoader:
    def __init__(self, dataset, weights, batch_size, num_workers):
        self.loader = DataLoader(
            dataset,
            min(batch_size, len(dataset)),
            shuffle=True,
            drop_last=True,
            num_workers=num_workers,
        )

    def __iter__(self):
        while True:
            yield from self.loader


def FastDataLoader(dataset, batch_size, num_workers):
    return DataLoader(dataset, batch_size, shuffle=True, num_workers=num_workers)
