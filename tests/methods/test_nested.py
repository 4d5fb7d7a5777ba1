"""Ordered dropout over all kinds, then a greedy search over all kinds."""

import copy

import pytest
import torch
import torch.nn.functional as F

import nestling
from nestling import BudgetError, ModelError, SpecError
from nestling.binding import binding
from nestling.methods.nested import nested
from nestling.objectives import ordered_dropout
from nestling.training import Run

QUICK = {"fractions": (1.0, 0.5, 0.2), "search_options": {"groups": 2}}


@pytest.fixture
def drawn(monkeypatch):
    """The specs that a training has drawn."""
    found = []

    def spied(net, *args, **kwargs):
        for subnet, loss in ordered_dropout(net, *args, **kwargs):
            found.append(dict(binding(subnet).counts))
            yield subnet, loss

    monkeypatch.setattr("nestling.methods.nested.ordered_dropout", spied)
    return found


@pytest.fixture(scope="module")
def deep():
    """Channels and depth, pictures of 8 x 8, 3 classes."""
    torch.manual_seed(0)
    model = nestling.models.digits_resnet(width=4, num_classes=3)
    return nestling.Supernet(model, torch.randn(2, 1, 8, 8), step=2)


def fitted(net, small, **options):
    return nestling.fit(
        net, small.batches(48), small.batches(48, seed=5), method="nested", precision="float32",
        **{**QUICK, "epochs": 1, "progress": False, **options},
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "stops"),
    [
        ({"every": 2}, [(2, 0), (-5, 0), (0, 3)]),
        (
            {"statistics": "shared", "rank_by": "l1", "kind": "Dense", "idle": "moves"},
            [(6, 0)],
        ),
    ],
    ids=["rests", "shared"],
)
def test_a_stop_anywhere_changes_nothing(story, tmp_path, options, stops):
    fit = story("nested", **QUICK, **options)
    fit.goes_on_everywhere(tmp_path, lambda losses, scores: stops)


