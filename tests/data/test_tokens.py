"""Tokens on disk: encoded once, whole or not at all, and what each split holds."""

import json
import multiprocessing
import signal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ablate.data import tokens
from gpt2_ablate.data.corpora import Corpus
from gpt2_ablate.data.tokens import cache_folder, tokenise

from . import workers
from .texts import END, SEPARATOR, bytes_of_token, decode, encoded, tokenised, unsplit, whole, write

CORPUS = {
    "train": [f"The {n}th document is naïve." for n in range(50)],
    "validation": ["Twice\r\n two 😁", "four"],
    "test": ["The end."],
}
few = settings(max_examples=40, deadline=None, derandomize=True)


def split(texts=CORPUS, digest="split"):
    return Corpus("a corpus", digest, {name: lambda of=of: iter(of) for name, of in texts.items()})


def numbers(splits):
    return {name: (split.ids.tolist(), split.bytes) for name, split in splits.items()}


def entries():
    """The cache but for its locks, which are empty."""
    return sorted(path.name for path in cache_folder().iterdir() if path.suffix != ".lock")


def rewrite(files, text):
    for file in files:
        file.write_text(text)


# What the splits hold


def test_every_document_is_followed_by_its_end(cache):
    splits = tokenise(split())
    assert list(splits) == list(CORPUS)
    for name, texts in CORPUS.items():
        assert splits[name].ids.dtype == np.uint16
        assert splits[name].ids.tolist() == encoded(texts).tolist()
        assert decode(splits[name].ids.tolist()) == "".join(text + SEPARATOR for text in texts)


def test_bytes_are_those_of_the_text_in_utf8(cache):
    for name, found in tokenise(split()).items():
        assert found.bytes == sum(len(text.encode()) for text in CORPUS[name])


def test_documents_are_the_same_in_batches_of_any_size(cache, monkeypatch):
    expected = numbers(tokenise(split()))
    for size in (1, 30, 100):
        monkeypatch.setattr(tokens, "BATCH_BYTES", size)
        assert numbers(tokenise(split(digest=str(size)))) == expected


def test_the_plays_are_a_million_and_a_half_tokens():
    splits = tokenised("shakespeare")
    assert len(whole(splits)) == pytest.approx(1.5e6, rel=0.1)
    assert {name: int((s.ids == END).sum()) for name, s in splits.items()} == {"train": 34, "validation": 2, "test": 2}
    assert all(3 < s.bytes / len(s.ids) < 4 for s in splits.values())


@few
@given(texts=st.lists(st.text("ab ć😁\n", min_size=1, max_size=80).filter(str.strip), min_size=1, max_size=30))
def test_an_unsplit_corpus_is_cut_in_order_and_nothing_is_lost(tmp_path_factory, texts):
    texts = [*texts, "the end " * 40]
    splits = tokenise(unsplit(texts), tmp_path_factory.mktemp("cache"))
    assert list(splits) == ["train", "validation", "test"]
    assert whole(splits).tolist() == encoded(texts).tolist()
    assert sum(s.bytes for s in splits.values()) == sum(len(text.encode()) for text in texts)
    for found in splits.values():
        assert found.bytes == sum(bytes_of_token(i) for i in found.ids if i != END)


def test_many_documents_are_cut_at_their_ends(cache):
    splits = tokenise(unsplit([f"Document {n}." for n in range(300)]))
    total = len(whole(splits))
    for name, share in (("train", 0.9), ("validation", 0.05), ("test", 0.05)):
        assert splits[name].ids[-1] == END
        assert len(splits[name].ids) / total == pytest.approx(share, abs=0.005)


def test_one_document_is_cut_where_it_must_be(cache):
    splits = tokenise(unsplit([" a" * 999]))
    assert [len(s.ids) for s in splits.values()] == [900, 50, 50]


def test_an_end_that_is_far_away_is_not_waited_for(cache):
    """Half of the text in the last document: its end would leave nothing to hold out."""
    splits = tokenise(unsplit([" a" * 499, " b" * 499]))
    assert [len(s.ids) for s in splits.values()] == [900, 50, 50]


def test_an_end_amid_the_held_out_text_leaves_something_for_both(cache):
    """At 92.5 percent, as near to the start of the validation text as to that of the test text."""
    splits = tokenise(unsplit([" a" * 184, " b" * 14]))
    assert all(len(s.ids) >= 5 for s in splits.values())


def test_where_the_test_is_given_the_rest_is_cut_in_two(cache):
    texts = [f"document {n}" for n in range(100)]
    found = tokenise(Corpus("a corpus", "with a test", {None: texts.copy, "test": ["the test"].copy}))
    assert found["test"].ids.tolist() == encoded(["the test"]).tolist()
    assert [*found["train"].ids, *found["validation"].ids] == encoded(texts).tolist()
    assert 0.04 < len(found["validation"].ids) / len(encoded(texts)) < 0.06
    assert found["validation"].bytes + found["train"].bytes == sum(map(len, texts))


def test_a_text_too_short_to_split_is_refused(cache, refused):
    with refused("a corpus", "give more text"):
        tokenise(unsplit(["one"]))
    assert not entries()


@pytest.mark.parametrize("name", CORPUS)
def test_a_split_without_text_is_refused(cache, refused, name):
    with refused("a corpus", name):
        tokenise(split({**CORPUS, name: []}))
    assert not entries()


# The cache


