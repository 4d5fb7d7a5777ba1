"""Subnets of less depth are plain modules in every way: trained, packed, saved, compiled."""

from __future__ import annotations

import contextlib
import copy
import importlib.util
import io
import sys
import warnings
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

import nestling
from nestling import models, testing
from nestling.binding import is_calibrated
from nestling.errors import SpecError, UncalibratedWarning

_path = Path(__file__).parent / "axes" / "residual_nets.py"
_spec = importlib.util.spec_from_file_location("residual_nets", _path)
nets = importlib.util.module_from_spec(_spec)
sys.modules["residual_nets"] = nets
_spec.loader.exec_module(nets)

LIVE = ("ResNet", "MobileNet", "PreNormNet", "PositionBiasNet", "ParentSumNet", "OutputNet")


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        yield


def seeded(build, *args, **kwargs):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return build(*args, **kwargs)


def example(shape, seed=1):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


_made = {}


def supernet(name, **options):
    """A supernet of its own weights; the axes of a net are found once."""
    case = nets.CASES[name]
    if options:
        return nestling.Supernet(seeded(case.build), example(case.shape), **options)
    if name not in _made:
        _made[name] = nestling.Supernet(seeded(case.build), example(case.shape), step=4)
    return copy.deepcopy(_made[name])


def shallow(net, **widths):
    """The least depth everywhere, and some widths cut too."""
    counts = {n: a.counts[0] for n, a in net.space.axes.items() if a.kind == "depth"}
    assert counts
    return net.space.spec({**counts, **widths})


def narrow(net):
    """The least depth, and every second width."""
    counts = {n: a.counts[0] for n, a in net.space.axes.items() if a.kind == "depth"}
    others = [n for n in net.space.axes if n not in counts]
    return net.space.spec({**counts, **{n: net.space.axes[n].counts[-2] for n in others[::2]}})


@pytest.mark.parametrize("name", LIVE)
@pytest.mark.parametrize("pick", [shallow, narrow])
def test_costs_equal_independent_counts(name, pick):
    net, case = supernet(name), nets.CASES[name]
    spec = pick(net)
    small = nestling.pack(net.subnet(spec)).eval()
    assert net.space.params(spec) == sum(p.numel() for p in small.parameters())
    held = [*small.parameters(), *small.buffers()]
    assert net.space.bytes(spec) == sum(t.numel() * t.element_size() for t in held)
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        small(example((1, *case.shape[1:])))
    assert net.space.macs(spec) == counter.get_total_flops() // 2
    whole = net.space.full
    for cost in (net.space.macs, net.space.params, net.space.bytes):
        assert cost(spec) < cost(whole)


@pytest.mark.parametrize("name", LIVE)
def test_names_are_a_subset_and_print_tells_what_is_passed_by(name):
    net = supernet(name)
    subnet = net.subnet(shallow(net))
    names = dict(net.named_parameters())
    assert {n for n, _ in subnet.named_parameters()} < names.keys()
    assert subnet.state_dict().keys() < net.state_dict().keys()
    passed = net.space.passed(shallow(net))
    assert "passed by" in repr(subnet)
    assert passed
    for block in passed:
        assert repr(subnet.get_submodule(block.module)).endswith("(passed by)")
        assert type(subnet.get_submodule(block.module)) is type(
            net.model.get_submodule(block.module)
        )


@pytest.mark.parametrize("name", LIVE)
def test_two_training_steps(name):
    """Gradients of a deep and a shallow subnet add up; what nobody ran does not move."""
    net, case = supernet(name), nets.CASES[name]
    optimizer = torch.optim.SGD(net.parameters(), lr=0.01)
    alone = [net.subnet(net.space.full).train(), net.subnet(shallow(net)).train()]
    for module in (*alone[0].modules(), *alone[1].modules()):
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    for _ in range(2):
        apart = []
        for subnet in alone:
            net.zero_grad()
            subnet(example(case.shape)).square().sum().backward()
            grads = {n: p.grad for n, p in net.named_parameters() if p.grad is not None}
            apart.append({n: grad.clone() for n, grad in grads.items()})
        net.zero_grad()
        for subnet in alone:
            subnet(example(case.shape)).square().sum().backward()
        assert apart[1].keys() < apart[0].keys()
        absent = net.space.absent(shallow(net))
        for n, parameter in net.named_parameters():
            if parameter.grad is None:
                continue
            assert (n in apart[1]) <= (not absent(n))
            total = apart[0][n] + apart[1].get(n, 0)
            torch.testing.assert_close(parameter.grad, total, rtol=1e-4, atol=1e-4)
        before = {n: p.detach().clone() for n, p in net.named_parameters()}
        optimizer.step()
        assert any(not torch.equal(p, before[n]) for n, p in net.named_parameters())
    net.zero_grad()
    alone[1](example(case.shape)).square().sum().backward()
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    optimizer.step()
    for n, parameter in net.named_parameters():
        if absent(n):
            assert parameter.grad is None
            assert torch.equal(parameter, before[n])


