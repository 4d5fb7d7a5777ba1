"""Pretrained CIFAR-10 ResNets: accuracy of the plain net and of the supernet's full spec.

    python benchmarks/pretrained.py --weights FOLDER --data-dir FOLDER

FOLDER of weights holds cifar10_resnet20.safetensors and cifar10_resnet56.safetensors (He's nets
with zero-padded shortcuts; inputs normalised by the ImageNet mean and deviation). The outputs of
the full spec must equal the plain net's bit for bit.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch

import nestling
from nestling.profile import machine

KEPT = Path(__file__).parent / "results" / "pretrained.json"
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def main() -> None:
    """Evaluate both nets on the 10,000 test pictures and keep the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    data = replace(nestling.data.load("cifar10", options.data_dir), mean=MEAN, std=STD)
    batches = list(data.test_batches(250))
    result = {"machine": machine(), "nets": {}}
    for name in ("resnet20", "resnet56"):
        model = nestling.models.build(name, {"shortcut": "zero_pad"})
        nestling.models.load_weights(model, options.weights / f"cifar10_{name}.safetensors")
        net = nestling.Supernet(model.eval(), batches[0][0][:2])
        full = net.subnet(net.space.full).eval()
        with torch.no_grad():
            same = all(torch.equal(model(x), full(x)) for x, _ in batches[:4])
        score = nestling.evaluate(full, batches)
        result["nets"][name] = {
            "accuracy": score,
            "full_spec_bit_equal": same,
            "axes": len(net.space.axes),
        }
        print(f"{name}: top-1 {score:.2%}, full spec equal bit for bit: {same}", flush=True)
    KEPT.parent.mkdir(exist_ok=True)
    KEPT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
