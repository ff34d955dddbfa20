"""The architectures of `transformers` that compute what one of our variants computes: their names of tensors and settings.

One table serves both directions, reading and writing; which variant is which is in `export_huggingface`.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from gpt2_ablate.data.tokenizer import SMALLEST, end_of_text_id
from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2Config

Settings = dict[str, Any]


@dataclass(frozen=True)
class Architecture:
    """One of transformers' architectures."""

    model_type: str  # as config.json names it, and so is the next
    class_name: str
    prefix: str  # of all tensors but the head, in files that were written with the head
    names: dict[str, str]  # our module -> its name; N is the layer, ? one of q, k and v where it keeps them apart
    transposed: bool  # whether projections are stored [in, out]; ours are [out, in]
    sizes: dict[str, str]  # field of GPT2Config -> its key in config.json
    constants: dict[str, tuple[Any, ...]]  # key -> values of our function; the first is written, and meant where there is none
    mlp_width: str  # the key of 4 C
    dropout: tuple[str, ...]  # the keys of our one probability
    fields: frozenset[str] = frozenset()  # of GPT2Config, beside sizes, heads and dropout
    read_fields: Callable[[Settings], Settings] = lambda settings: {}  # config.json -> these fields
    write_fields: Callable[[GPT2Config], Settings] = lambda config: {}  # a config -> their keys and values

    def pieces(self, name: str, weight: Tensor, config: GPT2Config) -> dict[str, Tensor]:
        """The tensors that our weight `name` is there, by their names and in their layout: views of the weight."""
        module, _, leaf = name.rpartition(".")
        layer = "".join(re.findall(r"\.(\d+)\.", module))
        kind = re.sub(r"\.\d+\.", ".N.", module)
        theirs = f"{self.names[kind]}.{leaf}".replace(".N.", f".{layer}.")
        if self.transposed and module.startswith("blocks.") and weight.ndim == 2:
            weight = weight.t()
        if "?" not in theirs:
            return {theirs: weight}
        rows = [heads * config.head_dim for heads in (config.n_head, config.kv_heads, config.kv_heads)]
        return {theirs.replace("?", part): piece for part, piece in zip("qkv", weight.split(rows), strict=True)}

    def renamed(self, tensors: Mapping[str, Tensor], config: GPT2Config) -> dict[str, Tensor]:
        """The tensors of a model (or their gradients) by the names that the class of transformers has for them: views."""
        pieces = (self.pieces(name, tensor, config) for name, tensor in tensors.items())
        return {self.prefix + name: piece for found in pieces for name, piece in found.items()}

    def read(self, settings: Settings) -> GPT2Config:
        """Our configuration of the model that config.json describes.

        Raises:
            UserError: it computes another function, or a value is out of range.
        """
        for key, allowed in self.constants.items():
            _require(settings, key, *allowed)
        sizes = {ours: settings[theirs] for ours, theirs in self.sizes.items() if theirs in settings}
        config = GPT2Config(**{**sizes, **self.read_fields(settings)})
        _require(settings, self.mlp_width, 4 * config.n_embd, None)
        _require(settings, "head_dim", config.head_dim, None)
        return config

    def settings(self, config: GPT2Config) -> Settings:
        """config.json of a model of this architecture."""
        end = end_of_text_id(config.vocab_size) if config.vocab_size >= SMALLEST else None
        return {
            "architectures": [self.class_name], "model_type": self.model_type,
            **{theirs: getattr(config, ours) for ours, theirs in self.sizes.items()}, self.mlp_width: 4 * config.n_embd,
            **{key: allowed[0] for key, allowed in self.constants.items()}, **dict.fromkeys(self.dropout, config.dropout),
            **self.write_fields(config), "initializer_range": 0.02, "bos_token_id": end, "eos_token_id": end,
            "use_cache": True, "dtype": "float32",
        }  # fmt: skip


def _require(settings: Settings, key: str, *allowed: Any) -> None:
    found = settings.get(key, allowed[0])
    if found not in allowed:
        raise UserError(f"{key}: {found!r} makes another function than GPT-2's; it has to be {allowed[0]!r}")


def _read_starcoder2(settings: Settings) -> Settings:
    for key in STARCODER2_SIZES.values():  # its defaults are not ours
        if key not in settings:
            raise UserError(f"{key}: is not there; give the size of the model")
    # Before transformers 5 the base stood beside the scaling.
    found = settings.get("rope_parameters") or settings.get("rope_scaling") or {}
    if not isinstance(found, dict):
        raise UserError(f"rope_parameters: {found!r} has to be an object with rope_type and rope_theta")
    rope = dict(found)
    kind = rope.pop("rope_type", rope.pop("type", "default"))
    fields = {"positions": "rotary", "window": settings.get("sliding_window")}
    fields["rope_base"] = rope.pop("rope_theta", settings.get("rope_theta", GPT2Config.rope_base))
    if kind in ("linear", "yarn"):
        fields |= {"rope_scaling": kind, "rope_factor": rope.pop("factor", None)}
    trained = "original_max_position_embeddings"
    if kind == "yarn" and rope.get(trained) == settings["max_position_embeddings"] / (fields["rope_factor"] or 1):
        del rope[trained]
    if kind not in ("default", "linear", "yarn") or rope:
        raise UserError(f"rope_parameters: {found!r} scales positions as no variant here does; rope_type has to be 'default'")
    return fields


