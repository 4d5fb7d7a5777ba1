"""The ecosystem: models of transformers and timm as they are, with their own ways of working."""

import copy
import importlib.util
import json
import os
import random
import warnings

import pytest
import torch

import nestling
from nestling.axes.blueprint import built, shapes_of
from nestling.errors import DataError, UncalibratedWarning
from nestling.testing import check_supernet

os.environ["HF_HUB_OFFLINE"] = "1"
if torch.version.cuda is None and importlib.util.find_spec("torchvision"):
    # torchvision's wheels for CUDA cannot be imported beside a torch without it.
    LIBRARY = torch.library.Library("torchvision", "FRAGMENT")
    for op in ("nms", "qnms"):
        if not hasattr(torch.ops.torchvision, op):
            LIBRARY.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")

transformers = pytest.importorskip("transformers")
transformers.logging.set_verbosity_error()
transformers.logging.disable_progress_bar()

IDS = torch.randint(3, 90, (2, 7), generator=torch.Generator().manual_seed(0))
PIXELS = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def gpt2():
    sizes = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 24}
    config = transformers.GPT2Config(vocab_size=99, bos_token_id=1, eos_token_id=2, **sizes)
    return transformers.GPT2LMHeadModel(config), {"input_ids": IDS}


def llama():
    config = transformers.LlamaConfig(
        vocab_size=99,
        hidden_size=48,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=6,
        num_key_value_heads=3,
        head_dim=10,
        max_position_embeddings=40,
    )
    return transformers.LlamaForCausalLM(config), {"input_ids": IDS}


def bert():
    config = transformers.BertConfig(
        vocab_size=99,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=24,
        num_labels=5,
    )
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    return transformers.BertForSequenceClassification(config), inputs


def vit():
    config = transformers.ViTConfig(
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        image_size=16,
        patch_size=8,
        num_labels=5,
    )
    return transformers.ViTForImageClassification(config), {"pixel_values": PIXELS}


def resnet():
    config = transformers.ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", num_labels=5
    )
    return transformers.ResNetForImageClassification(config), {"pixel_values": PIXELS}


MODELS = {"gpt2": gpt2, "llama": llama, "bert": bert, "vit": vit, "resnet": resnet}
SIZES = {  # what a config calls its sizes, and a tensor that shows each
    "gpt2": {
        "n_embd": lambda m: m.transformer.wte.weight.shape[1],
        "n_inner": lambda m: m.transformer.h[0].mlp.c_fc.weight.shape[1],
        "n_layer": lambda m: len([b for b in m.transformer.h if list(b.parameters())]),
        "n_head": lambda m: m.transformer.h[0].attn.c_proj.weight.shape[0] // 8,
    },
    "llama": {
        "hidden_size": lambda m: m.model.embed_tokens.weight.shape[1],
        "intermediate_size": lambda m: m.model.layers[0].mlp.up_proj.weight.shape[0],
        "num_attention_heads": lambda m: m.model.layers[0].self_attn.q_proj.weight.shape[0] // 10,
        "num_key_value_heads": lambda m: m.model.layers[0].self_attn.k_proj.weight.shape[0] // 10,
    },
    "bert": {
        "hidden_size": lambda m: m.bert.embeddings.word_embeddings.weight.shape[1],
        "intermediate_size": lambda m: m.bert.encoder.layer[0].intermediate.dense.weight.shape[0],
        "num_attention_heads": lambda m: m.bert.pooler.dense.weight.shape[0] // 8,
    },
    "vit": {
        "hidden_size": lambda m: m.classifier.weight.shape[1],
        "intermediate_size": lambda m: m.vit.layers[0].mlp.fc1.weight.shape[0],
        "num_attention_heads": lambda m: m.classifier.weight.shape[1] // 8,
    },
    "resnet": {
        "embedding_size": lambda m: m.resnet.embedder.embedder.convolution.weight.shape[0],
    },
}


