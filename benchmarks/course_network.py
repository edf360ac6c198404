"""The course's network written plainly from its layer table with PyTorch's own modules: the oracle for parity tests.

Nothing of Kvarts is used. Inputs (batch, 64, frames); no masks, as in the original. State-dict names are the course's.
"""

import torch
from torch import nn

#        filters, repeat, kernel, stride, dilation, residual, separable
TABLE = [
    (256, 1, 33, 4, 1, False, True),
    (256, 5, 33, 1, 1, True, True),
    (256, 5, 39, 1, 1, True, True),
    (512, 5, 51, 1, 1, True, True),
    (512, 5, 63, 1, 1, True, True),
    (512, 5, 75, 1, 1, True, True),
    (512, 1, 87, 1, 2, False, True),
    (1024, 1, 1, 1, 1, False, False),
]


class Block(nn.Module):
    def __init__(self, inputs, filters, repeat, kernel, stride, dilation, residual, separable):
        super().__init__()
        layers = []
        channels = inputs
        for number in range(repeat):
            if separable:
                padding = dilation * (kernel - 1) // 2
                layers.append(nn.Conv1d(channels, channels, kernel, stride, padding, dilation, groups=channels))
            layers.append(nn.Conv1d(channels, filters, 1))
            layers.append(nn.BatchNorm1d(filters))
            if number < repeat - 1:
                layers += [nn.ReLU(), nn.Dropout(0.0)]
            channels = filters
        self.conv = nn.Sequential(*layers)
        self.res = nn.Sequential(nn.Conv1d(inputs, filters, 1), nn.BatchNorm1d(filters)) if residual else None
        self.out = nn.Sequential(nn.ReLU(), nn.Dropout(0.0))

    def forward(self, x):
        return self.out(self.conv(x) if self.res is None else self.conv(x) + self.res(x))


class _Layers(nn.Module):
    def __init__(self, layers):
        super().__init__()
        self.layers = nn.Sequential(*layers)

    def forward(self, x):
        return self.layers(x)


class CourseNetwork(nn.Module):
    def __init__(self):
        super().__init__()
        inputs = [64] + [row[0] for row in TABLE]
        self.encoder = _Layers([Block(i, *row) for i, row in zip(inputs, TABLE, strict=False)])
        self.decoder = _Layers([nn.Conv1d(1024, 34, 1)])

    def forward(self, features):
        """(batch, 64, frames) to log-probs (batch, time, 34)."""
        return torch.log_softmax(self.decoder(self.encoder(features)).transpose(1, 2), dim=-1)


def trained_looking(network, seed=0):
    """Random weights as after training: BatchNorm statistics and scales away from 0 and 1, outputs that vary."""
    draw = torch.Generator().manual_seed(seed)
    for module in network.modules():
        if isinstance(module, nn.Conv1d) and module.groups == 1:
            nn.init.kaiming_normal_(module.weight, generator=draw)
        if isinstance(module, nn.BatchNorm1d):
            module.running_mean.normal_(0, 0.2, generator=draw)
            module.running_var.uniform_(0.5, 1.5, generator=draw)
            nn.init.uniform_(module.weight, 0.7, 1.3, generator=draw)
            nn.init.normal_(module.bias, 0, 0.2, generator=draw)
    network.decoder.layers[0].weight.data.mul_(0.2)  # log-probs down to about -10, as a trained network gives them
    return network
