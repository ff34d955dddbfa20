"""The architectures of `transformers` that are one of our variants: what each calls our tensors and our settings.

One table serves both directions, reading and writing. A block of ours is

- GPT-2's, with learned positions and as many key/value heads as query heads;
- GPTBigCode's (`multi_query`), with learned positions and one key/value head;
- Starcoder2's, with rotary positions, any number of key/value heads and any window.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from gpt2_ablate.data.tokenizer import END_OF_TEXT_ID
from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2Config

Settings = dict[str, Any]

GELU = ("gelu_new", "gelu_pytorch_tanh")  # two names of the tanh approximation
EPSILON = 1e-5

_GPT2_NAMES: dict[str, str | tuple[str, ...]] = {
    "embedding": "wte",
    "positions.table": "wpe",
    "blocks.N.norm_1": "h.N.ln_1",
    "blocks.N.attention.qkv": "h.N.attn.c_attn",
    "blocks.N.attention.output": "h.N.attn.c_proj",
    "blocks.N.norm_2": "h.N.ln_2",
    "blocks.N.mlp.input": "h.N.mlp.c_fc",
    "blocks.N.mlp.output": "h.N.mlp.c_proj",
    "norm": "ln_f",
}
_STARCODER2_NAMES: dict[str, str | tuple[str, ...]] = {
    "embedding": "embed_tokens",
    "blocks.N.norm_1": "layers.N.input_layernorm",
    "blocks.N.attention.qkv": tuple(f"layers.N.self_attn.{part}_proj" for part in "qkv"),
    "blocks.N.attention.output": "layers.N.self_attn.o_proj",
    "blocks.N.norm_2": "layers.N.post_attention_layernorm",
    "blocks.N.mlp.input": "layers.N.mlp.c_fc",
    "blocks.N.mlp.output": "layers.N.mlp.c_proj",
    "norm": "norm",
}


@dataclass(frozen=True)
class Place:
    """Where an architecture keeps one of our tensors: rows of it in each of `names`, one below the other.

    `transposed`: each is stored [in, out], where ours are [out, in].
    """

    names: tuple[str, ...]
    rows: tuple[int, ...]
    transposed: bool


@dataclass(frozen=True)
class Architecture:
    """One of transformers' architectures.

    Attributes:
        model_type, class_name: as config.json names it.
        prefix: of all tensors but the head, in files that were written with the head.
        head: name of the head's weights, where a file has them.
        buffers: pattern of tensors that are constants, not weights.
        names: our module -> its name, or names where it keeps queries, keys and values apart; N is the layer.
        transposed: projections are stored [in, out].
        fields: the fields of `GPT2Config` that it can say, beside sizes and heads.
        read: config.json -> a config; raises UserError where it is another function.
        write: a config -> config.json, but for what all architectures share.
    """

    model_type: str
    class_name: str
    prefix: str
    names: dict[str, str | tuple[str, ...]]
    transposed: bool
    fields: frozenset[str]
    read: Callable[[Settings], GPT2Config]
    write: Callable[[GPT2Config], Settings]
    head: str = "lm_head.weight"
    buffers: str = r"h\.\d+\.attn\.(bias|masked_bias)|layers\.\d+\.self_attn\.rotary_emb\.inv_freq"

    def place(self, name: str, shape: tuple[int, ...], config: GPT2Config) -> Place:
        """Where our tensor `name` of that shape is kept."""
        module, _, leaf = name.rpartition(".")
        layer = next(iter(re.findall(r"\.(\d+)\.", module)), "")
        kept = self.names[re.sub(r"\.\d+\.", ".N.", module)]
        names = tuple(f"{n.replace('.N.', f'.{layer}.')}.{leaf}" for n in ([kept] if isinstance(kept, str) else kept))
        heads = (config.n_head, config.kv_heads, config.kv_heads)
        rows = shape[:1] if len(names) == 1 else tuple(h * config.head_dim for h in heads)
        projection = module.startswith("blocks.") and len(shape) == 2
        return Place(names, rows, self.transposed and projection)

    def settings(self, config: GPT2Config) -> Settings:
        """config.json of a model of this architecture."""
        end = END_OF_TEXT_ID if config.vocab_size > END_OF_TEXT_ID else None  # of another tokenizer, and unknown here
        return {
            "architectures": [self.class_name], "model_type": self.model_type, **self.write(config), "bos_token_id": end,
            "eos_token_id": end, "tie_word_embeddings": True, "use_cache": True, "dtype": "float32",
        }  # fmt: skip


def _require(settings: Settings, key: str, *allowed: Any) -> None:
    """The first of `allowed` is what the architecture takes where the key is missing."""
    found = settings.get(key, allowed[0])
    if found not in allowed:
        raise UserError(f"{key}: {found!r} makes another function than GPT-2's; it has to be {allowed[0]!r}")


def _read_gpt2(settings: Settings, **also: Any) -> GPT2Config:
    for key in ("scale_attn_weights", "tie_word_embeddings"):
        _require(settings, key, True)
    for key in ("scale_attn_by_inverse_layer_idx", "add_cross_attention"):
        _require(settings, key, False)
    _require(settings, "activation_function", *GELU)
    _require(settings, "layer_norm_epsilon", EPSILON)
    sizes: Settings = {key: settings[key] for key in ("vocab_size", "n_layer", "n_head", "n_embd") if key in settings}
    sizes["block_size"] = settings.get("n_positions", settings.get("n_ctx", GPT2Config.block_size))
    config = GPT2Config(**sizes, **also)
    _require(settings, "n_inner", None, 4 * config.n_embd)
    return config


def _write_gpt2(config: GPT2Config) -> Settings:
    return {
        "vocab_size": config.vocab_size, "n_positions": config.block_size, "n_embd": config.n_embd, "n_layer": config.n_layer,
        "n_head": config.n_head, "activation_function": "gelu_new", "layer_norm_epsilon": EPSILON, "initializer_range": 0.02,
        "resid_pdrop": config.dropout, "embd_pdrop": config.dropout, "attn_pdrop": config.dropout,
    }  # fmt: skip


def _read_bigcode(settings: Settings) -> GPT2Config:
    _require(settings, "multi_query", True)
    return _read_gpt2(settings, n_kv_head=1)


def _write_bigcode(config: GPT2Config) -> Settings:
    return {**_write_gpt2(config), "activation_function": "gelu_pytorch_tanh", "multi_query": True}


_STARCODER2_SIZES = {
    "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_embd": "hidden_size", "n_kv_head": "num_key_value_heads",
}  # fmt: skip


def _read_starcoder2(settings: Settings) -> GPT2Config:
    for key in ("use_bias", "tie_word_embeddings"):
        _require(settings, key, True)
    _require(settings, "hidden_act", *GELU[::-1])
    _require(settings, "norm_epsilon", EPSILON)
    for theirs in _STARCODER2_SIZES.values():
        if theirs not in settings:
            raise UserError(f"{theirs}: is not there; give the size of the model")
    sizes = {ours: settings[theirs] for ours, theirs in _STARCODER2_SIZES.items()}
    window = settings.get("sliding_window")
    config = GPT2Config(**sizes, positions="rotary", window=window, **_read_rope(settings, sizes["block_size"]))
    _require(settings, "intermediate_size", 4 * config.n_embd)
    _require(settings, "head_dim", None, config.head_dim)
    return config


def _read_rope(settings: Settings, block_size: int) -> Settings:
    # Before transformers 5 the base stood beside the scaling.
    found = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise UserError(f"rope_parameters: {found!r} has to be an object with rope_type and rope_theta")
    rope = dict(found)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    fields = {"rope_base": rope.pop("rope_theta", settings.get("rope_theta", GPT2Config.rope_base))}
    if kind in ("linear", "yarn"):
        fields |= {"rope_scaling": kind, "rope_factor": rope.pop("factor", None)}
    if kind == "yarn" and rope.get("original_max_position_embeddings") == block_size / (fields["rope_factor"] or 1):
        rope.pop("original_max_position_embeddings")
    if kind not in ("default", "linear", "yarn") or rope:
        raise UserError(f"rope_parameters: {found!r} scales positions as no variant here does; rope_type has to be 'default'")
    return fields


def _write_starcoder2(config: GPT2Config) -> Settings:
    rope = _write_rope(config)
    window = config.window[0] if isinstance(config.window, tuple) else config.window
    return {
        **{theirs: getattr(config, ours) for ours, theirs in _STARCODER2_SIZES.items()}, "num_key_value_heads": config.kv_heads,
        "intermediate_size": 4 * config.n_embd, "sliding_window": window, "rope_parameters": rope,
        "rope_theta": rope["rope_theta"],  # where transformers before version 5 looks for it
        "hidden_act": "gelu_pytorch_tanh", "norm_epsilon": EPSILON, "initializer_range": 0.02, "use_bias": True,
        "residual_dropout": config.dropout, "embedding_dropout": config.dropout, "attention_dropout": config.dropout,
    }  # fmt: skip


def _write_rope(config: GPT2Config) -> Settings:
    base, s, D = float(config.rope_base), config.rope_factor, config.head_dim
    match config.rope_scaling:
        case "linear":
            return {"rope_type": "linear", "rope_theta": base, "factor": s}
        case "yarn":
            return {
                "rope_type": "yarn",
                "rope_theta": base,
                "factor": s,
                "original_max_position_embeddings": config.block_size / s,
            }
        case "ntk":  # at a fixed length it is another base; "dynamic" would turn keys by a base that later tokens change
            return {"rope_type": "default", "rope_theta": base * s ** (D / (D - 2))}
    return {"rope_type": "default", "rope_theta": base}


ARCHITECTURES = {
    "gpt2": Architecture(
        "gpt2", "GPT2LMHeadModel", "transformer.", _GPT2_NAMES, transposed=True, fields=frozenset(),
        read=_read_gpt2, write=_write_gpt2,
    ),
    "gpt_bigcode": Architecture(
        "gpt_bigcode", "GPTBigCodeForCausalLM", "transformer.", _GPT2_NAMES, transposed=False, fields=frozenset(),
        read=_read_bigcode, write=_write_bigcode,
    ),
    "starcoder2": Architecture(
        "starcoder2", "Starcoder2ForCausalLM", "model.", _STARCODER2_NAMES, transposed=False,
        fields=frozenset({"positions", "window", "rope_base", "rope_interleaved", "rope_scaling", "rope_factor"}),
        read=_read_starcoder2, write=_write_starcoder2,
    ),
}  # fmt: skip
