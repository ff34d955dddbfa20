"""NoPE: no positional encoding at all; the causal mask alone tells the order (Kazemnejad et al. 2305.19466, section 2)."""

from gpt2_ablate.model.config import GPT2Config
from gpt2_ablate.model.positions import Positions


class NoPE(Positions):
    """No parameters, and no limit to the length."""

    def __init__(self, config: GPT2Config):
        super().__init__()
