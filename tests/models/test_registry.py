import copy
import json
import pickle

import pytest
import torch
from torch import nn

from nestling.errors import ModelError
from nestling.models import Built, build, builder, built, names
from nestling.models.registry import MOST_PARAMETERS

# Of each builder: an input, and the arguments of a small net and of a smaller one.
IMAGE = (2, 3, 32, 32)
SMALL = {
    "densenet40": (IMAGE, {"growth": 4}, {"growth": 3}),
    "densenet121": (IMAGE, {"growth": 4}, {"growth": 3}),
    "digits_resnet": ((2, 1, 8, 8), {"width": 8}, {"width": 5}),
    "mlp": ((2, 1, 8, 8), {"in_features": 64, "hidden": [9, 8]}, {"hidden": [5, 7]}),
    "mobilenet_v1": (IMAGE, {"width": 0.5, "stem_stride": 1}, {"width": 0.25}),
    "mobilenet_v2": (IMAGE, {"width": 0.75, "stem_stride": 1}, {"width": 0.5}),
    "preact_resnet20": (IMAGE, {"width": 4}, {"width": 3}),
    "resnet18": (IMAGE, {"width": 8, "shortcut": "zero_pad", "stem": "cifar"}, {"width": 5}),
    "resnet20": (IMAGE, {"width": 8, "shortcut": "zero_pad"}, {"width": 5}),
    "resnet50": (IMAGE, {"width": 4, "shortcut": "zero_pad"}, {"width": 3}),
    "resnet56": (IMAGE, {"width": 4, "shortcut": "projection"}, {"width": 3}),
    "resnext29": (IMAGE, {"width": 4, "path_width": 2, "paths": 4}, {"width": 3}),
    "vgg11_bn": (IMAGE, {"width": 8}, {"width": 5}),
    "vgg16_bn": (IMAGE, {"width": 8}, {"width": 5}),
    "vgg19_bn": (IMAGE, {"width": 8}, {"width": 5}),
}


def shapes(module):
    return {key: tuple(value.shape) for key, value in module.state_dict().items()}


def test_every_builder_has_small_arguments_here():
    assert sorted(SMALL) == names()


@pytest.mark.parametrize("name", names())
def test_built_arguments_build_the_same_architecture(name):
    _, arguments, _ = SMALL[name]
    module = build(name, arguments)
    record = built(module)
    assert record.name == name
    assert record.arguments.items() >= arguments.items()
    again = build(name, json.loads(json.dumps(record.arguments)))
    assert built(again) == record
    assert shapes(again) == shapes(module)
    assert repr(again) == repr(module)


@pytest.mark.parametrize("name", names())
def test_default_arguments_are_recorded_and_build_the_same(name):
    with torch.device("meta"):
        module = build(name)
        again = build(name, built(module).arguments)
    assert shapes(again) == shapes(module)
    assert all(p.is_meta for p in module.parameters())


@pytest.mark.parametrize("name", names())
def test_output_is_logits_and_every_parameter_gets_a_gradient(name):
    shape, arguments, _ = SMALL[name]
    module = build(name, arguments | {"num_classes": 7})
    logits = module(torch.randn(shape))
    assert logits.shape == (shape[0], 7)
    assert logits.isfinite().all()
    logits.square().sum().backward()
    assert all(p.grad is not None for p in module.parameters())


@pytest.mark.parametrize("name", names())
def test_forward_holds_no_sizes(name):
    """A net whose tensors and size attributes are replaced by a narrower net's computes as that."""
    shape, arguments, narrower = SMALL[name]
    narrow = build(name, arguments | narrower).eval()
    module = build(name, arguments).eval()
    assert shapes(module) != shapes(narrow)
    others = dict(narrow.named_modules())
    for path, part in module.named_modules():
        other = others[path]
        part._parameters.update(other._parameters)
        part._buffers.update(other._buffers)
        for size in ("groups", "before", "after"):
            if isinstance(getattr(other, size, None), int):
                setattr(part, size, getattr(other, size))
    x = torch.randn(shape)
    assert torch.equal(module(x), narrow(x))


