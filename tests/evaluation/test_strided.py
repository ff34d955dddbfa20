"""Strided perplexity is that of transformers' documentation, each token is predicted once, and units follow from counts."""

import math

import pytest
import torch
import torch.nn.functional as F
import transformers

from gpt2_ablate.evaluation.hf_reference import reference_of
from gpt2_ablate.evaluation.strided import TextScore, read_text, score_text, strided_loss
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.weights import export_huggingface

V, T = 97, 32


def model(seed=0, **changes):
    torch.manual_seed(seed)
    found = GPT2(GPT2Config(**{**dict(vocab_size=V, block_size=T, n_layer=2, n_head=2, n_embd=16), **changes}))
    with torch.no_grad():
        for p in found.parameters():
            p.add_(0.2 * torch.randn_like(p))
    return found.eval()


def text(n, seed=0):
    return torch.randint(V, (n,), generator=torch.Generator().manual_seed(seed))


def documented(model, ids, max_length, stride):
    """The procedure of transformers' documentation, with its model: perplexity, and the same with each prediction counted once.

    The documentation takes one from each window's labels, because the model's own shift drops one; in all windows but the
    first that one does not count anyway.
    """
    return documented_of(reference_of(model), ids, max_length, stride)


def documented_of(reference, ids, max_length, stride):
    """The same of a model of transformers."""
    total = exact = count = exact_count = 0
    end_before, size = 0, len(ids)
    for begin in range(0, size, stride):
        end = min(begin + max_length, size)
        inputs = ids[None, begin:end]
        labels = inputs.clone()
        labels[:, : -(end - end_before)] = -100
        with torch.no_grad():
            loss = reference(inputs, labels=labels).loss
        documented_count, true_count = int((labels != -100).sum()) - 1, int((labels[:, 1:] != -100).sum())
        if true_count:  # a window that begins with the last token has nothing to predict, and its loss is no number
            total, count = total + loss * documented_count, count + documented_count
            exact, exact_count = exact + loss * true_count, exact_count + true_count
        end_before = end
        if end == size:
            break
    return math.exp(total / count), math.exp(exact / exact_count), exact_count


