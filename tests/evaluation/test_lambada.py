"""LAMBADA counted by hand, passage by passage, with transformers' model."""

import json
import math

import pytest
import torch

from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.evaluation.hf_reference import reference_of
from gpt2_ablate.evaluation.lambada import encode, read_passages, score_passages
from gpt2_ablate.model import GPT2, GPT2Config

V, T = 97, 32


@pytest.fixture(scope="module")
def model():
    torch.manual_seed(0)
    made = GPT2(GPT2Config(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=16))
    with torch.no_grad():
        for p in made.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return made.eval()


@pytest.fixture(scope="module")
def reference(model):
    return reference_of(model)


@torch.no_grad()
def passages(reference, n=60):
    """Random ones; the ends of two thirds are what the model would say, so that some are right and some half right."""
    draw = torch.Generator().manual_seed(1)
    made = []
    for i in range(n):
        ids = torch.randint(V, (int(torch.randint(2, T - 3, (), generator=draw)),), generator=draw).tolist()
        word = 1 + i % 3
        for k in range(word):
            likeliest = int(reference(torch.tensor([ids])).logits[0, -1].argmax())
            ids.append(likeliest if (i // 3) % 3 and not (k == 0 and i % 4 == 0) else int(torch.randint(V, (), generator=draw)))
        made.append((ids, word))
    return made


@torch.no_grad()
def by_hand(reference, ids, word):
    """Whether each token of the last word is the likeliest, and its log-probability, one at a time."""
    found = []
    for place in range(len(ids) - word, len(ids)):
        logits = reference(torch.tensor([ids[:place]])).logits[0, -1]
        found.append((int(logits.argmax()) == ids[place], float(logits.log_softmax(-1)[ids[place]])))
    return found


def test_both_ways_of_counting(model, reference):
    texts = passages(reference)
    words = [by_hand(reference, *text) for text in texts]
    score = score_passages(model, texts)
    assert score.passages == len(texts)
    assert score.word_accuracy == pytest.approx(sum(all(right for right, _ in word) for word in words) / len(words))
    assert score.token_accuracy == pytest.approx(sum(word[-1][0] for word in words) / len(words))
    assert score.word_perplexity == pytest.approx(math.exp(-sum(p for word in words for _, p in word) / len(words)), rel=1e-4)
    assert score.token_perplexity == pytest.approx(math.exp(-sum(word[-1][1] for word in words) / len(words)), rel=1e-4)
    assert 0 < score.word_accuracy < score.token_accuracy < 1


def test_the_order_and_the_company_of_passages_do_not_matter(model, reference):
    texts = passages(reference)
    together, turned = score_passages(model, texts), score_passages(model, texts[::-1])
    assert together.word_perplexity == pytest.approx(turned.word_perplexity, rel=1e-6)
    alone = [math.log(score_passages(model, [text]).word_perplexity) for text in texts]
    assert math.log(together.word_perplexity) == pytest.approx(sum(alone) / len(alone), rel=1e-5)


def test_a_long_passage_loses_its_beginning(model):
    ids = torch.randint(V, (3 * T,), generator=torch.Generator().manual_seed(2)).tolist()
    assert score_passages(model, [(ids, 2)]) == score_passages(model, [(ids[-T:], 2)])


def test_a_word_that_fills_the_context_is_refused(model, refused):
    with refused("text", T):
        score_passages(model, [(list(range(T)), T)])


def test_progress_sees_all_passages_and_the_mode_is_restored(model, reference):
    seen = []

    def watch(batches):
        for batch in batches:
            seen.append(len(batch))
            yield batch

    model.train()
    score_passages(model, passages(reference), watch)
    assert sum(seen) == 60 and len(seen) > 1 and model.training
    model.eval()


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("He put the key into the lock", " lock"),
        ('"Who is there?" asked Thistlewood', " Thistlewood"),
        ("Sie lachte, er aß", " aß"),
        ("two  spaces", " spaces"),
        ("a line\nand another one", " one"),
    ],
)
def test_the_target_is_a_space_and_the_last_word(text, word):
    ids, length = encode(text)
    tokenizer = load_tokenizer()
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids[-length:]) == word


def write(path, *lines):
    path.write_text("".join(f"{line}\n" for line in lines))
    return path


def test_a_file_of_passages(tmp_path):
    texts = ["one two", " three four\n", "fünf «sechs»", "a\u2028b c"]
    file = write(
        tmp_path / "l.jsonl", *(json.dumps({"text": t, "other": 1}, ensure_ascii=i == 1) for i, t in enumerate(texts)), ""
    )
    assert read_passages(file) == [t.strip() for t in texts]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ('{"text": "one', "not JSON"),
        ("one two", "not JSON"),
        ('{"texts": "one two"}', '"text"'),
        ('["one two"]', '"text"'),
        ('{"text": 3}', '"text"'),
        ('{"text": null}', '"text"'),
        ('{"text": "one"}', "'one'"),
        ('{"text": "one "}', "'one'"),
        ('{"text": ""}', "two words"),
    ],
)
def test_a_line_that_is_no_passage_is_refused_by_its_number(tmp_path, refused, line, words):
    with refused("l.jsonl", "line 3", words):
        read_passages(write(tmp_path / "l.jsonl", '{"text": "one two"}', "", line))


def test_an_empty_file_and_a_binary_one_are_refused(tmp_path, refused):
    for content in (b"", b"\xff\xfe{"):
        (tmp_path / "l.jsonl").write_bytes(content)
        with refused("l.jsonl"):
            read_passages(tmp_path / "l.jsonl")
