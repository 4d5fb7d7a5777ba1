"""Small nets and data that many tests share; as a script, one training that kills itself."""

import os
import signal
import sys
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.data import BatchSampler, DataLoader, RandomSampler, TensorDataset

import nestling
from nestling.data.batches import Augmentation, Batches


class ConvNet(nn.Module):
    """Two convolutions with batch norm, dropout and a classifier: 8 x 8 pictures, 3 classes."""

    def __init__(self, width=8, dropout=0.0):
        super().__init__()
        self.conv1 = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(width)
        self.dropout = nn.Dropout(dropout)
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = F.relu(self.norm1(self.conv1(x)))
        x = F.relu(self.norm2(self.conv2(x)))
        return self.head(self.dropout(x.mean((2, 3))))


class Mlp(nn.Module):
    """Without norms: subnets need no recalibration."""

    def __init__(self, inputs=6, width=8, outputs=3):
        super().__init__()
        self.one = nn.Linear(inputs, width)
        self.two = nn.Linear(width, width)
        self.three = nn.Linear(width, outputs)

    def forward(self, x):
        return self.three(F.relu(self.two(F.relu(self.one(x)))))


class Skipping(nn.Module):
    """Stochastic depth decided in Python: a step may leave a block out, with all of its weights."""

    def __init__(self, width=8, blocks=3):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1)
        self.blocks = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(blocks))
        self.head = nn.Linear(width, 3)

    def forward(self, x):
        x = F.relu(self.stem(x))
        for block in self.blocks:
            if not self.training or torch.rand(()) > 0.8:
                x = x + F.relu(block(x))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Every layer reads all before it: norms over concatenations, whose units lie apart."""

    def __init__(self, width=8, growth=4):
        super().__init__()
        self.stem = nn.Conv2d(1, width, 3, padding=1, bias=False)
        self.norms, self.convs = nn.ModuleList(), nn.ModuleList()
        for number in range(2):
            self.norms.append(nn.BatchNorm2d(width + number * growth))
            self.convs.append(nn.Conv2d(width + number * growth, growth, 3, padding=1, bias=False))
        self.norm = nn.BatchNorm2d(width + 2 * growth)
        self.head = nn.Linear(width + 2 * growth, 3)

    def forward(self, x):
        x = self.stem(x)
        for norm, conv in zip(self.norms, self.convs, strict=True):
            x = torch.cat([x, conv(F.relu(norm(x)))], 1)
        return self.head(F.relu(self.norm(x)).mean((2, 3)))


class TwoInputs(nn.Module):
    """Takes two tensors, by place or by keyword."""

    def __init__(self):
        super().__init__()
        self.left = nn.Linear(4, 8)
        self.right = nn.Linear(5, 8)
        self.head = nn.Linear(8, 2)

    def forward(self, left, right):
        return self.head(F.relu(self.left(left) + self.right(right)))


class Segmenter(nn.Module):
    """Class scores for every pixel."""

    def __init__(self):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(1, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
        self.head = nn.Conv2d(8, 2, 1)

    def forward(self, x):
        return self.head(self.body(x))


def seeded(kind, *args, **kwargs):
    """Return a module of fixed weights."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return kind(*args, **kwargs)


def supernet(model=None, *inputs, **options):
    model = seeded(ConvNet) if model is None else model
    inputs = inputs or (torch.randn(2, 1, 8, 8, generator=torch.Generator().manual_seed(2)),)
    return nestling.Supernet(model, *inputs, **{"step": 2, **options})


