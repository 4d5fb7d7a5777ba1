from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from nestling.errors import FileError, ModelError
from nestling.models import load_weights, resnet20, resnet56

WEIGHTS = Path(__file__).parents[2] / ".." / "shared" / "data" / "weights"


def weights_file(name):
    path = WEIGHTS / f"{name}.safetensors"
    if not path.is_file():
        pytest.skip(f"the pretrained weights {path} are not on this machine")
    return path


def functional_resnet(weights, x, depth):
    """He's CIFAR net with option A, written out over a state dict."""

    def norm(x, name):
        names = ("running_mean", "running_var", "weight", "bias")
        return F.batch_norm(x, *(weights[f"{name}.{part}"] for part in names))

    x = F.relu(norm(F.conv2d(x, weights["conv1.weight"], padding=1), "bn1"))
    for stage in (1, 2, 3):
        for i in range((depth - 2) // 6):
            name, stride = f"layer{stage}.{i}", 2 if stage > 1 and i == 0 else 1
            y = F.conv2d(x, weights[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = F.conv2d(F.relu(norm(y, f"{name}.bn1")), weights[f"{name}.conv2.weight"], padding=1)
            if stride == 2:
                x = x[..., ::2, ::2]
                zeros = x.new_zeros(len(x), x.shape[1] // 2, *x.shape[2:])
                x = torch.cat([zeros, x, zeros], 1)
            x = F.relu(norm(y, f"{name}.bn2") + x)
    return F.linear(x.mean((2, 3)), weights["linear.weight"], weights["linear.bias"])


@pytest.mark.parametrize(("make", "depth"), [(resnet20, 20), (resnet56, 56)])
def test_published_weights_load_and_compute_as_written_out(make, depth):
    path = weights_file(f"cifar10_resnet{depth}")
    model = load_weights(make(shortcut="zero_pad"), path).double().eval()
    weights = load_file(path)
    own = {key for key in model.state_dict() if not key.endswith("num_batches_tracked")}
    assert own == weights.keys()
    x = torch.randn(2, 3, 32, 32, dtype=torch.float64)
    expected = functional_resnet({k: w.double() for k, w in weights.items()}, x, depth)
    torch.testing.assert_close(model(x), expected, rtol=1e-9, atol=1e-9)


@pytest.fixture
def model():
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.fixture
def write(tmp_path):
    def write(weights):
        path = tmp_path / "weights.safetensors"
        save_file(weights, path)
        return path

    return write


def refused(model, path, error, message):
    before = {key: value.clone() for key, value in model.state_dict().items()}
    with pytest.raises(error, match=message):
        load_weights(model, path)
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())


def test_every_tensor_is_loaded_and_the_model_returned(model, write):
    weights = {key: torch.rand_like(v.float()) + 1 for key, v in model.state_dict().items()}
    weights["1.num_batches_tracked"] = torch.tensor(5)
    assert load_weights(model, str(write(weights))) is model
    assert all(torch.equal(weights[key], value) for key, value in model.state_dict().items())


def test_absent_batch_counts_are_left_as_they_are(model, write):
    model[1].num_batches_tracked.fill_(7)
    weights = model.state_dict()
    del weights["1.num_batches_tracked"]
    load_weights(model, write(weights))
    assert model[1].num_batches_tracked == 7


def test_weights_are_cast_to_the_models_type(model, write):
    weights = {k: v.half() if v.is_floating_point() else v for k, v in model.state_dict().items()}
    load_weights(model, write(weights))
    assert torch.equal(model[0].weight, weights["0.weight"].float())
    assert model[0].weight.dtype is torch.float32


def test_a_missing_file_is_an_error(model, tmp_path):
    refused(model, tmp_path / "none.safetensors", FileError, "is not a file")
    refused(model, tmp_path, FileError, "is not a file")


@pytest.mark.parametrize(
    "content", [b"", b"not a safetensors file", b"\xff" * 64, b"\x02\0\0\0\0\0\0\0{}trailing"]
)
def test_other_files_are_refused(model, tmp_path, content):
    path = tmp_path / "weights.safetensors"
    path.write_bytes(content)
    refused(model, path, FileError, "cannot be read as a safetensors file")


def test_a_file_cut_short_is_refused(model, write):
    path = write(model.state_dict())
    path.write_bytes(path.read_bytes()[:-1])
    refused(model, path, FileError, "cannot be read")


def test_missing_names_are_listed(model, write):
    weights = {"0.weight": model[0].weight.detach()}
    refused(model, write(weights), ModelError, r"lacks 0.bias, 1.bias, 1.running_mean and 2 more")


def test_unexpected_names_are_listed(model, write):
    weights = model.state_dict() | {"head.weight": torch.zeros(1)}
    refused(model, write(weights), ModelError, "has, and the model has not, head.weight:")


def test_differing_shapes_are_listed(model, write):
    weights = model.state_dict() | {"0.bias": torch.zeros(5)}
    refused(model, write(weights), ModelError, r"0.bias \(\(5,\), the model's is \(4,\)\)")


def test_integers_for_weights_are_refused(model, write):
    weights = model.state_dict() | {"0.bias": torch.zeros(4, dtype=torch.int8)}
    refused(model, write(weights), ModelError, "another kind of number for 0.bias")
