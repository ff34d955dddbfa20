"""The README.md of an exported model: what it is, how to use it, and what the study measured."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2_ablate.utils import markdown

if TYPE_CHECKING:
    from gpt2_ablate.model import GPT2
    from gpt2_ablate.weights.hf_architectures import Architecture


def model_card(model: GPT2, architecture: Architecture, record: dict[str, Any] | None = None) -> str:
    """Markdown with the front matter that the hub reads; without a record it states no result.

    Args:
        record: of the run that trained the model.
    """
    return markdown.render(
        markdown.environment(Path(__file__).parent),
        "model_card.md.j2",
        config=model.config,
        architecture=architecture.class_name,
        parameters=sum(p.numel() for p in model.parameters()),
        record=record or {},
    )