def test_a_corpus_is_encoded_once(cache):
    def never():
        raise AssertionError("read again")

    first = tokenise(split())
    assert numbers(tokenise(Corpus("another name", "split", {"train": never}))) == numbers(first)


def test_other_text_is_another_entry(cache, tmp_path):
    one = numbers(tokenised(write(tmp_path / "a", train="one", validation="two")))
    other = numbers(tokenised(write(tmp_path / "a", train="one, changed", validation="two")))
    assert one["train"] != other["train"] and one["validation"] == other["validation"]
    assert len(entries()) == 2
    assert numbers(tokenised(write(tmp_path / "a", train="one", validation="two"))) == one
    assert len(entries()) == 2


def test_the_cache_is_where_xdg_says(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    for value, folder in ((str(tmp_path / "x"), tmp_path / "x"), ("", tmp_path / ".cache")):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        tokenise(split())
        assert cache_folder().is_relative_to(folder) and entries()


@pytest.mark.parametrize("corpus", [split, lambda: unsplit(CORPUS["train"])], ids=["split", "unsplit"])
@pytest.mark.parametrize(
    "damage",
    [
        pytest.param(
            lambda files: [file.write_bytes(file.read_bytes()[:-2]) for file in files if file.suffix == ".bin"], id="cut"
        ),
        pytest.param(lambda files: rewrite(files, ""), id="emptied"),
        pytest.param(lambda files: [file.unlink() for file in files if file.stem == "train"], id="no train.bin"),
        pytest.param(lambda files: [file.unlink() for file in files if file.suffix == ".json"], id="no splits.json"),
        pytest.param(lambda files: [file.unlink() for file in files], id="nothing"),
    ],
)
def test_a_broken_entry_is_built_anew(cache, corpus, damage):
    expected = numbers(tokenise(corpus()))
    damage([file for file in cache_folder().rglob("*") if file.suffix in (".bin", ".json")])
    assert numbers(tokenise(corpus())) == expected
    assert len(entries()) == 1


@pytest.mark.parametrize(
    "text", ["", "{", "null", "3", "[]", "{}", '"train"', '{"train": 3}', '{"train": {"tokens": 5}}', '{"train": {}}', "\x00\x01"]
)
def test_garbage_in_splits_json_is_built_anew(cache, text):
    expected = numbers(tokenise(split()))
    (listing,) = cache_folder().rglob("*.json")
    before = listing.read_text()
    listing.write_text(text)
    assert numbers(tokenise(split())) == expected
    assert json.loads(listing.read_text()) == json.loads(before)


def test_two_processes_that_start_at_once_both_get_all_of_it(cache, tmp_path):
    """And the corpus is read once: the second waits for the first."""
    spawn = multiprocessing.get_context("spawn")
    barrier, answers, log = spawn.Barrier(2), spawn.Queue(), tmp_path / "log"
    processes = [spawn.Process(target=workers.tokenise_at_once, args=(barrier, log, answers)) for _ in range(2)]
    for process in processes:
        process.start()
    found = [answers.get(timeout=30) for _ in processes]
    for process in processes:
        process.join()
    assert found[0] == found[1] == numbers(tokenise(unsplit(workers.TEXTS)))
    assert log.read_text() == "read\n"


def test_a_kill_leaves_nothing_that_is_taken_for_whole(cache):
    process = multiprocessing.get_context("spawn").Process(target=workers.tokenise_and_die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL
    assert any(file.stat().st_size > 1_000_000 for file in cache_folder().rglob("*.bin"))  # it was in the middle of it
    assert numbers(tokenise(unsplit(CORPUS["train"], "deadly"))) == numbers(tokenise(unsplit(CORPUS["train"], "well")))
    assert len(entries()) == 2


@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError, MemoryError])
def test_an_interruption_leaves_nothing(cache, error):
    def read():
        yield "one"
        raise error

    with pytest.raises(error):
        tokenise(Corpus("a corpus", "split", {"train": CORPUS["validation"].copy, "validation": read}))
    assert not entries()
    assert numbers(tokenise(split()))["train"][0] == encoded(CORPUS["train"]).tolist()


# A disk that is full, a place that cannot be written


@pytest.mark.parametrize("corpus", [split, lambda: unsplit(CORPUS["train"])], ids=["split", "unsplit"])
@pytest.mark.parametrize("size", [0, 1, 100, 400, 700])
def test_a_full_disk_is_one_line_and_leaves_nothing(cache, refused, full_disk, corpus, size):
    with refused(cache), full_disk(size):
        tokenise(corpus())
    assert not entries()
    assert all(s.ids[-1] == END for s in tokenise(corpus()).values())


@pytest.mark.parametrize("size", [5_000, 30_000, 79_000])
def test_a_disk_that_fills_up_amid_a_long_text_is_one_line_and_leaves_nothing(cache, refused, full_disk, size):
    """40,000 tokens are 80,000 bytes."""
    texts = [" a" * 39_999]
    with refused(cache), full_disk(size):
        tokenise(unsplit(texts))
    assert not entries()
    assert whole(tokenise(unsplit(texts))).tolist() == encoded(texts).tolist()


def test_a_full_disk_is_called_by_its_name(cache, refused, full_disk):
    with refused("File too large"), full_disk(30_000):
        tokenise(unsplit([" a" * 39_999]))


def test_a_cache_that_is_a_file_is_refused(tmp_path, monkeypatch, refused):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with refused(tmp_path / "file", "XDG_CACHE_HOME"):
        tokenise(split())
