"""Text comes as it is generated, in whole characters, and is the text that `generate` makes."""

import pytest
import torch

from gpt2_ablate.data.tokenizer import END_OF_TEXT, END_OF_TEXT_ID, load_tokenizer
from gpt2_ablate.evaluation.sampling import continuation, decode
from gpt2_ablate.model import GPT2, GPT2Config, generate


def model(**changes):
    torch.manual_seed(0)
    return GPT2(GPT2Config(**{**dict(n_layer=1, n_head=2, n_embd=16, block_size=64), **changes})).eval()


@pytest.mark.parametrize("text", ["plain words", "日本語のテキスト", "a 🦜 and a 👩‍👩‍👧", "naïve «café»", ""])
def test_pieces_are_whole_characters(text):
    tokenizer = load_tokenizer()
    pieces = list(decode(tokenizer, iter(tokenizer.encode_ordinary(text))))
    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_character_waits_for_its_last_token():
    tokenizer = load_tokenizer()
    ids = tokenizer.encode_ordinary("🦜")
    assert len(ids) > 1
    pieces = list(decode(tokenizer, iter(ids)))
    assert pieces == ["", *["" for _ in ids[2:]], "🦜", ""]


def test_half_a_character_at_the_end_is_one_mark():
    tokenizer = load_tokenizer()
    assert "".join(decode(tokenizer, iter(tokenizer.encode_ordinary("a🦜")[:-1]))) == "a\ufffd"


def test_it_ends_at_the_end_of_the_text():
    tokenizer = load_tokenizer()
    assert "".join(decode(tokenizer, iter([*tokenizer.encode_ordinary("the end"), END_OF_TEXT_ID, 464]))) == "the end"


def test_pieces_come_one_by_one():
    drawn = []

    def tokens():
        for token in load_tokenizer().encode_ordinary("one two three"):
            drawn.append(token)
            yield token

    pieces = decode(load_tokenizer(), tokens())
    assert next(pieces) == "one" and len(drawn) == 1


def test_it_is_the_text_of_generate():
    own, tokenizer = model(), load_tokenizer()
    ids = torch.tensor([tokenizer.encode_ordinary("the king")])
    for seed in (1, 2):
        expected = generate(own, ids, 20, 0.9, 40, torch.Generator().manual_seed(seed), top_p=0.8)[0, ids.shape[1] :].tolist()
        found = "".join(continuation(own, "the king", 20, 0.9, 40, 0.8, seed))
        assert found == tokenizer.decode(expected).partition(END_OF_TEXT)[0]


def test_a_model_that_wants_to_stop_stops():
    own = model()
    with torch.no_grad():
        own.norm.weight.zero_()
        own.norm.bias.fill_(1.0)
        own.embedding.weight[END_OF_TEXT_ID] = 1.0
    assert "".join(continuation(own, "the king", 20, temperature=0)) == ""


def test_the_mark_between_documents_can_be_the_prompt():
    assert len("".join(continuation(model(), END_OF_TEXT, 20))) > 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (dict(seed=-1), ("seed", -1)),
        (dict(seed=2**63), ("seed", 2**63)),
        (dict(tokens=-1), ("max_new_tokens", -1)),
        (dict(temperature=-1.0), ("temperature", -1.0)),
        (dict(temperature=float("inf")), ("temperature", "inf")),
        (dict(top_p=0.0), ("top_p", 0.0)),
        (dict(top_k=0), ("top_k", 0)),
        (dict(prompt=""), ("prompt",)),
        (dict(tokens=100), ("64",)),
    ],
    ids=str,
)
def test_bad_values_are_refused_at_once(refused, arguments, words):
    with refused(*words):
        continuation(model(), **{**dict(prompt="the king", tokens=5), **arguments})


@pytest.mark.parametrize(
    ("changes", "tokens", "words"),
    [(dict(kernel="sliding"), 5, ("kernel", "sliding")), (dict(positions="rotary"), 10**14, ("max_new_tokens", 10**14))],
    ids=str,
)
def test_what_cannot_run_here_is_refused_at_once(refused, changes, tokens, words):
    with refused(*words):
        continuation(model(**changes), "the king", tokens)


def test_a_vocabulary_that_no_text_has_is_refused(refused):
    with refused("vocab_size", 97, 257):
        continuation(model(vocab_size=97), "the king", 5)


@pytest.mark.parametrize("vocab_size", [257, 1000, 50304])
def test_only_tokens_of_the_tokenizer_are_chosen(vocab_size):
    """The rows of padding ids are made the likeliest."""
    own = model(vocab_size=vocab_size)
    with torch.no_grad():
        own.norm.weight.zero_(), own.norm.bias.fill_(1.0)
        own.embedding.weight.mul_(0.01)[50257:] = 5.0
    for temperature in (0.0, 2.0):
        assert "".join(continuation(own, "the king", 20, temperature=temperature))
