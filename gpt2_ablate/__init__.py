"""GPT-2 with every combination of rotary positions, grouped-query and sliding-window attention."""

__version__ = "0.1.0"