class Kept(dict):
    """Supernets, each made when it is first asked for."""

    def __missing__(self, name):
        torch.manual_seed(0)
        model, inputs = MODELS[name]()
        model.eval()
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(0.1 * torch.randn_like(parameter))
        before = copy.deepcopy(model.state_dict()), model.config.to_dict(), set(vars(model))
        net = nestling.Supernet(model, kwargs=inputs)
        now = model.state_dict(), model.config.to_dict(), set(vars(model))
        assert all(torch.equal(before[0][key], value) for key, value in now[0].items())
        assert before[1:] == now[1:]
        self[name] = net, model, inputs
        return self[name]


@pytest.fixture(scope="module")
def kept():
    return Kept()


def quarter(net):
    """Return a spec of at most a quarter of the parameters that the config can tell."""
    space = net.space
    for spec in reversed(space.uniform):
        spec = space.config_spec(spec)
        if space.params(spec) <= 0.25 * space.params(space.full):
            return spec
    raise AssertionError("no spec is that narrow")


def some(net, number, seed=0):
    draw = random.Random(seed)
    axes = net.space.axes.items()
    return [net.space.spec({n: draw.choice(a.counts) for n, a in axes}) for _ in range(number)]


def outputs(model, inputs):
    with torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        return model.eval()(**inputs)


# -- what a subnet is -----------------------------------------------------------------------------


@pytest.mark.parametrize("name", MODELS)
def test_saved_and_loaded_by_the_library(kept, name, tmp_path):
    net, model, inputs = kept[name]
    spec = quarter(net)
    assert net.space.config_conflicts(spec) == []
    small = nestling.pack(net.subnet(spec))
    assert type(small) is type(model)
    for key, size in SIZES[name].items():
        assert getattr(small.config, key) == size(small), key
    small.save_pretrained(tmp_path / "small")
    again = type(model).from_pretrained(tmp_path / "small")
    assert torch.equal(outputs(again, inputs).logits, outputs(small, inputs).logits)
    told, saved = again.config.to_dict(), small.config.to_dict()
    assert {key for key in told if told[key] != saved[key]} <= {"_name_or_path", "architectures"}
    file = (tmp_path / "small" / "model.safetensors").stat().st_size
    state = {tensor.data_ptr(): tensor for tensor in small.state_dict().values()}  # tied ones once
    data = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    assert data < file < data + 200 * len(state)  # nothing but names and places beside the numbers
    whole = {tensor.data_ptr(): tensor for tensor in model.state_dict().values()}
    assert data <= 0.26 * sum(tensor.numel() * tensor.element_size() for tensor in whole.values())


@pytest.mark.parametrize("name", MODELS)
def test_what_cannot_be_told_is_never_loaded_as_another_net(kept, name):
    net, model, inputs = kept[name]
    told = []
    for spec in some(net, 12):
        for spec in (spec, net.space.config_spec(spec)):
            subnet = nestling.pack(net.subnet(spec))
            fits = shapes_of(built(type(model), subnet.config)) == shapes_of(subnet)
            assert fits == (net.space.config_conflicts(spec) == [])
            told.append(fits)
            if fits:
                again = type(model)(copy.deepcopy(subnet.config))
                again.load_state_dict(subnet.state_dict())
                found, expected = outputs(again, inputs).logits, outputs(subnet, inputs).logits
                assert torch.allclose(found, expected, atol=1e-6)
    assert any(told)
    assert not all(told)


def test_a_live_subnet_is_saved_packed_and_says_what_its_config_cannot(kept, tmp_path):
    net, model, _ = kept["gpt2"]
    spec = quarter(net)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        net.subnet(spec).save_pretrained(tmp_path / "live")
        nestling.pack(net.subnet(spec)).save_pretrained(tmp_path / "packed")
    sizes = [(tmp_path / x / "model.safetensors").stat().st_size for x in ("live", "packed")]
    assert sizes[0] == sizes[1]
    one, other = (axis for axis in net.space.axes if axis.endswith("mlp.c_fc"))
    uneven = net.subnet({one: 64, other: 32})
    with pytest.warns(UserWarning, match=r"config\.n_inner.*keeps 64"):
        uneven.save_pretrained(tmp_path / "uneven")
    with pytest.raises(RuntimeError, match="mismatch"):
        type(model).from_pretrained(tmp_path / "uneven")
    assert json.loads((tmp_path / "uneven" / "config.json").read_text())["n_inner"] is None


