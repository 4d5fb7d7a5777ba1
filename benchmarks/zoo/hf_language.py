"""Language models of Hugging Face transformers, and one speech model."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from zoo.registry import Case, architecture, heads_by_name, import_transformers, tokens

QKV = heads_by_name(("query", "key", "value"), "num_attention_heads")


def _model(class_name: str, config_name: str, **config: Any) -> nn.Module:
    """Return a model with random weights."""
    library = import_transformers()
    made: nn.Module = getattr(library, class_name)(getattr(library, config_name)(**config))
    return made


def _decoder(name: str, class_name: str, config_name: str, **config: Any) -> None:
    """Register a causal language model whose scores are needed."""

    def build() -> Case:
        model = _model(class_name, config_name, vocab_size=64, **config)
        return Case(model, (), {"input_ids": tokens()}, "logits")

    architecture(f"transformers/{name}")(build)


def _encoder(
    name: str,
    class_name: str,
    config_name: str,
    heads: Callable[[nn.Module], dict[nn.Module, int]] | None = None,
    **config: Any,
) -> None:
    """Register a classifier of texts, called with a mask as tokenizers return it."""

    def build() -> Case:
        model = _model(class_name, config_name, vocab_size=64, **config)
        numbers = tokens() % 60 + 3  # away from the numbers of padding
        kwargs = {"input_ids": numbers, "attention_mask": torch.ones_like(numbers)}
        return Case(model, (), kwargs, "logits")

    architecture(f"transformers/{name}", heads=heads)(build)


GPT: dict[str, Any] = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 32}
USUAL: dict[str, Any] = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
GATED: dict[str, Any] = {
    **USUAL,
    "intermediate_size": 96,
    "max_position_embeddings": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
GROUPED: dict[str, Any] = {**GATED, "num_key_value_heads": 2}
EXPERTS: dict[str, Any] = {
    "num_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 32,
}
BERT: dict[str, Any] = {**USUAL, "intermediate_size": 128, "max_position_embeddings": 32}

_decoder("gpt2", "GPT2LMHeadModel", "GPT2Config", **GPT, bos_token_id=1, eos_token_id=2)
_decoder("llama", "LlamaForCausalLM", "LlamaConfig", **GROUPED)
_decoder("mistral", "MistralForCausalLM", "MistralConfig", **GROUPED)
_decoder("qwen2", "Qwen2ForCausalLM", "Qwen2Config", **GROUPED)
_decoder("qwen3", "Qwen3ForCausalLM", "Qwen3Config", **GROUPED, head_dim=16)
_decoder(
    "qwen2-moe",
    "Qwen2MoeForCausalLM",
    "Qwen2MoeConfig",
    **GROUPED,
    **EXPERTS,
    shared_expert_intermediate_size=64,
)
_decoder("mixtral", "MixtralForCausalLM", "MixtralConfig", **GROUPED, num_local_experts=4)
_decoder("gemma", "GemmaForCausalLM", "GemmaConfig", **GROUPED, head_dim=16)
_decoder("gemma2", "Gemma2ForCausalLM", "Gemma2Config", **GROUPED, head_dim=16)
_decoder("phi", "PhiForCausalLM", "PhiConfig", **GATED)
_decoder("phi3", "Phi3ForCausalLM", "Phi3Config", **GROUPED)
_decoder("gpt-neox", "GPTNeoXForCausalLM", "GPTNeoXConfig", **GATED)
_decoder("opt", "OPTForCausalLM", "OPTConfig", **USUAL, ffn_dim=96, max_position_embeddings=32)
_decoder("bloom", "BloomForCausalLM", "BloomConfig", hidden_size=64, n_layer=2, n_head=4)
_decoder("falcon", "FalconForCausalLM", "FalconConfig", **USUAL)
_decoder("olmo2", "Olmo2ForCausalLM", "Olmo2Config", **GROUPED)
_decoder(
    "mamba", "MambaForCausalLM", "MambaConfig", hidden_size=32, num_hidden_layers=2, state_size=16
)
_decoder(
    "mamba2",
    "Mamba2ForCausalLM",
    "Mamba2Config",
    hidden_size=32,
    num_hidden_layers=2,
    state_size=16,
    num_heads=8,
    head_dim=8,
    n_groups=1,
    chunk_size=8,
)
_encoder("bert", "BertForSequenceClassification", "BertConfig", QKV, **BERT)
_encoder("roberta", "RobertaForSequenceClassification", "RobertaConfig", QKV, **BERT)
_encoder("electra", "ElectraForSequenceClassification", "ElectraConfig", QKV, **BERT)
_encoder(
    "albert", "AlbertForSequenceClassification", "AlbertConfig", QKV, **BERT, embedding_size=32
)
_encoder(
    "distilbert",
    "DistilBertForSequenceClassification",
    "DistilBertConfig",
    heads_by_name(("q_lin", "k_lin", "v_lin"), "n_heads"),
    dim=64,
    n_layers=2,
    n_heads=4,
    hidden_dim=128,
    max_position_embeddings=32,
)
_encoder(
    "deberta-v2",
    "DebertaV2ForSequenceClassification",
    "DebertaV2Config",
    **BERT,
    relative_attention=True,
    pos_att_type=["p2c", "c2p"],
    position_buckets=8,
    share_att_key=True,
    norm_rel_ebd="layer_norm",
)
_encoder(
    "modernbert",
    "ModernBertForSequenceClassification",
    "ModernBertConfig",
    **GATED,
    cls_token_id=1,
    sep_token_id=2,
    local_attention=4,
)


@architecture("transformers/bert-masked")
def bert_masked() -> Case:
    """BERT as it was trained: the scores' weights are the embedding's."""
    model = _model("BertForMaskedLM", "BertConfig", vocab_size=64, **BERT)
    return Case(model, (), {"input_ids": tokens()}, "logits")


@architecture("transformers/t5")
def t5() -> Case:
    """T5: encoder, decoder, relative bias that the layers share, gated feed-forward."""
    config = {
        "d_model": 64,
        "d_kv": 16,
        "d_ff": 96,
        "num_layers": 2,
        "num_heads": 4,
        "feed_forward_proj": "gated-gelu",
        "decoder_start_token_id": 0,
    }
    model = _model("T5ForConditionalGeneration", "T5Config", vocab_size=64, **config)
    kwargs = {"input_ids": tokens(), "decoder_input_ids": tokens(length=5)}
    return Case(model, (), kwargs, "logits")


@architecture("transformers/bart")
def bart() -> Case:
    """BART: encoder, decoder, cross attention, learned positions."""
    config = {
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "max_position_embeddings": 32,
    }
    model = _model("BartForConditionalGeneration", "BartConfig", vocab_size=64, **config)
    numbers = tokens() % 60 + 3
    return Case(model, (), {"input_ids": numbers, "decoder_input_ids": numbers[:, :5]}, "logits")


@architecture("transformers/whisper")
def whisper() -> Case:
    """Whisper: 1-D convolutions over sound, then an encoder and a decoder."""
    config = {
        "d_model": 64,
        "encoder_layers": 1,
        "decoder_layers": 1,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 96,
        "decoder_ffn_dim": 96,
        "max_source_positions": 16,
        "max_target_positions": 16,
        "num_mel_bins": 8,
        "pad_token_id": 0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "decoder_start_token_id": 1,
    }
    model = _model("WhisperForConditionalGeneration", "WhisperConfig", vocab_size=64, **config)
    kwargs = {"input_features": torch.randn(1, 8, 32), "decoder_input_ids": tokens(1, 5)}
    return Case(model, (), kwargs, "logits")


@architecture("transformers/wav2vec2")
def wav2vec2() -> Case:
    """wav2vec 2.0: strided convolutions over samples, a grouped positional one, an encoder."""
    config = {
        **USUAL,
        "intermediate_size": 96,
        "conv_dim": (32, 32),
        "conv_kernel": (10, 3),
        "conv_stride": (5, 2),
        "num_conv_pos_embeddings": 8,
        "num_conv_pos_embedding_groups": 4,
        "apply_spec_augment": False,
        "classifier_proj_size": 32,
    }
    model = _model("Wav2Vec2ForSequenceClassification", "Wav2Vec2Config", **config)
    return Case(model, (torch.randn(1, 400),), outputs="logits")


@architecture("transformers/llama-full", full=True)
def llama_full() -> Case:
    """A Llama of 150 M parameters with grouped queries, on 16 tokens."""
    config = {
        "hidden_size": 768,
        "intermediate_size": 2048,
        "num_hidden_layers": 16,
        "num_attention_heads": 12,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
    }
    model = _model("LlamaForCausalLM", "LlamaConfig", **config)
    return Case(model, (), {"input_ids": tokens(1, 16, 32000)}, "logits")