def test_recalibration_touches_what_is_there():
    net = supernet("ResNet")
    subnet = net.subnet(narrow(net))
    before = {n: b.clone() for n, b in net.model.named_buffers()}
    net.recalibrate(subnet, [example(nets.IMAGE, seed) for seed in range(3)])
    assert is_calibrated(subnet)
    for n, buffer in net.model.named_buffers():
        assert torch.equal(buffer, before[n])
    hand = nestling.pack(net.subnet(narrow(net))).train()
    for module in hand.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.reset_running_stats()
            module.momentum = None
    for seed in range(3):
        hand(example(nets.IMAGE, seed))
    x = example(nets.IMAGE, 9)
    torch.testing.assert_close(subnet.eval()(x), hand.eval()(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", LIVE)
def test_pack_copy_save_and_load(name):
    net, case = supernet(name), nets.CASES[name]
    subnet = net.subnet(narrow(net)).eval()
    x = example(case.shape, 4)
    expected = subnet(x)
    packed = nestling.pack(subnet)
    file = io.BytesIO()
    torch.save(subnet, file)
    size = net.space.bytes(narrow(net))
    assert file.tell() < size + 100_000
    file.seek(0)
    again = net.subnet(narrow(net)).eval()
    again.load_state_dict(packed.state_dict())
    for other in (
        *(packed, copy.deepcopy(packed), copy.deepcopy(subnet), again),
        torch.load(file, weights_only=False),
    ):
        torch.testing.assert_close(other(x), expected, rtol=0, atol=0)
        assert "passed by" in repr(other)
    with pytest.raises(RuntimeError, match="Missing key"):
        net.subnet(net.space.full).load_state_dict(packed.state_dict())


@pytest.mark.parametrize("name", LIVE)
def test_compile_and_export(name):
    net, case = supernet(name), nets.CASES[name]
    packed = nestling.pack(net.subnet(narrow(net))).eval()
    x = example(case.shape, 4)
    expected = packed(x)
    torch._dynamo.reset()
    compiled = torch.compile(packed, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), expected)
    exported = torch.export.export(packed, (x,))
    torch.testing.assert_close(exported.module()(x), expected)
    live = net.subnet(narrow(net)).eval()
    torch.testing.assert_close(torch.compile(live, backend="aot_eager")(x), expected)
    torch._dynamo.reset()


def test_absorb_and_pool():
    net = supernet("ResNet")
    spec = narrow(net)
    packed = nestling.pack(net.subnet(spec))
    absent = net.space.absent(spec)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    with torch.no_grad():
        for parameter in packed.parameters():
            parameter.add_(1.0)
    x = example(nets.IMAGE, 2)
    back = net.absorb(spec, packed).eval()
    torch.testing.assert_close(back(x), packed.eval()(x))
    for n, parameter in net.named_parameters():
        assert torch.equal(parameter, before[n]) == absent(n), n
    with pytest.raises(SpecError, match="no packed copy"):
        net.absorb(net.space.full, packed)
    before = {n: p.detach().clone() for n, p in net.named_parameters()}
    deeper = nestling.pack(net.subnet(net.space.full))
    shallower = {n: a.counts[0] for n, a in net.space.axes.items() if a.kind == "depth"}
    with pytest.raises(SpecError, match=r"no packed copy .* tensors that the subnet has not"):
        net.absorb(shallower, deeper)  # its tuned blocks would be dropped
    assert all(torch.equal(p, before[n]) for n, p in net.named_parameters())
    assert net.pooled(spec) is net.pooled(dict(spec))
    assert net.pooled(spec) is not net.pooled(net.space.full)


def test_another_dtype_and_threads():
    net = supernet("PreNormNet")
    specs = [{"blocks.depth": count} for count in (1, 2, 3)]
    subnets = [net.subnet(spec).eval() for spec in specs]
    x = example(nets.TOKENS, 2)
    expected = [subnet(x) for subnet in subnets]
    with ThreadPoolExecutor(6) as pool:
        found = list(pool.map(lambda number: subnets[number % 3](x), range(30)))
    for number, out in enumerate(found):
        assert torch.equal(out, expected[number % 3])
    net.to(torch.float64)
    for subnet, out in zip(subnets, expected, strict=True):
        torch.testing.assert_close(subnet(x.double()), out.double(), rtol=1e-4, atol=1e-5)
    counts = [net.space.bytes(net.space.spec(spec)) for spec in specs]
    assert counts == [
        sum(t.numel() * 8 for t in subnet.state_dict().values()) for subnet in subnets
    ]


def test_depth_has_an_order_of_its_own():
    net = supernet("ResNet")
    with pytest.raises(SpecError, match="of kind depth, whose units have an order of their own"):
        net.reorder({"layer1.depth": [2, 1, 0]})
    x = example(nets.IMAGE, 2)
    spec = shallow(net)
    expected = net.subnet(spec).eval()(x)
    orders = {n: list(range(a.size))[::-1] for n, a in net.space.axes.items() if not a.ordered}
    net.reorder({**orders, "layer1.depth": [0, 1, 2]})
    torch.testing.assert_close(net.subnet(spec).eval()(x), expected, rtol=1e-4, atol=1e-5)
    assert net.orders["layer1.depth"] == (0, 1, 2)


def test_widths_leave_depth_alone():
    space = supernet("ResNet").space
    deep = {n: a.size for n, a in space.axes.items() if a.kind == "depth"}
    for spec in (space.spec(width=0.25), space.spec(fraction=0.3), *space.uniform):
        assert {n: spec[n] for n in deep} == deep


def builder_net():
    model = seeded(models.digits_resnet)
    return nestling.Supernet(model, example((2, 1, 8, 8)), step=4)


def digits(count=32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(count, 1, 8, 8, generator=generator)
    labels = torch.randint(10, (count,), generator=generator)
    return list(zip(images.split(16), labels.split(16), strict=True))


def test_a_menu_with_depth_is_saved_and_loaded(tmp_path, unmeasured):
    net = builder_net()
    least = {n: a.counts[0] for n, a in net.space.axes.items()}
    specs = [net.space.full, shallow(net), net.space.spec(least)]
    assert net.space.blocks
    menu = nestling.make_menu(net, specs, digits(), calibrate=digits())
    menu.save(tmp_path / "deep.nest")
    loaded = nestling.load(tmp_path / "deep.nest")
    x = example((3, 1, 8, 8), 8)
    again = nestling.load(tmp_path / "deep.nest", packed=True)
    assert len(menu) == 3
    for entry in menu:
        subnet = net.subnet(entry.spec)
        if entry.spec != net.space.full:
            net.recalibrate(subnet, digits())
        found = loaded(x, subnet=entry.name)
        torch.testing.assert_close(found, subnet.eval()(x))
        torch.testing.assert_close(again(x, subnet=entry.name), found)
    spaces = [made.net.space for made in (menu, loaded.menu)]
    assert spaces[0].blocks == spaces[1].blocks == net.space.blocks


def test_training_methods_keep_the_full_depth(unmeasured):
    net = builder_net()
    menu = nestling.fit(net, digits(), digits(), method="uniform", epochs=1, progress=False)
    deep = {n: a.size for n, a in net.space.axes.items() if a.kind == "depth"}
    assert len(menu)
    for entry in menu:
        assert {n: entry.spec[n] for n in deep} == deep


SMALL = {
    "digits_resnet": ((2, 1, 8, 8), {}),
    "resnet20": ((2, 3, 16, 16), {"width": 8}),
    "mobilenet_v2": ((2, 3, 32, 32), {"width": 0.25, "num_classes": 10}),
}


@pytest.mark.parametrize("name", SMALL)
def test_the_contract_holds_for_builders(name):
    shape, options = SMALL[name]
    model = seeded(getattr(models, name), **options).train()
    with torch.no_grad():
        for seed in range(3):  # statistics that let the signal through
            model(example((8, *shape[1:]), seed))
    net = nestling.Supernet(model, example(shape))
    assert any(axis.kind == "depth" for axis in net.space.axes.values())
    testing.check_supernet(net, example(shape))


@pytest.mark.parametrize("name", ["PreNormNet", "PostNormNet", "PositionBiasNet", "ConvNeXt"])
def test_the_contract_holds_for_nets_of_ones_own(name):
    net, case = supernet(name), nets.CASES[name]
    testing.check_supernet(net, example(case.shape, 3))


# -- libraries -------------------------------------------------------------------------------------


def library():
    """Transformers, which stumbles over a torchvision that was built for another torch."""
    warnings.simplefilter("ignore")
    for op in ("nms", "qnms"):
        with contextlib.suppress(RuntimeError):
            torch.library.define(f"torchvision::{op}", "(Tensor a, Tensor b, float c) -> Tensor")
    transformers = pytest.importorskip("transformers")
    transformers.logging.set_verbosity_error()
    return transformers


def tiny_language_model(name):
    transformers = library()
    usual = {"vocab_size": 50, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
    if name == "gpt2":
        config = transformers.GPT2Config(n_embd=32, n_layer=4, n_head=4, n_positions=32, **usual)
        return transformers.GPT2LMHeadModel(config), "transformer.h.depth", "n_layer"
    config = transformers.LlamaConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=32,
        **usual,
    )
    return transformers.LlamaForCausalLM(config), "model.layers.depth", "num_hidden_layers"


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_with_a_cache_is_that_of_a_shorter_model(name):
    model, axis, layers = seeded(tiny_language_model, name)
    ids = torch.tensor([[5, 7, 11, 13, 17]])
    net = nestling.Supernet(model.eval(), kwargs={"input_ids": ids}, outputs="logits")
    assert net.space.axes[axis].counts == (1, 2, 3, 4)
    for count in (1, 3):
        config = copy.deepcopy(model.config)
        setattr(config, layers, count)
        if getattr(config, "layer_types", None):
            config.layer_types = config.layer_types[:count]
        short = type(model)(config).eval()
        wrong = short.load_state_dict(model.state_dict(), strict=False)
        assert not wrong.missing_keys
        subnet = net.subnet({axis: count}).eval()
        torch.testing.assert_close(subnet(ids).logits, short(ids).logits)
        options = {"max_new_tokens": 8, "do_sample": False}
        for cached in (True, False):
            found = subnet.generate(ids, use_cache=cached, **options)
            assert torch.equal(found, short.generate(ids, use_cache=cached, **options))
        packed = nestling.pack(subnet)
        assert torch.equal(packed.generate(ids, **options), short.generate(ids, **options))


def test_an_encoder_with_norms_after_the_sums_is_a_shorter_one():
    transformers = library()
    config = transformers.BertConfig(
        vocab_size=50,
        hidden_size=32,
        num_hidden_layers=4,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=32,
    )
    model = seeded(transformers.BertForSequenceClassification, config).eval()
    ids = torch.tensor([[5, 7, 11, 13], [1, 2, 3, 4]])
    net = nestling.Supernet(model, kwargs={"input_ids": ids})
    assert net.space.axes["bert.encoder.layer.depth"].counts == (1, 2, 3, 4)
    config = copy.deepcopy(config)
    config.num_hidden_layers = 2
    short = transformers.BertForSequenceClassification(config).eval()
    short.load_state_dict(model.state_dict(), strict=False)
    subnet = net.subnet({"bert.encoder.layer.depth": 2}).eval()
    torch.testing.assert_close(subnet(input_ids=ids).logits, short(input_ids=ids).logits)
    out = F.cross_entropy(subnet(input_ids=ids).logits, torch.tensor([0, 1]))
    out.backward()
    names = {n for n, p in net.named_parameters() if p.grad is not None}
    assert {n.split(".")[3] for n in names if n.startswith("bert.encoder.layer.")} == {"0", "1"}
