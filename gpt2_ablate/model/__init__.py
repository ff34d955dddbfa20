"""GPT-2 as plain torch modules.

Read in this order: `config` (the sizes, and the names of the parts), `gpt2` (the whole model), `attention`, `layers`,
`positions`, `rope` and `embedding` (its parts), `context` (what a forward pass carries), `parts` (how a part is found), then
`kv_cache` and `generate` (how it writes).

Shapes, here and everywhere: B batch, T tokens, C width, H query heads, G key/value heads, D head width, W window,
V vocabulary.
"""

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.generate import generate, stream
from gpt2_ablate.model.gpt2 import GPT2
from gpt2_ablate.model.kv_cache import KVCache

__all__ = ["GPT2", "GPT2Config", "KVCache", "generate", "stream"]
