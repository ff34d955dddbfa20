"""What is exported opens with transformers' own classes: the same function, the same text, the same loss."""

import json
import subprocess
import sys

import pytest
import torch
import transformers

from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.model import generate
from gpt2_ablate.model.parts import BUILT_IN
from gpt2_ablate.weights import export_huggingface, load_pretrained

from .models import assert_same_function, flip, same, tiny_model, tokens

GPT2, BIGCODE, STARCODER2 = "GPT2LMHeadModel", "GPTBigCodeForCausalLM", "Starcoder2ForCausalLM"
ROTARY = dict(positions="rotary")

each_variant = pytest.mark.parametrize(
    ("variant", "architecture"),
    [
        ({}, GPT2),
        (dict(n_kv_head=8), GPT2),
        (dict(n_kv_head=1), BIGCODE),
        (ROTARY, STARCODER2),
        (dict(**ROTARY, n_kv_head=2), STARCODER2),
        (dict(**ROTARY, n_kv_head=1, window=6), STARCODER2),
        (dict(**ROTARY, window=6), STARCODER2),
        (dict(**ROTARY, window=(6, 6)), STARCODER2),
        (dict(**ROTARY, rope_base=500.0), STARCODER2),
        (dict(**ROTARY, rope_interleaved=True, n_kv_head=2), STARCODER2),
        (dict(**ROTARY, rope_scaling="linear", rope_factor=4.0), STARCODER2),
        (dict(**ROTARY, rope_scaling="ntk", rope_factor=4.0), STARCODER2),
        (dict(**ROTARY, rope_scaling="yarn", rope_factor=4.0, block_size=128), STARCODER2),
    ],
    ids=str,
)


def model(**changes):
    return tiny_model(**{**dict(n_head=8, block_size=64), **changes})


def opened(folder):
    return transformers.AutoModelForCausalLM.from_pretrained(folder).eval()


@each_variant
def test_logits_and_loss_are_those_of_the_stock_architecture(tmp_path, variant, architecture):
    made = model(**variant)
    export_huggingface(made, tmp_path / "out")
    stock = opened(tmp_path / "out")
    assert type(stock).__name__ == architecture
    assert_same_function(made, stock)
    text = tokens(3, 30)
    with torch.no_grad():
        torch.testing.assert_close(made.loss(text[:, :-1], text[:, 1:]), stock(text, labels=text).loss, rtol=1e-5, atol=1e-5)


@each_variant
def test_greedy_text_is_that_of_its_generate_with_its_own_cache(tmp_path, variant, architecture):
    """40 tokens, where the window shows 6."""
    made = model(**variant)
    export_huggingface(made, tmp_path / "out")
    prompt = tokens(2, 8)
    theirs = opened(tmp_path / "out").generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=40, do_sample=False, pad_token_id=0, use_cache=True
    )
    ours = generate(made, prompt, 40, temperature=0)
    assert torch.equal(theirs, ours)
    assert len(ours[:, 8:].unique()) > 10  # it says something


@each_variant
def test_what_is_exported_comes_back_bit_for_bit(tmp_path, variant, architecture):
    made = model(**variant)
    export_huggingface(made, tmp_path / "out")
    back = load_pretrained(tmp_path / "out")
    if made.config.rope_interleaved:  # the stock architecture has the other convention
        torch.testing.assert_close(back(tokens()), made(tokens()), rtol=1e-4, atol=1e-4)
        export_huggingface(back, tmp_path / "again")
        back, made = load_pretrained(tmp_path / "again"), back
    assert same(back, made)
    torch.testing.assert_close(back(tokens()), made(tokens()), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("vocab_size", [257, 258, 2048, 50257, 50304])
@pytest.mark.parametrize("variant", [{}, dict(n_kv_head=1), ROTARY], ids=str)
def test_the_tokenizer_is_the_models(tmp_path, variant, vocab_size):
    export_huggingface(model(**variant, vocab_size=vocab_size, n_embd=32, n_layer=1), tmp_path / "out")
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    text = "First Citizen:\nBefore we proceed  any further, isn't it?\t 12,345 ünïcödé 日本語 🙂 <|endoftext|> x"
    ids, end = load_tokenizer(vocab_size).encode(text, allowed_special="all"), min(vocab_size, 50257) - 1
    assert tokenizer(text).input_ids == ids
    assert tokenizer.decode(ids) == text
    assert (tokenizer.eos_token_id, tokenizer.bos_token_id) == (end, end) and len(tokenizer) == end + 1
    stock = opened(tmp_path / "out")
    assert stock.generation_config.eos_token_id == end


@pytest.mark.parametrize("variant", [{}, dict(n_kv_head=1), ROTARY], ids=str)
def test_transformers_never_generates_padding(tmp_path, variant):
    made = model(**variant, vocab_size=50304, n_embd=32, n_layer=1)
    with torch.no_grad():
        made.norm.weight.zero_(), made.norm.bias.fill_(1.0)
        made.embedding.weight[50257:] = 5.0
    export_huggingface(made, tmp_path / "out")
    stock = opened(tmp_path / "out")
    prompt = torch.tensor([[464, 3290]])
    assert stock(prompt).logits.argmax() % 50304 >= 50257
    for sampled in (False, True):
        assert stock.generate(prompt, max_new_tokens=4, do_sample=sampled).max() < 50257


@pytest.mark.parametrize("vocab_size", [300, 50257])
def test_transformers_own_slow_files_are_right(tmp_path, vocab_size):
    export_huggingface(model(vocab_size=vocab_size, n_embd=32, n_layer=1), tmp_path / "out")
    (tmp_path / "out" / "tokenizer.json").unlink()
    text = "Before we proceed any further"
    ids = load_tokenizer(vocab_size).encode(text)
    assert transformers.AutoTokenizer.from_pretrained(tmp_path / "out")(text).input_ids == ids


def test_a_vocabulary_without_all_bytes_gets_no_tokenizer(tmp_path):
    export_huggingface(model(), tmp_path / "out")
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "generation_config.json", "README.md"}


