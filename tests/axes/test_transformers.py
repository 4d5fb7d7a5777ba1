"""Models of transformers as they are: every axis by name, and cut nets against smaller configs."""

from __future__ import annotations

import copy
import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import nestling
from nestling.axes.structure import tensors_in
from nestling.errors import UncalibratedWarning
from nestling.supernet import Supernet
from nestling.testing import check_masked, check_order

library = torch.library.Library("torchvision", "FRAGMENT")
if torch.version.cuda is None and not hasattr(torch.ops.torchvision, "nms"):
    # transformers asks for torchvision, which cannot be imported beside a torch without its C++.
    for op in ("nms", "qnms"):
        library.define(f"{op}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
hf = pytest.importorskip("transformers")

IDS = torch.randint(3, 50, (2, 6), generator=torch.Generator().manual_seed(0))
IMAGE = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
TEXT = {
    "vocab_size": 50,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "max_position_embeddings": 16,
}
SIGHT = {key: TEXT[key] for key in list(TEXT)[1:5]} | {"image_size": 16, "patch_size": 8}
GROUPED = TEXT | {"num_key_value_heads": 2, "head_dim": 8, "pad_token_id": 0}
PLAIN = {"use_cache": False}
BOTH = {"input_ids": IDS, "decoder_input_ids": IDS[:, :4], **PLAIN}


def bert(**sizes: int) -> nn.Module:
    return hf.BertForSequenceClassification(hf.BertConfig(**TEXT | sizes))


def vit(**sizes: int) -> nn.Module:
    return hf.ViTForImageClassification(hf.ViTConfig(**SIGHT | sizes))


def gpt2(**sizes: int) -> nn.Module:
    own = {"vocab_size": 50, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 16}
    return hf.GPT2LMHeadModel(hf.GPT2Config(**own | sizes))


def llama(**sizes: int) -> nn.Module:
    return hf.LlamaForCausalLM(hf.LlamaConfig(**GROUPED | sizes))


def t5(**sizes: int) -> nn.Module:
    own = {"vocab_size": 50, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_heads": 4}
    return hf.T5ForConditionalGeneration(hf.T5Config(**own | sizes))


def phi3(**sizes: int) -> nn.Module:
    return hf.Phi3ForCausalLM(hf.Phi3Config(**GROUPED | {"num_attention_heads": 6} | sizes))


def mixtral(**sizes: int) -> nn.Module:
    own = GROUPED | {"num_local_experts": 4, "num_experts_per_tok": 2}
    return hf.MixtralForCausalLM(hf.MixtralConfig(**own | sizes))


def mamba(**sizes: int) -> nn.Module:
    own = {"vocab_size": 50, "hidden_size": 32, "num_hidden_layers": 2, "state_size": 4}
    return hf.MambaForCausalLM(hf.MambaConfig(**own | {"time_step_rank": 2} | sizes))


def swin() -> nn.Module:
    sizes = {"embed_dim": 16, "depths": [1, 1], "num_heads": [2, 4]}
    config = hf.SwinConfig(image_size=16, patch_size=2, window_size=4, **sizes)
    return hf.SwinForImageClassification(config)


def clip() -> nn.Module:
    text = TEXT | {"bos_token_id": 0, "pad_token_id": 1, "eos_token_id": 49}
    config = hf.CLIPConfig(text_config=text, vision_config=SIGHT, projection_dim=24)
    return hf.CLIPModel(config)


def gptneox() -> nn.Module:
    return hf.GPTNeoXForCausalLM(hf.GPTNeoXConfig(**TEXT))


Family = tuple[Callable[..., nn.Module], dict[str, Any], Any, dict[str, int]]

# Builder, inputs, needed outputs, and how many axes of each kind there are.
FAMILIES: dict[str, Family] = {
    "bert": (bert, {"input_ids": IDS}, None, {"heads": 2, "head_size": 2, "embedding": 1}),
    "vit": (vit, {"pixel_values": IMAGE}, None, {"heads": 2, "head_size": 2}),
    "gpt2": (gpt2, {"input_ids": IDS, **PLAIN}, None, {"heads": 2, "head_size": 2}),
    "llama": (llama, {"input_ids": IDS, **PLAIN}, None, {"heads": 4, "head_size": 1}),
    "t5": (t5, BOTH, "logits", {"heads": 3, "head_size": 6, "embedding": 1}),
    "phi3": (phi3, {"input_ids": IDS, **PLAIN}, None, {"heads": 2, "head_size": 1}),
    "mixtral": (mixtral, {"input_ids": IDS, **PLAIN}, None, {"heads": 4, "head_size": 1}),
    "mamba": (mamba, {"input_ids": IDS, **PLAIN}, None, {"embedding": 1}),
    "swin": (swin, {"pixel_values": IMAGE}, None, {"heads": 2, "head_size": 2}),
    "clip": (
        clip,
        {"input_ids": IDS, "pixel_values": IMAGE},
        ["logits_per_image"],
        {"heads": 4, "head_size": 4},
    ),
    "gptneox": (gptneox, {"input_ids": IDS, **PLAIN}, None, {"heads": 2, "head_size": 2}),
}

# What a spec keeps of every axis of a kind, and the config of the net of that shape. Sizes by which
# the code divides a number once, when it is made, stay: a subnet's numbers are the full net's.
SMALLER = {
    "bert": (
        {"embedding": 16, "heads": 2, "neurons": 24},
        {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    ),
    "vit": (
        {"embedding": 16, "channels": 16, "heads": 2, "neurons": 24},
        {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 24},
    ),
    "gpt2": (
        {"embedding": 8, "heads": 2, "head_size": 4, "neurons": 32},
        {"n_embd": 8, "n_head": 2, "n_inner": 32},
    ),
    "llama": (
        {"embedding": 16, "heads": 1, "neurons": 24},
        {
            "hidden_size": 16,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "intermediate_size": 24,
        },
    ),
    "t5": (
        {"heads": 3, "head_size": 4, "neurons": 24},
        {"num_heads": 3, "d_kv": 4, "d_ff": 24},
    ),
    "phi3": (
        {"embedding": 16, "heads": 1, "neurons": 24},
        {
            "hidden_size": 16,
            "num_attention_heads": 1,
            "num_key_value_heads": 1,
            "intermediate_size": 24,
        },
    ),
    "mixtral": ({"embedding": 16, "neurons": 24}, {"hidden_size": 16, "intermediate_size": 24}),
    "mamba": ({"embedding": 16}, {"hidden_size": 16, "intermediate_size": 64, "expand": 4}),
}


@pytest.fixture(autouse=True)
def _quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UncalibratedWarning)
        yield


@functools.cache
def made(name: str) -> tuple[nn.Module, dict[str, Any], Supernet]:
    build, inputs, outputs, _ = FAMILIES[name]
    torch.manual_seed(0)
    model = build().eval()
    return model, inputs, Supernet(model, kwargs=inputs, outputs=outputs)


@pytest.mark.parametrize("name", FAMILIES)
def test_all_is_elastic(name):
    _, _, net = made(name)
    found: dict[str, int] = {}
    for axis in net.space.axes.values():
        found[axis.kind] = found.get(axis.kind, 0) + 1
    expected = FAMILIES[name][3]
    assert {kind: found.get(kind) for kind in expected} == expected, net.space
    assert net.space.elastic_share() > 0.98, net.space


@pytest.mark.parametrize("name", SMALLER)
def test_subnet_is_the_net_of_a_smaller_config(name):
    """The class itself, made for the smaller sizes, computes the same with the same weights."""
    _, inputs, net = made(name)
    kept, sizes = SMALLER[name]
    counts = {n: kept.get(a.kind, a.size) for n, a in net.space.axes.items()}
    for pooler in (n for n in counts if "pooler" in n):
        counts[pooler] = 16  # no config has a pooler of its own width
    packed = nestling.pack(net.subnet(counts)).eval()
    other = FAMILIES[name][0](**sizes).eval()
    other.load_state_dict(packed.state_dict(), strict=True)
    with torch.no_grad():
        expected, got = other(**inputs), packed(**inputs)
    assert any(axis.size > counts[n] for n, axis in net.space.axes.items())
    torch.testing.assert_close(got.logits, expected.logits)


@pytest.mark.parametrize("name", ["swin", "bert"])
def test_subnet_is_the_masked_model(name):
    _, inputs, net = made(name)
    check_masked(net, **inputs)
    check_order(net, **inputs)


def test_shared_config_is_the_subnets_own():
    model, _, net = made("phi3")
    before = copy.deepcopy(model.config)
    heads = next(n for n, axis in net.space.axes.items() if axis.kind == "heads")
    subnet = net.subnet({heads: 1, "model.layers.depth": 2})
    held = {id(m.config) for m in subnet.modules() if hasattr(m, "config")}
    assert len(held) == 1
    assert subnet.config is not net.model.config
    assert subnet.config is not model.config
    assert subnet.config.num_attention_heads == 3
    assert [layer.self_attn.num_key_value_heads for layer in subnet.model.layers] == [1, 1]
    assert net.model.config.to_dict() == model.config.to_dict() == before.to_dict()


def test_gradients_reach_the_kept_weights_only():
    _, inputs, net = made("llama")
    least = {n: a.counts[0] for n, a in net.space.axes.items() if a.kind != "depth"}
    spec = net.space.spec(least)
    net.zero_grad()
    subnet = net.subnet(spec)
    loss: Tensor = tensors_in(subnet(**inputs))[0].square().mean()
    loss.backward()
    for name, parameter in net.model.named_parameters():
        extents = net.space.layouts[name].shape(spec)
        assert parameter.grad is not None, name
        assert int((parameter.grad != 0).sum()) <= int(torch.Size(extents).numel()), name
    net.zero_grad()
