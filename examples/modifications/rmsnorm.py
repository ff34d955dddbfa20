"""RMSNorm: LayerNorm without the mean and without a bias (Zhang and Sennrich 1910.07467, equation 4)."""

from torch import nn


class RMSNorm(nn.RMSNorm):
    """[..., width] -> [..., width]."""

    def __init__(self, width: int):
        super().__init__(width, eps=1e-5)
