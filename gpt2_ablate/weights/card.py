"""The README.md of an exported model: what it is, how to use it, and what the study measured."""

from __future__ import annotations

from typing import Any

from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights.architectures import Architecture

METRICS = {
    "validation_loss": "validation loss, nats per token",
    "validation_perplexity": "validation perplexity",
    "validation_bits_per_byte": "validation bits per byte",
    "test_loss": "test loss, nats per token",
    "test_perplexity": "test perplexity",
    "test_bits_per_byte": "test bits per byte",
}


def model_card(model: GPT2, architecture: Architecture, record: dict[str, Any] | None = None) -> str:
    """Markdown with the front matter that the hub reads; without a record it states no result."""
    config = model.config
    title = f"GPT-2, variant {record['variant']}, seed {record['seed']}" if record else "A variant of GPT-2"
    parts = [
        "---\nlibrary_name: transformers\npipeline_tag: text-generation\ntags:\n- gpt2\n- gpt2-ablate\n---",
        f"# {title}",
        f"A GPT-2 (Radford et al. 2019) with {_describe(config)}, stored as a `{architecture.class_name}`, whose function it is "
        "exactly. Written by gpt2_ablate, a study of what such changes do.",
        "```python\nfrom transformers import AutoModelForCausalLM, AutoTokenizer\n\n"
        'model, tokenizer = (cls.from_pretrained("FOLDER") for cls in (AutoModelForCausalLM, AutoTokenizer))\n```',
        _table(
            ["what", "value"],
            [
                ["parameters", f"{sum(p.numel() for p in model.parameters()):,}"],
                ["layers", str(config.n_layer)],
                ["width", str(config.n_embd)],
                ["query heads", str(config.n_head)],
                ["key/value heads", str(config.kv_heads)],
                ["context, tokens", f"{config.block_size:,}"],
                ["vocabulary", f"{config.vocab_size:,}"],
            ],
        ),
    ]
    return "\n\n".join(parts + (_results(record) if record else [])) + "\n"


def _describe(config: GPT2Config) -> str:
    window = "full attention" if config.window is None else f"a sliding window of {config.window} tokens"
    heads = "one key/value head" if config.kv_heads == 1 else f"{config.kv_heads} key/value heads"
    return f"{config.positions} positions, {window} and {heads} for {config.n_head} query heads"


def _results(record: dict[str, Any]) -> list[str]:
    settings, metrics = record.get("config") or {}, record.get("metrics") or {}
    corpus = (settings.get("data") or {}).get("corpus", "an unknown corpus")
    steps = (settings.get("trainer") or {}).get("max_steps", "an unknown number of")
    environment = record.get("environment") or {}
    rows = [[text, f"{metrics[name]:.4g}"] for name, text in METRICS.items() if isinstance(metrics.get(name), int | float)]
    return [
        "## Results",
        f"Of one run with one seed: {steps} steps on {corpus} (preset {record.get('preset', 'unknown')}), on "
        f"{environment.get('hardware', 'unknown hardware')}, commit {environment.get('git_commit') or 'unknown'}.",
        _table(["measure", "value"], rows),
        "It is a model for comparing architectures, trained on little text; it is not meant for use.",
    ]


def _table(head: list[str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(row)} |" for row in [head, ["---"] * len(head), *rows])
