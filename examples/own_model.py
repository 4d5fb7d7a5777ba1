"""Your own model, your own training loop, your own optimiser.

    python examples/own_model.py

A small net of one's own class becomes a supernet, is trained with a plain loop on the embedded
digits, and is saved with a menu. Loading a class of one's own needs an instance of it.
"""

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

import nestling


class MyNet(nn.Module):
    """Two convolutions, a residual sum, and a linear layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(1, 32, 3, padding=1)
        self.body = nn.Sequential(
            nn.Conv2d(32, 48, 3, padding=1), nn.BatchNorm2d(48), nn.ReLU(), nn.Conv2d(48, 32, 1)
        )
        self.head = nn.Linear(32 * 4 * 4, 10)

    def forward(self, x: Tensor) -> Tensor:
        """Return class scores (N, 10) of pictures (N, 1, 8, 8)."""
        x = self.stem(x).relu()
        x = (x + self.body(x)).relu()
        return self.head(nn.functional.max_pool2d(x, 2).flatten(1))


def main(epochs: int = 3) -> None:
    """Train, make a menu, save, load and answer a budget."""
    torch.manual_seed(0)
    digits = nestling.data.load("digits")
    train, test = digits.train_batches(64), digits.test_batches(120)

    net = nestling.Supernet(MyNet(), torch.randn(1, 1, 8, 8))
    print(net.space)

    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    for _ in range(epochs):
        for images, labels in train:
            for subnet, loss in nestling.sandwich(net):
                loss(subnet(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()

    specs = [net.space.spec(fraction=share) for share in (1.0, 0.5, 0.25)]
    menu = nestling.make_menu(net, specs, test, calibrate=train)
    with tempfile.TemporaryDirectory() as folder:
        path = menu.save(Path(folder) / "digits.nest")
        model = nestling.load(path, model=MyNet())
        images, labels = next(iter(test))
        for share in (1.0, 0.5, 0.25):
            name = model.choose(fraction=share).name
            right = (model(images, fraction=share).argmax(1) == labels).float().mean()
            print(f"at most {share:.0%} of the MACs: {name}, {right:.1%} right")


if __name__ == "__main__":
    main()
