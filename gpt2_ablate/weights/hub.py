"""Weights from the Hugging Face hub, through its own library: cached, taken up where a connection breaks, with progress."""

from __future__ import annotations

import re
from pathlib import Path

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import SIZES

# In order of preference. One pattern each for the weights and the index of their shards.
KINDS = (
    ("model*.safetensors", "model.safetensors.index.json"),
    ("pytorch_model*.bin", "pytorch_model.bin.index.json"),
)
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")


def hub_name(source: str) -> str | None:
    """owner/name of a model on the hub, if `source` can be one: `gpt2-xl` and its like are openai-community's."""
    if source in SIZES:
        return f"openai-community/{source}"
    return source if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) else None


def fetch(source: str, download: bool = True) -> Path:
    """The weights file (or the index of the shards) of a model on the hub; config.json lies beside it.

    Args:
        download: False looks into the local cache only.

    Raises:
        UserError: no such model, no network, a download that broke off, or a model without weights that we read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError

    name = hub_name(source)
    if name is None:
        raise UserError(f"{source}: is no file or folder here, and can be no model on the hub; give for example gpt2")
    by_hand = "copy config.json and model.safetensors of openai-community/gpt2 into a folder, as checkpoints/gpt2, and give that"
    for patterns in KINDS:
        try:
            folder = Path(snapshot_download(name, allow_patterns=["config.json", *patterns], local_files_only=not download))
        except RepositoryNotFoundError as error:
            raise UserError(f"{source}: is no file or folder here, and the hub has no model {name}; {by_hand}") from error
        except Exception as error:  # whatever the library, and the HTTP library below it, raises
            reason = str(error).strip().partition("\n")[0] or type(error).__name__
            again = "try again, or " if download else ""
            raise UserError(
                f"{source}: is no file or folder here, and {name} cannot be fetched from the hub ({reason}); {again}{by_hand}"
            ) from error
        for file in FILES:
            if (folder / file).exists():
                return folder / file
    raise UserError(f"{source}: {name} has no weights that can be read; it needs one of {', '.join(FILES)}")