def _write_starcoder2(config: GPT2Config) -> Settings:
    kind, base, factor, D = config.rope_scaling or "default", float(config.rope_base), config.rope_factor, config.head_dim
    if kind == "ntk":  # at a fixed length it is another base; "dynamic" would turn keys by a base that later tokens change
        kind, base = "default", base * factor ** (D / (D - 2))
    rope: Settings = {"rope_type": kind, "rope_theta": base}
    if kind != "default":
        rope["factor"] = factor
    if kind == "yarn":
        rope["original_max_position_embeddings"] = config.block_size / factor
    window = config.window[0] if isinstance(config.window, tuple) else config.window
    # Before transformers 5 the base stood beside the scaling.
    return {"num_key_value_heads": config.kv_heads, "sliding_window": window, "rope_parameters": rope, "rope_theta": base}


NAMES = {  # ours: GPT-2's, Starcoder2's
    "embedding": ("wte", "embed_tokens"),
    "positions.table": ("wpe", "-"),
    "blocks.N.norm_1": ("h.N.ln_1", "layers.N.input_layernorm"),
    "blocks.N.attention.qkv": ("h.N.attn.c_attn", "layers.N.self_attn.?_proj"),
    "blocks.N.attention.output": ("h.N.attn.c_proj", "layers.N.self_attn.o_proj"),
    "blocks.N.norm_2": ("h.N.ln_2", "layers.N.post_attention_layernorm"),
    "blocks.N.mlp.input": ("h.N.mlp.c_fc", "layers.N.mlp.c_fc"),
    "blocks.N.mlp.output": ("h.N.mlp.c_proj", "layers.N.mlp.c_proj"),
    "norm": ("ln_f", "norm"),
}
GPT2_NAMES, STARCODER2_NAMES = ({ours: theirs[n] for ours, theirs in NAMES.items()} for n in range(2))
GPT2_SIZES = {
    "vocab_size": "vocab_size", "block_size": "n_positions", "n_embd": "n_embd", "n_layer": "n_layer", "n_head": "n_head",
}  # fmt: skip
GPT2_CONSTANTS: dict[str, tuple[Any, ...]] = {
    "scale_attn_weights": (True,), "tie_word_embeddings": (True,), "scale_attn_by_inverse_layer_idx": (False,),
    "add_cross_attention": (False,), "layer_norm_epsilon": (1e-5,),
}  # fmt: skip
GPT2_DROPOUT = ("resid_pdrop", "embd_pdrop", "attn_pdrop")
STARCODER2_SIZES = {
    "vocab_size": "vocab_size", "block_size": "max_position_embeddings", "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads", "n_embd": "hidden_size", "n_kv_head": "num_key_value_heads",
}  # fmt: skip
GELU, GELU_BY_TORCH = "gelu_new", "gelu_pytorch_tanh"  # two names of the tanh approximation

ARCHITECTURES = {
    "gpt2": Architecture(
        "gpt2", "GPT2LMHeadModel", "transformer.", GPT2_NAMES, True, GPT2_SIZES,
        {**GPT2_CONSTANTS, "activation_function": (GELU, GELU_BY_TORCH)}, "n_inner", GPT2_DROPOUT,
    ),
    "gpt_bigcode": Architecture(
        "gpt_bigcode", "GPTBigCodeForCausalLM", "transformer.", GPT2_NAMES, False, GPT2_SIZES,
        {**GPT2_CONSTANTS, "activation_function": (GELU_BY_TORCH, GELU), "multi_query": (True,)}, "n_inner", GPT2_DROPOUT,
        read_fields=lambda settings: {"n_kv_head": 1},
    ),
    "starcoder2": Architecture(
        "starcoder2", "Starcoder2ForCausalLM", "model.", STARCODER2_NAMES, False, STARCODER2_SIZES,
        {"use_bias": (True,), "tie_word_embeddings": (True,), "hidden_act": (GELU_BY_TORCH, GELU), "norm_epsilon": (1e-5,)},
        "intermediate_size", ("residual_dropout", "embedding_dropout", "attention_dropout"),
        frozenset({"positions", "window", "rope_base", "rope_interleaved", "rope_scaling", "rope_factor"}),
        _read_starcoder2, _write_starcoder2,
    ),
}  # fmt: skip