def test_each_subnet_has_a_config_of_its_own(kept):
    net, model, _ = kept["bert"]
    small, full = net.subnet(quarter(net)), net.subnet(net.space.full)
    assert small.config.hidden_size < full.config.hidden_size == model.config.hidden_size == 32
    assert small.bert.config is small.config  # one object, as in the model
    assert small.bert.encoder.config is small.config
    assert net.model.config.to_dict() == model.config.to_dict()


def test_numbers_that_share_an_axis_are_true_together_or_not_at_all(kept):
    """Else layers of other heads and the same products would load as another net in silence."""
    settings = kept["bert"][0].space.settings
    shared = [
        (one, other)
        for one in settings
        for other in settings
        if one.name != other.name and one.axes() & other.axes()
    ]
    assert shared
    assert all(one.agree == other.agree for one, other in shared)


def test_the_ways_of_the_library_work_on_a_subnet(kept):
    net, _, _ = kept["bert"]
    spec = quarter(net)
    small = net.subnet(spec)
    assert small.device == torch.device("cpu")
    assert small.dtype == torch.float32
    assert small.num_parameters() == net.space.params(spec)
    assert small.get_input_embeddings().weight.shape == (99, small.config.hidden_size)
    assert f"Embedding(99, {small.config.hidden_size}, padding_idx=0)" in repr(small)


@pytest.mark.parametrize("name", ["gpt2", "llama"])
def test_generation_with_its_cache(kept, name):
    net, _, _ = kept[name]
    for spec in (quarter(net), some(net, 1)[0]):
        subnet = net.subnet(spec).eval()
        packed = nestling.pack(subnet)
        options = {"max_new_tokens": 8, "do_sample": False, "pad_token_id": 0}
        prompt = {"input_ids": IDS[:, :4], "attention_mask": torch.ones_like(IDS[:, :4])}
        cached = subnet.generate(**prompt, **options)
        assert cached.shape[1] > 4
        assert torch.equal(cached, packed.generate(**prompt, **options))
        assert torch.equal(cached, packed.generate(**prompt, **options, use_cache=False))


def test_the_contracts_hold(kept):
    net, _, inputs = kept["bert"]
    check_supernet(net, **inputs)


# -- training, menus and files --------------------------------------------------------------------


