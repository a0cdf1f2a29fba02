import torch.nn as nn
import torch.nn.functional as F


class MLP(nn.Module):
    def __init__(self, n_inputs, n_outputs, hparams):
        super().__init__()
        width = hparams["mlp_width"]
        self.first = nn.Linear(n_inputs, width)
        self.dropout = nn.Dropout(hparams["mlp_dropout"])
        self.others = nn.ModuleList(
            [nn.Linear(width, width) for _ in range(hparams["mlp_depth"] - 2)]
        )
        self.last = nn.Linear(width, n_outputs)
        self.n_outputs = n_outputs

    def forward(self, x):
        for layer in [self.first, *self.others]:
            x = F.relu(self.dropout(layer(x)))
        return self.last(x)
