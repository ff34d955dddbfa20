"""GPT-2 as plain torch modules, and the parts of it that an ablation swaps.

Read in this order: `config` (the sizes), `gpt2` (the whole model), `attention` (one layer's heads), `pattern` (which keys
a query sees), `attend` (the door to the kernels) and behind it `causal`, `flex`, `sliding`, `reference` and `mix`;
`learned`, `rotary` and `rope_scaling` (where a token stands), `mlp`, `linear`, `tied`, `loss`, `precision`; `cache`,
`documents`, `generate` and `rows` (how it writes).

Shapes, here and everywhere: B batch, T tokens, C width, H query heads, G key/value heads, D head width, W window,
V vocabulary.
"""

from gpt2_ablate.model.cache import KVCache
from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.generate import generate, stream
from gpt2_ablate.model.gpt2 import GPT2

__all__ = ["GPT2", "GPT2Config", "KVCache", "generate", "stream"]