def batches(number, seed=0):
    """Sequences whose first token is one or another, as a collator yields them."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for _ in range(number):
        ids = torch.randint(3, 99, (16, 7), generator=generator)
        mask = torch.ones_like(ids)
        ids[:, 0] = ids[:, 1] % 2 + 3
        found.append({"input_ids": ids, "attention_mask": mask, "labels": ids[:, 0] - 3})
    return found


def test_batches_of_keywords_train_evaluate_save_and_load(kept, tmp_path, unmeasured):
    net, model, _ = kept["bert"]
    net = copy.deepcopy(net)
    train, val = batches(12), batches(3, seed=1)
    untrained = nestling.evaluate(net.subnet(net.space.full), val)
    menu = nestling.fit(
        net,
        train,
        val,
        epochs=3,
        optimizer=lambda p: torch.optim.AdamW(p, lr=3e-3),
        progress=False,
        precision="float32",
    )
    assert menu.full.accuracy > max(untrained, 0.8)
    path = menu.save(tmp_path / "bert.nest")
    loaded = nestling.load(path, model=type(model)(copy.deepcopy(model.config)))
    keywords = {key: value for key, value in val[0].items() if key != "labels"}
    name = menu.entries[-1].name
    found = loaded(**keywords, subnet=name)
    assert type(found) is type(outputs(model, keywords))
    assert torch.equal(found.logits, outputs(menu.module(name), keywords).logits)
    assert loaded.subnet(name).config.hidden_size == menu.module(name).config.hidden_size < 32
    score = nestling.evaluate(loaded.subnet(name), [transformers.BatchEncoding(val[0])])
    right = outputs(loaded.subnet(name), keywords).logits.argmax(1) == val[0]["labels"]
    assert score == pytest.approx(float(right.double().mean()))


def test_the_model_s_own_loss_is_the_usual_one(kept):
    net, model, _ = kept["bert"]
    (batch,) = batches(1)
    found = outputs(model, batch)
    from nestling.objectives.sandwich import soft_cross_entropy, task_loss

    assert torch.equal(task_loss(found, None), found.loss)
    without = outputs(model, {k: v for k, v in batch.items() if k != "labels"})
    expected = torch.nn.functional.cross_entropy(without.logits, batch["labels"])
    assert torch.allclose(task_loss(without, batch["labels"]), expected)
    other = outputs(net.subnet(quarter(net)), batch)
    expected = -(found.logits.softmax(1) * other.logits.log_softmax(1)).sum(1).mean()
    assert torch.allclose(soft_cross_entropy(other, found), expected, atol=1e-6)


def test_a_loop_of_ones_own(kept):
    net = copy.deepcopy(kept["gpt2"][0])
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3)
    text = {"input_ids": IDS, "labels": IDS}
    losses = []
    for _ in range(8):
        for subnet, loss in nestling.sandwich(net, loss=lambda out, labels: out.loss):
            value = loss(subnet(**text), text["labels"])
            value.backward()
            losses.append(float(value.detach()))
        optimizer.step()
        optimizer.zero_grad()
    assert losses[-4] < 0.8 * losses[0]
    assert losses[-1] < losses[3]
    for subnet, loss in nestling.sandwich(net):  # learns from the scores of all tokens
        loss(subnet(**text), text["labels"]).backward()
    assert all(parameter.grad is not None for parameter in net.parameters())


def test_a_sequence_needs_a_metric_before_it_is_trained(kept, unmeasured):
    net = copy.deepcopy(kept["gpt2"][0])
    text = [{"input_ids": IDS, "labels": IDS}]
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(DataError, match="give metric="):
        nestling.fit(net, text, text, epochs=1, progress=False)
    assert all(torch.equal(before[key], value) for key, value in net.state_dict().items())
    menu = nestling.make_menu(net, [quarter(net)], text, metric=lambda out, labels: -out.loss)
    assert menu.full.accuracy == pytest.approx(-float(outputs(net.model, text[0]).loss), abs=1e-5)


def test_masks_are_made_up_as_they_were_given(kept):
    net, _, _ = kept["bert"]
    args, made = net.signature.example(3, torch.device("cpu"))
    assert args == []
    assert made["attention_mask"].shape == (3, 7)
    assert bool((made["attention_mask"] == 1).all())
    assert bool((made["input_ids"] == 0).all())
    assert type(net.signature).from_json(net.signature.to_json()) == net.signature


# -- timm -----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def timm():
    return pytest.importorskip("timm")


TIMM = {
    "resnet10t": {"num_classes": 5},
    "vit_tiny_patch16_224": {
        "img_size": 32,
        "embed_dim": 32,
        "depth": 2,
        "num_heads": 4,
        "num_classes": 5,
    },
    "convnext_atto": {"num_classes": 5, "dims": (8, 16, 32, 64), "depths": (1, 1, 2, 1)},
}


@pytest.mark.parametrize("name", TIMM)
def test_timm(timm, name, tmp_path):
    torch.manual_seed(0)
    model = timm.create_model(name, **TIMM[name]).eval()
    x = torch.randn(2, 3, 32, 32)
    net = nestling.Supernet(model, x)
    assert net.space.elastic_share() > 0.9
    spec = net.space.spec(width=0.5)
    subnet = nestling.pack(net.subnet(spec)).eval()
    assert type(subnet) is type(model)
    features = subnet.forward_features(x)
    pooled = subnet.forward_head(features, pre_logits=True)
    head = subnet.get_classifier()
    assert head.in_features == pooled.shape[1] < model.get_classifier().in_features
    assert torch.allclose(subnet.forward_head(features), subnet(x), atol=1e-6)
    torch.save(subnet.state_dict(), tmp_path / "state.pt")
    twin = nestling.pack(net.subnet(spec)).eval()
    with torch.no_grad():
        for tensor in twin.parameters():
            tensor.zero_()
    twin.load_state_dict(torch.load(tmp_path / "state.pt"))
    assert torch.equal(twin(x), subnet(x))
    data = sum(t.numel() * t.element_size() for t in subnet.state_dict().values())
    size = (tmp_path / "state.pt").stat().st_size
    assert data < size < data + 1000 * len(subnet.state_dict())