def pictures(count=48, seed=0):
    """Return pictures of three classes that differ in brightness, as one (N, 1, 8, 8) tensor."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(3, (count,), generator=generator)
    images = torch.randn(count, 1, 8, 8, generator=generator) + 2.0 * labels[:, None, None, None]
    return images, labels


def batches(count=48, size=16, seed=0):
    images, labels = pictures(count, seed)
    return list(zip(images.split(size), labels.split(size), strict=True))


def loader(count=48, size=16):
    return DataLoader(TensorDataset(*pictures(count)), batch_size=size, shuffle=True)


class Noisy(TensorDataset):
    """Varies its pictures with the global generators of torch and NumPy."""

    def __getitem__(self, index):
        image, label = super().__getitem__(index)
        return image + 0.1 * torch.randn(1) + 0.1 * float(np.random.rand()), label


def data_batches(count=48, size=16):
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(256, (count, 1, 8, 8), generator=generator, dtype=torch.uint8)
    labels = images.float().mean((1, 2, 3)).sub(120).div(8).clamp(0, 2).long()
    usual = {"mean": (0.5,), "std": (0.25,), "shuffle": True}
    return Batches(images, labels, batch_size=size, augment=Augmentation(pad=1, flip=True), **usual)


def own_generator():
    generator = torch.Generator().manual_seed(4)
    data = TensorDataset(*pictures())
    return DataLoader(data, batch_size=16, shuffle=True, generator=generator)


def own_sampler():
    """Draws along: with replacement, the sampler's generator moves in the middle of an epoch."""
    data = TensorDataset(*pictures())
    generator = torch.Generator().manual_seed(4)
    sampler = RandomSampler(data, replacement=True, num_samples=48, generator=generator)
    return DataLoader(data, batch_sampler=BatchSampler(sampler, 16, drop_last=False))


def decaying(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9, weight_decay=0.1)


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=0.01)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=0.05, momentum=0.9)


KINDS = {
    "batches-sgd": (data_batches, {}, {}),
    "loader-adamw": (loader, {"optimizer": adamw}, {}),
    "noisy-sgd": (
        lambda: DataLoader(Noisy(*pictures()), batch_size=16, shuffle=True),
        {"optimizer": sgd},
        {},
    ),
    "list-dropout": (batches, {}, {"dropout": 0.5}),
    "loader-individual": (
        loader,
        {"method": "individual", "fractions": (1.0, 0.4), "optimizer": adamw},
        {"dropout": 0.2},
    ),
    "skipping-uniform": (batches, {"optimizer": decaying}, {"kind": Skipping}),
    "skipping-individual": (
        batches,
        {"method": "individual", "fractions": (1.0,), "optimizer": decaying},
        {"kind": Skipping},
    ),
    "own-generator": (own_generator, {"optimizer": sgd}, {}),
    "own-sampler": (own_sampler, {"optimizer": sgd}, {}),
    "batches-individual": (data_batches, {"method": "individual", "fractions": (0.4,)}, {}),
}
EPOCHS = 3


def train(kind, checkpoint, *, resume=False, kill=None, number=signal.SIGTERM, **more):
    """Train one of the kinds; in the `kill`-th step, send a signal to itself."""
    make, options, arguments = KINDS[kind]
    net = supernet(seeded(**{"kind": ConvNet, **arguments}))
    passes = 1 if options.get("method") == "individual" else 4
    calls = []

    def loss(outputs, targets):
        calls.append(None)
        if kill is not None and len(calls) == (kill - 1) * passes + 1:
            os.kill(os.getpid(), number)
        return F.cross_entropy(outputs, targets)

    options = {"epochs": EPOCHS, "progress": False, **options, **more}
    menu = nestling.fit(
        net, make(), batches(16), checkpoint=checkpoint, resume=resume, loss=loss, **options
    )
    return net, menu


def shuffled(space, seed=0):
    """Random orders of all axes that have no order of their own."""
    generator = torch.Generator().manual_seed(seed)
    loose = {name: axis.size for name, axis in space.axes.items() if not axis.ordered}
    return {name: torch.randperm(n, generator=generator).tolist() for name, n in loose.items()}


def main():
    """`python small.py KIND FOLDER STEP SIGNAL`: train until the signal comes in that step."""
    torch.set_num_threads(1)
    kind, folder, step, number = sys.argv[1:]
    try:
        train(kind, Path(folder) / "state", kill=int(step), number=int(number))
    except nestling.training.Interrupted as stop:
        print(f"stopped: {stop}", file=sys.stderr)
        sys.exit(130)


if __name__ == "__main__":
    main()
