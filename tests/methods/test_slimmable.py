"""A few uniform widths, trained together."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import nestling
from nestling import SpecError
from nestling.optimizers import cosine
from nestling.search import ladder


@pytest.mark.parametrize(
    "options", [{}, {"kind": "Dense"}, {"own_norms": False}], ids=["own", "gathers", "shared"]
)
def test_a_stop_anywhere_changes_nothing(story, tmp_path, options):
    fit = story("slimmable", fractions=(1.0, 0.4, 0.1), **options)
    fit.goes_on_everywhere(
        tmp_path, lambda losses, _: [(2, 0), (losses // 2, 0), (-losses // 2 - 1, 0), (losses, 0)]
    )


@pytest.mark.parametrize("summed", [True, False])
def test_weights_equal_those_of_a_plain_loop(small, summed):
    """Against nets of each width, whose weights are written back after every step by hand."""
    net, widths = small.supernet(), {}
    specs = ladder(net.space, (1.0, 0.4, 0.1))
    for spec in specs:
        widths[spec] = nestling.pack(net.subnet(spec)).train()
    shared = {name: p.detach().clone() for name, p in net.named_parameters()}
    norms = {spec: nn.ModuleList([m.norm1, m.norm2]) for spec, m in widths.items()}
    whole = nn.ParameterDict({n.replace(".", "-"): p.clone() for n, p in shared.items()})
    own = [p for spec in specs[1:] for p in norms[spec].parameters()]
    optimizer = torch.optim.SGD([*whole.values(), *own], lr=0.05, momentum=0.9)
    for step, (images, labels) in enumerate(small.batches() * 2):
        optimizer.param_groups[0]["lr"] = 0.05 * cosine(step, 6)
        for spec, module in widths.items():
            sliced = {}
            for name, p in module.named_parameters():
                mine = whole[name.replace(".", "-")]
                if spec == specs[0] or not name.startswith("norm"):
                    sliced[name] = mine[tuple(slice(n) for n in p.shape)]
            outputs = torch.func.functional_call(module, sliced, (images,))
            F.cross_entropy(outputs, labels).backward()
            if not summed or spec == specs[-1]:
                optimizer.step()
                optimizer.zero_grad(set_to_none=False)
    menu = nestling.fit(
        net, small.batches(), method="slimmable", fractions=(1.0, 0.4, 0.1), epochs=2,
        precision="float32", optimizer=small.sgd, summed=summed, progress=False,
    )  # fmt: skip
    for name, parameter in net.named_parameters():
        torch.testing.assert_close(parameter, whole[name.replace(".", "-")], rtol=1e-4, atol=1e-5)
        assert not torch.equal(parameter, shared[name])
    assert [entry.spec for entry in menu] == specs
    for entry in menu.entries[1:]:
        module = menu.module(entry.name)
        for found, expected in zip((module.norm1, module.norm2), norms[entry.spec], strict=True):
            torch.testing.assert_close(found.weight, expected.weight, rtol=1e-4, atol=1e-5)
            torch.testing.assert_close(found.bias, expected.bias, rtol=1e-4, atol=1e-5)


def test_without_norms_of_their_own_only_statistics_are(story):
    net, menu = story("slimmable", own_norms=False, epochs=1)()
    for entry in menu.entries[1:]:
        assert entry.private.keys() == net.private


def test_other_nets(story):
    for kind in ("Mlp", "Skipping"):
        _, menu = story("slimmable", kind=kind, epochs=1)()
        assert len(menu) > 2
        assert all(not entry.private for entry in menu)


def test_axes_of_depth_stay_whole(small):
    net = nestling.Supernet(
        nestling.models.digits_resnet(width=4, num_classes=3), torch.randn(2, 1, 8, 8), step=4
    )
    menu = nestling.fit(
        net, small.batches(32), small.batches(16), method="slimmable", epochs=1, progress=False
    )
    assert [entry.spec for entry in menu] == ladder(net.space, (1.0, 0.75, 0.5, 0.25, 0.15))


@pytest.mark.parametrize("fractions", [[], "0.5", (2,), (0,), ("a",)])
def test_bad_fractions(story, fractions):
    fit = story("slimmable", fractions=fractions)
    with pytest.raises(SpecError, match="fraction"):
        fit()
    assert fit.losses == 0
