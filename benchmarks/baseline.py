"""How the uniform baseline should be trained: labels first, or distillation from the start.

    python benchmarks/baseline.py --data-dir FOLDER

A short protocol for two cores: ResNet-20 on 10,000 of CIFAR-10's training pictures, scored on 5,000
others of the training set (the test set is not read), `--epochs` epochs at batch 128, one seed, one
thread. Every setting of `labels_first` is trained alike; two shapes trained alone stand beside.
"""

from __future__ import annotations

import argparse
import json
import time
from functools import partial
from pathlib import Path
from typing import Any

import torch

import nestling
from nestling.data import Part
from nestling.profile import machine

KEPT = Path(__file__).parent / "results" / "baseline.json"
SETTINGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("uniform", {"labels_first": 0.0}),
    ("uniform", {"labels_first": 0.5}),
    ("uniform", {"labels_first": 1.0}),
    ("individual", {"fractions": (1.0, 0.25)}),
)


def main() -> None:
    """Train every setting and keep the accuracies."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--lr", type=float, default=0.05)
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    torch.set_num_threads(1)
    data = nestling.data.load("cifar10", options.data_dir)
    parts = [
        Part(data.train_images[rows], data.train_labels[rows])
        for rows in (slice(0, 10_000), slice(10_000, 15_000))
    ]
    train = data.train_batches(128, part=parts[0], memory_format=torch.channels_last)
    held_out = list(data.test_batches(500, part=parts[1]))
    optimizer = partial(
        torch.optim.SGD, lr=options.lr, momentum=0.9, nesterov=True, weight_decay=5e-4
    )
    rows = []
    for method, chosen in SETTINGS:
        torch.manual_seed(options.seed)
        net = nestling.Supernet(nestling.models.resnet20(), torch.randn(1, 3, 32, 32), step=2)
        start = time.process_time()
        menu = nestling.fit(
            net,
            train,
            held_out,
            method=method,
            epochs=options.epochs,
            seed=options.seed,
            optimizer=optimizer,
            progress=False,
            **chosen,
        )
        scores = {entry.name: entry.accuracy for entry in menu}
        rows.append(
            {
                "method": method,
                "options": chosen,
                "accuracy": scores,
                "cpu_seconds": time.process_time() - start,
            }
        )
        print(method, chosen, {k: round(100 * v, 1) for k, v in scores.items()}, flush=True)
        settings = {"epochs": options.epochs, "lr": options.lr, "seed": options.seed}
        KEPT.write_text(
            json.dumps({"machine": machine(), "settings": settings, "rows": rows}, indent=1) + "\n"
        )


if __name__ == "__main__":
    main()