def test_record_survives_copy_and_pickle():
    module = build("mlp", {"hidden": (3,)})
    record = Built("mlp", {"in_features": 784, "hidden": [3], "num_classes": 10, "norm": True})
    assert built(copy.deepcopy(module)) == record
    assert built(pickle.loads(pickle.dumps(module))) == record


def test_a_module_that_no_builder_made_has_no_record():
    module = nn.Linear(2, 2)
    assert built(module) is None
    module.nestling_builder = "resnet20"
    assert built(module) is None


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("resnet2O", {}, "did you mean 'resnet20'"),
        ("x" * 10**6, {}, "no builder is named"),
        (None, {}, "no builder is named"),
        (["resnet20"], {}, "no builder is named"),
        ("os.system", {}, "no builder is named"),
        ("resnet20", {"widht": 8}, "no argument 'widht'.*did you mean 'width'"),
        ("resnet20", {"self": 8}, "no argument 'self'"),
        ("resnet20", {3: 8}, "mapping of argument names"),
        ("resnet20", [("width", 8)], "mapping of argument names"),
        ("resnet20", {"width": 0}, "argument 'width' of resnet20 is 0"),
        ("resnet20", {"width": -(10**30)}, "whole number from 1 to 4096"),
        ("resnet20", {"width": "16"}, "whole number"),
        ("resnet20", {"width": {"a": 1}}, "whole number"),
        ("resnet20", {"num_classes": 10**9}, "from 1 to 100000"),
        ("resnet20", {"shortcut": "zeropad"}, "did you mean 'zero_pad'"),
        ("resnet50", {"width": 4096}, "would have .* parameters"),
        ("resnet18", {"width": 4096, "num_classes": 100_000}, "would have .* parameters"),
        ("vgg16_bn", {"head": "mlp", "num_classes": 100_000}, "would have .* parameters"),
        ("mobilenet_v2", {"width": float("inf")}, "a number from"),
        ("mobilenet_v2", {"width": float("nan")}, "a number from"),
        ("mobilenet_v1", {"stem_stride": 3}, "from 1 to 2"),
        ("densenet40", {"growth": 4096}, "from 1 to 512"),
        ("densenet40", {"growth": 512}, "would have .* parameters"),
        ("mlp", {"hidden": [4096] * 33}, "33 entries"),
        ("mlp", {"hidden": [4096] * 32}, "would have .* parameters"),
        ("mlp", {"hidden": 5}, "a list or a tuple"),
        ("mlp", {"hidden": [[8]]}, "entry 0 of argument 'hidden'"),
        ("mlp", {"norm": "yes"}, "True or False"),
    ],
)
def test_hostile_calls_are_refused(name, arguments, message):
    with pytest.raises(ModelError, match=message) as caught:
        build(name, arguments)
    assert len(str(caught.value)) < 400


def test_direct_calls_are_checked_as_well():
    from nestling.models import resnet20

    with pytest.raises(ModelError, match="argument 'width'"):
        resnet20(width=0)
    with pytest.raises(ModelError, match="too many positional"):
        resnet20(10, 16, 3)


def test_nothing_is_allocated_for_a_net_that_is_too_large():
    made = []

    def largest(width: int = MOST_PARAMETERS) -> nn.Module:
        module = nn.Linear(width, 1, bias=False)
        made.append(module.weight.device.type)
        return module

    with pytest.raises(ModelError, match="at most"):
        _registered(largest)(MOST_PARAMETERS + 1)
    assert made == ["meta"]


def test_errors_inside_a_builder_become_model_errors():
    def fussy(kernel: int = 3) -> nn.Module:
        raise ValueError("even kernel")

    _registered(fussy)
    with pytest.raises(ModelError, match=r"fussy cannot be built with .*even kernel"):
        build("fussy", {"kernel": 2})


def test_names_are_unique():
    def resnet20() -> nn.Module:
        return nn.Identity()

    with pytest.raises(ModelError, match="exists already"):
        builder(resnet20)


def _registered(make):
    return builder(make)


@pytest.fixture(autouse=True)
def _clean_registry(monkeypatch):
    """Builders that a test registers are gone after it."""
    from nestling.models import registry

    monkeypatch.setattr(registry, "_BUILDERS", dict(registry._BUILDERS))
