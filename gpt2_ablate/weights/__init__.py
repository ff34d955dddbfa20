"""Trained weights: in from wherever they are, out for others, and turned from one variant into another.

`load` reads every form, of which `folder` is the project's own; `export` writes for `transformers`; `convert` converts.
"""

from gpt2_ablate.weights.convert import convert, to_grouped_query, to_rotary, to_window
from gpt2_ablate.weights.export import export_huggingface
from gpt2_ablate.weights.load import load_pretrained

__all__ = ["convert", "export_huggingface", "load_pretrained", "to_grouped_query", "to_rotary", "to_window"]
