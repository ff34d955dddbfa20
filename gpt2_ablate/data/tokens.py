"""Token ids on disk: a corpus is encoded once, kept under a key of its content, and memory-mapped from then on."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from filelock import FileLock

from gpt2_ablate.data.corpora import SPLITS, Corpus
from gpt2_ablate.data.tokenizer import GPT2_VOCABULARY, HASHES, byte_lengths, end_of_text_id, load_tokenizer
from gpt2_ablate.errors import UserError

FORMAT = 1
HELD_OUT = 0.05  # share of an unsplit corpus that becomes validation, and the same again for test
BATCH_BYTES = 1 << 22
DTYPE = np.uint16  # GPT-2 has fewer than 65,536 ids


@dataclass(frozen=True)
class Tokens:
    """One split of a corpus."""

    ids: np.ndarray  # token ids [N] as uint16, memory-mapped; each document is followed by <|endoftext|>
    bytes: int  # length of the text in UTF-8, <|endoftext|> counting none


def cache_folder() -> Path:
    """Where token ids are cached: below $XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "gpt2-ablate" / "tokens"


def tokenise(corpus: Corpus, folder: Path | None = None, vocab_size: int = GPT2_VOCABULARY) -> dict[str, Tokens]:
    """The splits of a corpus as token ids, encoded now or found in the cache.

    Safe against two processes at once (the second waits) and against a kill at any moment (a corpus appears in the cache by
    one rename). A cache entry with a missing or truncated file is built again.

    Args:
        vocab_size: of the tokenizer, see `gpt2_ablate.data.tokenizer.load_tokenizer`.

    Raises:
        UserError: the corpus is empty, or the cache cannot be written.
    """
    folder, vocab_size = folder or cache_folder(), min(vocab_size, GPT2_VOCABULARY)
    cut = "" if vocab_size == GPT2_VOCABULARY else f" {vocab_size}"
    key = hashlib.sha256(f"{FORMAT} {corpus.digest} {HASHES['vocab.bpe']}{cut}".encode()).hexdigest()[:24]
    target = folder / key
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with FileLock(folder / f"{key}.lock"):
            if (found := _read(target)) is not None:
                return found
            partial = folder / f"{key}.partial"
            for stale in (target, partial):
                shutil.rmtree(stale, ignore_errors=True)
            try:
                partial.mkdir()
                _write(corpus, partial, vocab_size)
                partial.rename(target)
            finally:
                shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"cache: {folder} cannot be written ({error.strerror or error}); free some space, or point "
            "XDG_CACHE_HOME to another folder"
        ) from error
    found = _read(target)
    assert found is not None
    return found


def _read(folder: Path) -> dict[str, Tokens] | None:
    """The splits in a cache folder; None if it is missing or broken."""
    try:
        sizes = json.loads((folder / "splits.json").read_text())
        splits = {  # a file that is shorter than its size cannot be mapped
            split: Tokens(np.memmap(folder / f"{split}.bin", DTYPE, "r", shape=(size["tokens"],)), size["bytes"])
            for split, size in sizes.items()
        }
        return splits if splits.keys() >= {"train", "validation"} else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _write(corpus: Corpus, folder: Path, vocab_size: int) -> None:
    splits = {}
    for split, documents in corpus.documents.items():
        splits[split or "all"] = _encode(documents(), folder / f"{split or 'all'}.bin", vocab_size)
    if "all" in splits:
        splits |= _divide(folder, splits.pop("all"), [split for split in SPLITS if split not in splits], vocab_size)
    for split, size in splits.items():
        if not size["tokens"]:
            raise UserError(f"corpus: {corpus.name} has no text for {split}; give more text")
    (folder / "splits.json").write_text(json.dumps(splits))


def _encode(documents: Iterable[str], file: Path, vocab_size: int) -> dict[str, int]:
    """Encode documents in batches, on all cores, into one file of ids; count tokens and bytes of text."""
    tokenizer, size = load_tokenizer(vocab_size), {"tokens": 0, "bytes": 0}
    with open(file, "wb") as out:

        def flush(batch: list[str]) -> None:
            for ids in tokenizer.encode_ordinary_batch(batch, num_threads=os.cpu_count() or 1):
                out.write(np.asarray([*ids, tokenizer.eot_token], dtype=DTYPE).tobytes())  # tofile hides a full disk
                size["tokens"] += len(ids) + 1

        batch, flushed = [], 0
        for document in documents:
            batch.append(document)
            size["bytes"] += len(document.encode("utf-8"))
            if size["bytes"] - flushed >= BATCH_BYTES:
                flush(batch)
                batch, flushed = [], size["bytes"]
        flush(batch)
    return size


def _divide(folder: Path, size: dict[str, int], names: list[str], vocab_size: int) -> dict[str, dict[str, int]]:
    """Divide `all.bin` into these splits, between documents where there are enough of them.

    The held-out text comes last: with a corpus that is ordered by time or topic, the test is on unseen times or topics.
    """
    ids = np.memmap(folder / "all.bin", dtype=DTYPE, mode="r") if size["tokens"] else np.empty(0, DTYPE)
    ends = np.flatnonzero(ids == end_of_text_id(vocab_size)) + 1
    cuts = [0]
    for held_out in range(len(names) - 1, 0, -1):
        wanted = round(len(ids) * (1 - held_out * HELD_OUT))
        near = np.abs(ends - wanted) <= HELD_OUT / 2 * len(ids)  # within half a split
        at = ends[near & (ends > cuts[-1]) & (ends < len(ids))]
        cuts.append(max(cuts[-1], int(at[np.abs(at - wanted).argmin()]) if len(at) else wanted))
    cuts.append(len(ids))
    splits = {}
    for split, start, end in zip(names, cuts[:-1], cuts[1:], strict=True):
        part = np.asarray(ids[start:end])
        (folder / f"{split}.bin").write_bytes(part.tobytes())
        splits[split] = {"tokens": len(part), "bytes": int(byte_lengths(vocab_size)[part].sum())}
    (folder / "all.bin").unlink()
    return splits