def test_no_weight_is_written_twice(tmp_path):
    made = model()
    export_huggingface(made, tmp_path / "out")
    numbers = 4 * sum(p.numel() for p in made.parameters())
    assert numbers < (tmp_path / "out" / "model.safetensors").stat().st_size < numbers + 10_000


def test_others_may_read_what_they_may_read_of_any_file(tmp_path):
    export_huggingface(model(), tmp_path / "out")
    (tmp_path / "plain").write_text("text")
    assert {file.stat().st_mode for file in (tmp_path / "out").iterdir()} == {(tmp_path / "plain").stat().st_mode}


def test_a_flipped_bit_is_refused_by_the_tensor(tmp_path, refused):
    export_huggingface(model(), tmp_path / "out")
    flip(tmp_path / "out" / "model.safetensors")
    with refused(tmp_path / "out" / "model.safetensors", "wte.weight", "sha256"):
        load_pretrained(tmp_path / "out")


def test_reading_and_writing_takes_no_transformers():
    code = "import sys, gpt2_ablate.model, gpt2_ablate.weights; sys.exit('transformers' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


RECORD = {
    "schema": 1, "variant": "rope", "seed": 3, "preset": "cpu", "status": "finished",
    "config": {"data": {"corpus": "shakespeare"}, "trainer": {"max_steps": 280}},
    "metrics": {"validation_loss": 5.90119, "validation_perplexity": 365.47, "test_loss": None},
    "environment": {"hardware": "AMD EPYC", "git_commit": "b5b8f13"},
}  # fmt: skip


def test_the_card_has_the_numbers_of_the_record(tmp_path):
    export_huggingface(model(**ROTARY, window=6, n_kv_head=2), tmp_path / "out", RECORD)
    card = (tmp_path / "out" / "README.md").read_text()
    for text in ("rope", "5.901", "365.5", "shakespeare", "280 steps", "AMD EPYC", "b5b8f13", STARCODER2, "window of 6 tokens"):
        assert text in card
    assert "test loss" not in card and card.startswith("---\nlibrary_name: transformers\n")


@pytest.mark.parametrize("record", [None, {"variant": "rope", "seed": 0, "status": "finished"}])
def test_without_numbers_the_card_states_none(tmp_path, record):
    export_huggingface(model(), tmp_path / "out", record)
    card = (tmp_path / "out" / "README.md").read_text()
    assert "loss" not in card and f"{sum(p.numel() for p in model().parameters()):,}" in card


# What is refused


@pytest.mark.parametrize(
    ("variant", "field"),
    [
        (dict(n_kv_head=2), "n_kv_head"),
        (dict(window=6), "window"),
        (dict(n_kv_head=1, window=6), "window"),
        (dict(**ROTARY, window=(6, None)), "window"),
        (dict(**ROTARY, window=(6, 8)), "window"),
        (dict(**ROTARY, window=6, dilation=2), "dilation"),
        (dict(**ROTARY, window=6, global_tokens=(0,)), "global_tokens"),
    ],
    ids=str,
)
def test_what_transformers_cannot_say_is_refused_by_its_field(tmp_path, refused, variant, field):
    with refused(f"{field}: ", "rotary positions with any key/value heads"):
        export_huggingface(model(**variant), tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("kind", BUILT_IN)
def test_a_part_of_ones_own_is_refused_by_its_kind(tmp_path, refused, kind):
    module, _, name = next(iter(BUILT_IN[kind].values())).rpartition(":")
    (tmp_path / "own.py").write_text(f"from {module} import {name}\n\n\nclass Own({name}):\n    pass\n")
    with refused(f"{kind}: ", "own.py:Own"):
        export_huggingface(model(**{kind: f"{tmp_path / 'own.py'}:Own"}), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_is_refused_and_stays(tmp_path, refused):
    (tmp_path / "thesis.txt").write_text("text")
    with refused(tmp_path):
        export_huggingface(model(), tmp_path)
    assert [file.name for file in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path, refused):
    (tmp_path / "out").write_text("text")
    with refused(tmp_path / "out"):
        export_huggingface(model(), tmp_path / "out")
    assert (tmp_path / "out").read_text() == "text"


def test_an_empty_folder_is_taken_and_parents_are_made(tmp_path):
    for folder in (tmp_path / "a" / "b" / "out", tmp_path / "empty"):
        (tmp_path / "empty").mkdir(exist_ok=True)
        export_huggingface(model(), folder)
        assert json.loads((folder / "config.json").read_text())["model_type"] == "gpt2"
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a", "empty"]


@pytest.mark.parametrize("size", [0, 100, 20_000])
def test_a_full_disk_leaves_nothing(tmp_path, refused, full_disk, size):
    with refused(tmp_path / "out"), full_disk(size):
        export_huggingface(model(), tmp_path / "out")
    assert not list(tmp_path.iterdir())