@pytest.mark.parametrize("n", [5 * T, 5 * T + 1, 7 * T - 3, 700])
@pytest.mark.parametrize(("window", "stride"), [(T, T), (T, T // 2), (T, 11), (T, 3), (20, 20), (20, 11), (20, 1)])
def test_perplexity_is_that_of_the_documentation(n, window, stride):
    _, exact, count = documented(model(), text(n), window, stride)
    loss, predicted = strided_loss(model(), text(n), window, stride)
    assert math.exp(loss) == pytest.approx(exact, rel=1e-5) and predicted == count


def test_the_documented_weights_make_no_difference_that_matters():
    longer = model(block_size=128)
    for stride in (32, 64, 128):
        weighted, exact, _ = documented(longer, text(5000), 128, stride)
        found = math.exp(strided_loss(longer, text(5000), 128, stride)[0])
        assert found == pytest.approx(weighted, rel=1e-3)
    assert found == pytest.approx(weighted, rel=1e-5)  # without overlap there is no difference at all


def test_the_default_is_the_context_and_half_of_it():
    assert strided_loss(model(), text(200)) == strided_loss(model(), text(200), T, T // 2)


@pytest.mark.parametrize("n", [2, 9, T])
def test_a_text_shorter_than_the_window_is_one_window(n):
    loss, predicted = strided_loss(model(), text(n))
    with torch.no_grad():
        expected = F.cross_entropy(model()(text(n)[None, :-1])[0], text(n)[1:])
    assert loss == pytest.approx(float(expected), rel=1e-5) and predicted == n - 1


@pytest.mark.parametrize("stride", [1, 7, T - 1])
def test_where_windows_overlap_all_tokens_but_the_first_are_predicted(stride):
    assert strided_loss(model(), text(333), T, stride)[1] == 332


def test_a_model_that_knows_nothing_is_as_good_as_chance():
    blank = model()
    with torch.no_grad():
        for p in blank.parameters():
            p.zero_()
    assert strided_loss(blank, text(200))[0] == pytest.approx(math.log(V))


@pytest.mark.parametrize("changes", [dict(positions="rotary"), dict(n_kv_head=1, window=4)], ids=str)
def test_any_variant_can_be_scored(changes):
    own = model(**changes)
    expected = []
    for end in range(1, 100):  # stride 1: every token from as long a past as fits
        with torch.no_grad():
            logits = own(text(100)[None, max(0, end + 1 - T) : end])[0, -1]
        expected.append(float(F.cross_entropy(logits, text(100)[end])))
    assert strided_loss(own, text(100), T, 1)[0] == pytest.approx(sum(expected) / len(expected), rel=1e-5)


def test_rotary_positions_can_be_scored_past_the_context():
    assert strided_loss(model(positions="rotary"), text(200), 2 * T)[1] == 199


@pytest.mark.parametrize("training", [True, False])
def test_the_training_mode_is_restored_and_does_not_matter(training):
    dropping = model(dropout=0.5).train(training)
    found = strided_loss(dropping, text(100))
    assert all(module.training == training for module in dropping.modules())
    assert found == strided_loss(dropping.eval(), text(100))


def test_progress_sees_all_windows():
    seen = []

    def watch(batches):
        for batch in batches:
            seen.append(len(batch))
            yield batch

    strided_loss(model(), text(20 * T), T, T, watch)
    assert sum(seen) == 20 and len(seen) > 1


@pytest.mark.parametrize(
    ("n", "window", "stride", "words"),
    [
        (100, T + 1, None, ("window", T + 1, T)),
        (100, 1, None, ("window", 1)),
        (100, 16, 17, ("stride", 17, 16)),
        (100, 16, 0, ("stride", 0)),
        (100, 16, -3, ("stride", -3)),
        (1, None, None, ("text", 1)),
        (0, None, None, ("text", 0)),
    ],
)
def test_what_does_not_fit_is_refused(refused, n, window, stride, words):
    with refused(*words):
        strided_loss(model(), text(n), window, stride)


@pytest.mark.parametrize(
    ("variant", "architecture"),
    [
        ({}, "GPT2LMHeadModel"),
        (dict(n_kv_head=1), "GPTBigCodeForCausalLM"),
        (dict(positions="rotary", n_kv_head=2, window=6), "Starcoder2ForCausalLM"),
    ],
    ids=str,
)
def test_an_exported_model_has_the_same_perplexity_on_a_text_file(tmp_path, variant, architecture):
    """By its own tokenizer, and by the procedure of the documentation."""
    own, file = model(vocab_size=50257, n_head=4, **variant), tmp_path / "a.txt"
    file.write_text("First Citizen:\nBefore we proceed any further, hear me speak. «Ünïcödé» 🙂\n" * 9, encoding="utf-8")
    export_huggingface(own, tmp_path / "out")
    reference = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out").eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    assert type(reference).__name__ == architecture
    for stride in (T, T // 2, 11):
        score = score_text(own, read_text(file), T, stride)
        _, exact, count = documented_of(reference, torch.tensor(tokenizer(read_text(file)).input_ids), T, stride)
        assert score.perplexity == pytest.approx(exact, rel=1e-4) and score.predicted == count > 200


def test_units():
    score = TextScore(loss=2.0, predicted=9, tokens=10, bytes=50, characters=40, words=8)
    assert score.perplexity == pytest.approx(math.e**2)
    assert score.word_perplexity == pytest.approx(math.exp(20 / 8))
    assert score.bits_per_byte == pytest.approx(20 / math.log(2) / 50)
    assert score.bits_per_character == pytest.approx(20 / math.log(2) / 40)
    assert TextScore(1e5, 9, 10, 50, 40, 8).perplexity == math.inf


def test_counts_are_those_of_the_text():
    words = "Der König sprach: »Nein!«\n" * 20
    score = score_text(model(vocab_size=50257), words)
    assert (score.bytes, score.characters, score.words) == (len(words.encode()), len(words), 80)
    assert score.predicted == score.tokens - 1


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no text"),
        (b" \n\n", "no text"),
        (b"caf\xe9", "byte 4"),
        ("é\0".encode(), "byte 3"),
        (b"\x89PNG\r\n\x1a\n\0", "byte 1"),
    ],
    ids=["empty", "blank", "latin-1", "zero", "image"],
)
def test_a_file_that_is_no_text_is_refused(tmp_path, refused, content, words):
    (tmp_path / "a.txt").write_bytes(content)
    with refused("a.txt", words):
        read_text(tmp_path / "a.txt")


def test_a_missing_file_and_a_folder_are_refused(tmp_path, refused):
    for path in (tmp_path / "none.txt", tmp_path):
        with refused(path):
            read_text(path)