def test_all_kinds_are_drawn_and_searched(deep, small, drawn):
    net = copy_of(deep)
    menu = fitted(net, small, epochs=4)
    assert len(drawn) == 12
    for name, axis in net.space.axes.items():
        assert len({counts[name] for counts in drawn}) > 1, name
        assert all(counts[name] >= axis.size // 4 for counts in drawn)
    cut = {
        net.space.axes[name].kind
        for entry in menu
        for name, count in entry.spec.items()
        if count < net.space.axes[name].size
    }
    assert cut == {"channels", "depth"}
    full = net.space.macs(net.space.full)
    assert menu.entries[0].spec == net.space.full
    shares = [entry.macs / full for entry in menu.entries[1:]]
    assert [share <= limit for share, limit in zip(shares, (0.5, 0.2), strict=True)] == [True] * 2


def test_kinds_that_are_not_chosen_stay_whole(deep, small, drawn):
    net = copy_of(deep)
    menu = fitted(net, small, kinds=["depth"], fractions=(1.0, 0.6))
    specs = [*drawn, *(dict(entry.spec) for entry in menu)]
    for name, axis in net.space.axes.items():
        if axis.kind == "channels":
            assert {spec[name] for spec in specs} == {axis.size}
    assert len({spec["layer1.depth"] for spec in drawn}) == 2
    assert len(menu) == 2


def test_a_draw_is_kept_for_some_steps(deep, small, drawn):
    fitted(copy_of(deep), small, every=3, epochs=2, fractions=(1.0,))
    assert len(drawn) == 6
    assert drawn[0] == drawn[1] == drawn[2]
    assert drawn[3] == drawn[4] == drawn[5]
    assert drawn[0] != drawn[3]


def test_weights_equal_those_of_a_plain_loop(small):
    """Each step trains one packed net, and what it lacks gets momentum and decay of zeros."""
    net = small.supernet(small.seeded(small.Mlp), torch.randn(2, 6), step=2)
    data = [(x.flatten(1)[:, :6], y) for x, y in small.batches()]
    twin = copy_of(net)
    specs = []
    run = Run(net, data, 2, optimizer=small.decaying, held_out=data, precision="float32")
    stage = run.train_stage

    def spied(objective, **options):
        def watched(net):
            for subnet, loss in objective(net):
                specs.append(dict(binding(subnet).counts))
                yield subnet, loss

        stage(watched, **options)

    run.train_stage = spied
    nested(run, fractions=(1.0,), idle="moves")
    optimizer = small.decaying(twin.parameters())
    for step, counts in enumerate(specs):
        optimizer.param_groups[0]["lr"] = 0.05 * nestling.optimizers.cosine(step, 6)
        images, labels = data[step % 3]
        module = nestling.pack(twin.subnet(counts)).train()
        F.cross_entropy(module(images), labels).backward()
        for (name, shared), own in zip(twin.named_parameters(), module.parameters(), strict=True):
            shared.grad = torch.zeros_like(shared)
            shared.grad[tuple(slice(n) for n in own.shape)] = own.grad
        optimizer.step()
    for (name, found), expected in zip(net.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(found, expected, msg=name)


def test_what_a_step_drops_rests_unless_it_shall_move(small, drawn):
    """One step with weight decay: the dropped rows of the first layer keep every bit, or shrink."""
    for options, same in (({}, True), ({"idle": "moves"}, False)):
        net = small.supernet()
        before = net.model.conv1.weight.detach().clone()
        nestling.fit(
            net, small.batches(16), small.batches(16), method="nested", epochs=1, progress=False,
            precision="float32", fractions=(1.0,), optimizer=small.decaying, seed=3,
            **options,
        )  # fmt: skip
        kept = drawn[-1]["conv1"]
        assert kept < 8
        after = net.model.conv1.weight
        assert not torch.equal(after[:kept], before[:kept])
        assert torch.equal(after[kept:], before[kept:]) == same


def test_pretrained_weights_are_ranked_first(small):
    net = small.supernet()
    expected = nestling.rank(net, "l1")
    assert any(order != tuple(range(len(order))) for order in expected.values())
    fitted(net, small, rank_by="l1", epochs=0)
    assert net.orders == expected


def test_other_costs_and_budgets(deep, small):
    net = copy_of(deep)
    whole = net.space.params(net.space.full)
    menu = fitted(net, small, cost="params", fractions=(1.0,), budgets=(0.4 * whole,))
    assert [entry.params <= limit for entry, limit in zip(menu, (whole, 0.4 * whole))] == [True] * 2
    assert menu.entries[1].params > 0.2 * whole  # the search went no further


def test_fractions_below_the_smallest_stand_for_that_one(deep, small, capsys):
    net = copy_of(deep)
    menu = fitted(
        net, small, kinds=["depth"], fractions=(1.0, 0.7, 0.01, 0.02), epochs=0, progress=True
    )
    assert len(menu) == 3
    least = {name: 1 for name, axis in net.space.axes.items() if axis.kind == "depth"}
    assert menu.entries[-1].spec == net.space.spec(least)
    assert "fractions 0.01, 0.02 are below what the smallest" in capsys.readouterr().err


def test_shared_statistics_are_not_measured_afresh(small):
    net = small.supernet()
    menu = fitted(net, small, statistics="shared")
    shared = dict(net.model.named_buffers())
    small_one = menu.entries[-1]
    count = small_one.spec["conv2"]
    assert count < 8
    assert torch.equal(
        small_one.private["norm2.running_mean"], shared["norm2.running_mean"][:count]
    )
    own = fitted(small.supernet(), small).entries[-1]
    assert not torch.equal(
        own.private["norm2.running_mean"],
        shared["norm2.running_mean"][: own.spec["conv2"]],
    )


def test_the_full_net_has_statistics_of_its_own(small):
    """Against a recalibration by hand; the training has moved those of drawn subnets alone."""
    net = small.supernet()
    fitted(net, small, fractions=(1.0,))
    found = {name: buffer.clone() for name, buffer in net.model.named_buffers()}
    net.recalibrate(net.subnet(net.space.full), small.batches(48))
    for name, buffer in net.model.named_buffers():
        torch.testing.assert_close(found[name], buffer, msg=name)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"kinds": ["heads"]}, SpecError, "'heads', but no axis .* channels, depth"),
        ({"law": "normal"}, SpecError, "law= is one of"),
        ({"low": 2}, SpecError, "low="),
        ({"every": 0}, ModelError, "every= is a whole number"),
        ({"idle": "rest"}, ModelError, "idle= .* did you mean 'rests'"),
        ({"statistics": "one"}, SpecError, "statistics="),
        ({"cost": "watts"}, ModelError, "unknown cost 'watts'"),
        ({"rank_by": "l3"}, ModelError, "unknown ranker 'l3'"),
        ({"search_options": {"floor": 0.1}}, ModelError, "search_options= has 'floor'"),
        ({"search_options": {"group": 2}}, ModelError, "did you mean 'groups'"),
        ({"fractions": (0.001,)}, BudgetError, "no subnet costs at most 0.001"),
        ({"budgets": (10,)}, BudgetError, "no subnet costs at most 10: with all axes at their"),
        ({"budgets": 10}, SpecError, "budgets= lists costs"),
        ({"budgets": (-1,)}, SpecError, "budgets= lists finite costs above 0"),
    ],
)
def test_bad_options(deep, small, options, error, message, drawn):
    with pytest.raises(error, match=message):
        fitted(copy_of(deep), small, **options)
    assert not drawn  # nothing was trained for nothing


def test_without_anything_to_search_on(small):
    with pytest.raises(ModelError, match="neither val= nor held_out="):
        nestling.fit(small.supernet(), small.batches(), method="nested", progress=False)


def copy_of(net):
    return copy.deepcopy(net)
