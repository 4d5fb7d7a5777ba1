import json

import pytest
import torch

from nestling import ModelError
from nestling.signature import Signature

CPU = torch.device("cpu")


def test_examples_follow_the_batch():
    signature = Signature.of(
        [torch.randn(4, 3, 8), torch.zeros(4, dtype=torch.long)], {"table": torch.randn(5, 5)}
    )
    args, kwargs = signature.example(2, CPU)
    assert [tuple(each.shape) for each in args] == [(2, 3, 8), (2,)]
    assert args[1].dtype == torch.int64
    assert kwargs["table"].shape == (5, 5)
    assert str(signature) == "(batch, 3, 8) float32, (batch) int64, table=(5, 5) float32"
    again, _ = signature.example(2, CPU)
    assert torch.equal(args[0], again[0])


def test_json_both_ways():
    signature = Signature.of([torch.randn(1, 2), "text", torch.tensor(1.0)], {"a": torch.ones(1)})
    assert Signature.from_json(json.loads(json.dumps(signature.to_json()))) == signature


def test_what_cannot_be_made_up():
    for args in ([], ["text"], [[torch.ones(1)]], [torch.ones(1, dtype=torch.float8_e4m3fn)]):
        with pytest.raises(ModelError, match="made-up inputs"):
            Signature.of(args, {}).example(1, CPU)


@pytest.mark.parametrize(
    "spec", [3, [[1]], [[-1], "float32"], [[1.5], "float32"], ["ab", "int8"], [[1], "Tensor"]]
)
def test_bad_json(spec):
    with pytest.raises((ValueError, TypeError)):
        Signature.from_json({"args": [spec], "kwargs": {}})


def test_a_mask_hides_nothing():
    padded = torch.tensor([[1, 1, 0]])
    signature = Signature.of([padded], {"attention_mask": padded, "ids": padded})
    (first,), made = signature.example(2, CPU)
    assert made["attention_mask"].tolist() == [[1, 1, 1]] * 2
    assert first.tolist() == made["ids"].tolist() == [[0, 0, 0]] * 2
    _, made = Signature.of([], {"padMask": padded.bool(), "mask": padded * 0.5}).example(1, CPU)
    assert made["padMask"].all()
    assert made["padMask"].dtype == torch.bool
    assert made["mask"].unique().numel() == 3  # numbers are random
