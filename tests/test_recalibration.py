import torch
from torch import nn

from nestling.recalibration import recalibrate


def test_batches_go_to_the_device_of_the_subnet():
    model = nn.InstanceNorm1d(3, track_running_stats=True).to("meta")
    seen = []
    model.register_forward_pre_hook(lambda module, args: seen.append(args[0].device.type))
    recalibrate(model, [(torch.randn(5, 3, 4), torch.zeros(5)), torch.randn(5, 3, 4)], ())
    assert seen == ["meta", "meta"]
