"""Weights from the Hugging Face hub, through its own library: cached, taken up where a connection breaks, with progress."""

from __future__ import annotations

import re
import time
from contextlib import suppress
from pathlib import Path

from gpt2_ablate.errors import UserError
from gpt2_ablate.model.config import SIZES

KINDS = ("model*.safetensors*", "pytorch_model*.bin*")  # in order of preference: weights, and the index of their shards
FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")

STALE_SECONDS = 600  # after which nobody writes to a part of a file any more: connections time out far earlier


def hub_name(source: str) -> str | None:
    """owner/name of a model on the hub, if `source` can be one: `gpt2-xl` and its like are openai-community's.

    What starts with checkpoints/ is a path, where models are kept here.
    """
    if source in SIZES:
        return f"openai-community/{source}"
    return source if re.fullmatch(r"(?!checkpoints/)[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", source) else None


def fetch(source: str, download: bool = True) -> Path:
    """The weights file (or the index of the shards) of a model on the hub; config.json lies beside it.

    A connection that breaks is taken up where it broke. A download that was killed starts anew, as the library cannot find
    its part again; the part is removed.

    Args:
        download: False looks into the local cache only.

    Raises:
        UserError: no such model, no network, a download that broke off, or a model without weights that we read.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import RepositoryNotFoundError
    from huggingface_hub.utils.logging import set_verbosity_error

    by_hand = "copy config.json and model.safetensors of openai-community/gpt2 into a folder, as checkpoints/gpt2, and give that"
    name = hub_name(source)
    if name is None:
        of_a_run = re.search(r"(^|/)checkpoints/[^/]+/[^/]+", source)  # checkpoints/<preset>/<variant>/seed-<n>
        train = "train it with make ablate-all, or " if of_a_run else ""
        raise UserError(
            f"{source}: is no file or folder here, and can be no model on the hub; {train}give for example gpt2, or {by_hand}"
        )
    set_verbosity_error()  # what it says of each attempt, our one line says at the end
    if download:
        _remove_parts(name)
    for kind in KINDS:
        try:
            folder = Path(snapshot_download(name, allow_patterns=["config.json", kind], local_files_only=not download))
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


def _remove_parts(name: str) -> None:
    """Remove what killed downloads of this model have left in the cache for good."""
    from huggingface_hub import constants

    blobs = Path(constants.HF_HUB_CACHE, f"models--{name.replace('/', '--')}", "blobs")
    for part in blobs.glob("*.incomplete"):
        with suppress(OSError):
            if time.time() - part.stat().st_mtime > STALE_SECONDS:
                part.unlink()
