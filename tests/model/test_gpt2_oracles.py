"""GPT2 against independent implementations in transformers: the same weights give the same logits, loss and gradients.

GPT-2 with learned positions is GPT2LMHeadModel, with one key/value head GPTBigCode, with rotary positions Starcoder2
(whose sliding window counts the query itself, as ours does).
"""

import pytest
import torch
import transformers

from .tiny import V, close, each_kv_heads, each_window, tiny_model, tokens

GPT2_NAMES = {
    "embedding.": "transformer.wte.",
    "positions.table.": "transformer.wpe.",
    "blocks.": "transformer.h.",
    "norm_1.": "ln_1.",
    "norm_2.": "ln_2.",
    "attention.qkv.": "attn.c_attn.",
    "attention.output.": "attn.c_proj.",
    "mlp.input.": "mlp.c_fc.",
    "mlp.output.": "mlp.c_proj.",
}
STARCODER2_NAMES = {
    "embedding.": "model.embed_tokens.",
    "blocks.": "model.layers.",
    "norm_1.": "input_layernorm.",
    "norm_2.": "post_attention_layernorm.",
    "attention.qkv.": "self_attn.qkv.",
    "attention.output.": "self_attn.o_proj.",
    "mlp.input.": "mlp.c_fc.",
    "mlp.output.": "mlp.c_proj.",
}


def renamed(tensors, names, last_norm):
    for name, tensor in tensors.items():
        name = last_norm + name.removeprefix("norm.") if name.startswith("norm.") else name
        for ours, theirs in names.items():
            name = name.replace(ours, theirs)
        yield name, tensor


def as_gpt2(tensors, config):
    """transformers' GPT-2 stores projections [in, out]."""
    transposed = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    names = renamed(tensors, GPT2_NAMES, "transformer.ln_f.")
    return {name: x.t() if name.endswith(transposed) else x for name, x in names}


def as_bigcode(tensors, config):
    return dict(renamed(tensors, GPT2_NAMES, "transformer.ln_f."))


def as_starcoder2(tensors, config):
    """Starcoder2 keeps queries, keys and values apart."""
    rows = [heads * config.head_dim for heads in (config.n_head, config.kv_heads, config.kv_heads)]
    result = {}
    for name, x in renamed(tensors, STARCODER2_NAMES, "model.norm."):
        if ".qkv." in name:
            result |= {name.replace("qkv", f"{part}_proj"): y for part, y in zip("qkv", x.split(rows), strict=True)}
        else:
            result[name] = x
    return result


def assert_same_function(model, oracle, translate, T=32):
    """Logits, loss and the gradient of every weight."""
    state = translate(model.state_dict(), model.config)
    missing, unexpected = oracle.load_state_dict(state, strict=False)
    assert unexpected == [] and set(missing) <= {"lm_head.weight"}
    oracle.tie_weights()
    oracle.eval()
    text = tokens(3, T)
    with torch.no_grad():
        close(model(text), oracle(text).logits, 1e-4)

    loss, expected = model.loss(text[:, :-1], text[:, 1:]), oracle(text, labels=text).loss
    close(loss, expected)
    loss.backward()
    expected.backward()
    gradients = translate({name: p.grad for name, p in model.named_parameters()}, model.config)
    theirs = {name: p.grad for name, p in oracle.named_parameters() if name != "lm_head.weight"}
    assert gradients.keys() == theirs.keys()
    for name, gradient in gradients.items():
        assert gradient.abs().max() > 1e-4, name
        close(gradient, theirs[name], 1e-4)


def test_baseline_is_gpt2():
    config = transformers.GPT2Config(vocab_size=V, n_positions=32, n_embd=32, n_layer=2, n_head=4, attn_implementation="eager")
    assert_same_function(tiny_model(), transformers.GPT2LMHeadModel(config), as_gpt2)


def test_one_key_value_head_is_multi_query_bigcode():
    config = transformers.GPTBigCodeConfig(
        vocab_size=V, n_positions=32, n_embd=32, n_layer=2, n_head=4, multi_query=True,
        activation_function="gelu_pytorch_tanh", attn_implementation="eager",
    )  # fmt: skip
    assert_same_function(tiny_model(n_kv_head=1), transformers.GPTBigCodeForCausalLM(config), as_bigcode)


@each_kv_heads
@each_window
@pytest.mark.parametrize("T", [32, 33])
def test_rotary_is_starcoder2(n_kv_head, window, T):
    config = transformers.Starcoder2Config(
        vocab_size=V, hidden_size=32, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=n_kv_head or 4, sliding_window=window, max_position_embeddings=64,
        hidden_act="gelu_pytorch_tanh", norm_epsilon=1e-5, use_bias=True, tie_word_embeddings=True,
        bos_token_id=0, eos_token_id=0, attn_implementation="eager",
    )  # fmt: skip
    model = tiny_model(positions="rotary", n_kv_head=n_kv_head, window=window)
    assert_same_function(model, transformers.Starcoder2ForCausalLM(config), as_starcoder2, T)
