"""Trained weights: in from wherever they are, out for others, and turned from one variant into another.

`folder` is the project's own form, `pretrained` reads all others, `huggingface` writes for `transformers`, `surgery` converts.
"""

from gpt2_ablate.weights.huggingface import export_huggingface
from gpt2_ablate.weights.pretrained import load_pretrained
from gpt2_ablate.weights.surgery import convert, to_grouped_query, to_rotary, to_window

__all__ = ["convert", "export_huggingface", "load_pretrained", "to_grouped_query", "to_rotary", "to_window"]
