"""Models whose layers see different things: reading in chunks, writing on, packing documents and padding prompts change
nothing."""

import dataclasses
import json
import sys

import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.checkpoint import checkpoint

from gpt2_ablate.errors import UserError
from gpt2_ablate.model import GPT2Config, KVCache, generate, stream

from .test_generate import greedy, seeded
from .tiny import close, few, refusal, sees, tiny, tiny_model, tokens

PATTERNS = {
    "alternating": dict(window=[5, None]),
    "growing": dict(window=[3, 8]),
    "dilated": dict(window=4, dilation=[1, 1, 2, 3]),
    "dilated-above": dict(window=4, dilation=[[1, 1, 1, 1], [1, 1, 2, 2]]),
    "global": dict(window=4, global_tokens=[0, 9]),
    "all": dict(window=[3, None], dilation=[1, 2, 1, 2], global_tokens=[1]),
    "none": dict(),
}
each_pattern = pytest.mark.parametrize("pattern", PATTERNS.values(), ids=PATTERNS)
each_model = pytest.mark.parametrize(
    "model",
    [
        pytest.param(dict(positions=p, n_kv_head=g, **pattern), id=f"{p}-{g or 'all'}-{name}")
        for p, g in (("learned", None), ("rotary", 2))
        for name, pattern in PATTERNS.items()
    ],
)


def alone(model, documents):
    with torch.no_grad():
        return torch.cat([model(document) for document in documents], dim=1)


@each_model
@few
@given(chunks=st.lists(st.integers(1, 12) | st.just(1), min_size=1, max_size=8), seed=st.integers(0, 99))
def test_reading_in_chunks_changes_nothing(model, chunks, seed):
    model = tiny_model(block_size=96, **model)
    text = tokens(2, sum(chunks), seed)
    cache = KVCache(model.config, 2, capacity=96)
    with torch.no_grad():
        found = torch.cat([model(chunk, cache) for chunk in text.split(chunks, dim=1)], dim=1)
        close(found, model(text), 1e-4)


@each_model
def test_writing_is_the_uncached_loop(model):
    model = tiny_model(block_size=64, **model)
    assert torch.equal(generate(model, tokens(3, 7), 50, temperature=0), greedy(model, tokens(3, 7), 50))


@each_model
def test_sampling_is_the_uncached_loop(model):
    model, text, draw = tiny_model(block_size=64, **model), tokens(3, 7), seeded()
    found = generate(model, text, 30, 1.5, top_k=20, top_p=0.8, generator=seeded())
    with torch.no_grad():
        for _ in range(30):
            logits = model(text)[:, -1] / 1.5
            logits[logits < logits.topk(20).values[:, -1:]] = float("-inf")
            likeliest, order = logits.softmax(-1).sort(-1, descending=True)
            likeliest[likeliest.cumsum(-1) - likeliest >= 0.8] = 0
            p = torch.zeros_like(likeliest).scatter(-1, order, likeliest)
            text = torch.cat((text, torch.multinomial(p, 1, generator=draw)), dim=1)
    assert torch.equal(found, text)


@each_model
def test_packed_documents_are_read_as_if_alone(model):
    model = tiny_model(**model)
    pieces = [tokens(2, n, seed=n) for n in (11, 1, 17, 20)]
    numbers = torch.cat([torch.full((2, p.shape[1]), n) for n, p in enumerate(pieces)], dim=1)
    with torch.no_grad():
        packed = model(torch.cat(pieces, dim=1), documents=numbers)
    close(packed, alone(model, pieces), 1e-4)


@each_model
@pytest.mark.parametrize("chunk", [1, 7, 20])
def test_packed_documents_meet_a_cache(model, chunk):
    """Also where a new document begins amid a chunk, and the window still holds the last one."""
    model = tiny_model(**model)
    pieces = [tokens(2, n, seed=n) for n in (11, 1, 17, 20)]
    numbers = torch.cat([torch.full((2, p.shape[1]), n) for n, p in enumerate(pieces)], dim=1)
    cache, text = KVCache(model.config, 2, capacity=100), torch.cat(pieces, dim=1)
    with torch.no_grad():
        parts = zip(text.split(chunk, dim=1), numbers.split(chunk, dim=1), strict=True)
        found = torch.cat([model(ids, cache, n) for ids, n in parts], dim=1)
    close(found, alone(model, pieces), 1e-4)


@each_model
def test_padded_prompts_are_continued_as_if_alone(model):
    """Also past the longest context, counted with the padding."""
    model, lengths = tiny_model(block_size=40, **model), [3, 12, 1, 8]
    prompts = [tokens(1, n, seed=n) for n in lengths]
    padded = torch.cat([torch.cat((tokens(1, 12 - p.shape[1], seed=7), p), dim=1) for p in prompts])
    found = generate(model, padded, 28, temperature=0, lengths=torch.tensor(lengths))
    assert torch.equal(found[:, :12], padded)
    for row, prompt in zip(found, prompts, strict=True):
        assert torch.equal(row[12 - prompt.shape[1] :], generate(model, prompt, 28, temperature=0)[0])


@each_pattern
def test_a_cache_does_not_grow_with_the_text(pattern):
    if not all(mask.window for mask in tiny(**pattern).masks):
        return
    model = tiny_model(positions="rotary", **pattern)
    sizes = [KVCache(model.config, capacity=n).nbytes for n in (100, 100_000)]
    assert sizes[0] == sizes[1]
    text = generate(model, tokens(1, 5), 120, temperature=0)
    assert torch.equal(text, greedy(model, tokens(1, 5), 120))


@pytest.mark.parametrize(
    ("pattern", "held"),
    [
        (dict(window=4, dilation=3), [10, 10]),
        (dict(window=[4, None]), [4, 60]),
        (dict(window=4, dilation=[1, 1, 1, 5], global_tokens=[0]), [17, 17]),
        (dict(window=4, global_tokens=[0, 9]), [12, 12]),  # the token at place 9 has yet to see all ten before it
    ],
)
def test_a_layer_holds_what_its_window_reaches(pattern, held):
    cache = KVCache(tiny(**pattern), capacity=60)
    assert [layer.keys.shape[2] for layer in cache.layers] == held


def test_a_long_prompt_is_read_in_pieces(monkeypatch):
    monkeypatch.setattr(sys.modules["gpt2_ablate.model.generate"], "CHUNK", 7)
    for pattern in PATTERNS.values():
        model = tiny_model(positions="rotary", **pattern)
        found = generate(model, tokens(2, 30), 5, temperature=0)
        assert torch.equal(found, greedy(model, tokens(2, 30), 5))
        padded = torch.cat((tokens(1, 9, seed=3), tokens(2, 30)[1:, :21]), dim=1)
        both = generate(model, torch.cat((tokens(2, 30)[:1], padded)), 5, temperature=0, lengths=torch.tensor([30, 21]))
        assert torch.equal(both[0], found[0])
        assert torch.equal(both[1:, 9:], greedy(model, padded[:, 9:], 5))


def test_layers_see_what_the_list_says():
    """One layer at a time, the other one seeing itself alone."""
    places = torch.arange(20)
    distance = places[None, :] - places[:, None]
    for window, expected in (([4, 1], 4), ([1, 6], 6), ([4, 6], 4 + 6 - 1)):
        assert torch.equal(sees(tiny_model(window=window), 20), (distance >= 0) & (distance < expected))


def test_global_tokens_see_and_are_seen():
    seen = sees(tiny_model(n_layer=1, window=3, global_tokens=[2, 10]), 20)
    i, j = torch.arange(20)[None, :], torch.arange(20)[:, None]
    assert torch.equal(seen, (j <= i) & ((i - j < 3) | (i == 10) | (i == 2) | (j == 2) | (j == 10)))


def test_heads_of_one_dilation_see_every_second_token():
    seen = sees(tiny_model(n_layer=1, window=3, dilation=2), 20)
    distance = torch.arange(20)[None, :] - torch.arange(20)[:, None]
    assert torch.equal(seen, (distance == 0) | (distance == 2) | (distance == 4))


@each_pattern
def test_every_kernel_is_the_same_model(pattern):
    model, text = tiny_model(**pattern), tokens(2, 32)
    reference = tiny_model(kernel="eager", **pattern)
    close(model(text), reference(text), 1e-4)


@each_pattern
def test_checkpointing_changes_nothing(pattern):
    model, text = tiny_model(positions="rotary", n_kv_head=2, **pattern).train(), tokens(2, 32)
    parameters = list(model.parameters())
    expected = torch.autograd.grad(model.hidden(text).square().sum(), parameters)
    again = checkpoint(model.hidden, text, use_reentrant=False)
    close(torch.autograd.grad(again.square().sum(), parameters), expected, 1e-4)


@each_pattern
def test_bf16_autocast_is_close(pattern):
    model, text = tiny_model(n_kv_head=2, **pattern), tokens(2, 32)
    exact = model(text)
    with torch.autocast("cpu", torch.bfloat16):
        half = model(text)
        loss = model.loss(text, text)
    loss.backward()
    assert 0 < (half - exact).abs().max() < 0.2
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@each_pattern
def test_a_config_survives_json_and_yaml(pattern):
    config = tiny(**pattern)
    assert GPT2Config(**json.loads(json.dumps(dataclasses.asdict(config)))) == config
    assert hash(config) == hash(dataclasses.replace(config))
    fields = {name: list(x) if isinstance(x, tuple) else x for name, x in dataclasses.asdict(config).items()}
    assert GPT2Config(**yaml.safe_load(yaml.safe_dump(json.loads(json.dumps(fields))))) == config


@each_pattern
def test_a_run_can_be_configured_with_it(pattern, tmp_path):
    from gpt2_ablate.training.trainer import build

    (tmp_path / "a.txt").write_text("To be, or not to be. " * 200)
    model = {"vocab_size": 50257, "block_size": 32, "n_layer": 2, "n_head": 4, "n_embd": 32, **pattern}
    data = {"corpus": str(tmp_path / "a.txt"), "batch_size": 2}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump({"model": {"config": model}, "data": data}))
    built = build(["--config", str(tmp_path / "run.yaml"), "--trainer.accelerator=cpu"], [], logger=False)
    assert built.model.model.config == GPT2Config(**model)


@pytest.mark.parametrize(
    ("changes", "field", "words"),
    [
        (dict(window=[4, 4, 4]), "window:", ("3", "n_layer = 2")),
        (dict(window=[]), "window:", ("0",)),
        (dict(window=[4, 0]), "window[1]:", ("0",)),
        (dict(window=[4, "5"]), "window[1]:", ("'5'",)),
        (dict(window=4, dilation=0), "dilation:", ("0",)),
        (dict(window=4, dilation=32), "dilation:", ("32", "its own token alone")),
        (dict(window=4, dilation=[1, 2]), "dilation:", ("2 numbers", "n_head = 4")),
        (dict(window=4, dilation=[[1, 1, 1, 1]] * 3), "dilation:", ("3", "n_layer = 2")),
        (dict(window=4, dilation=[[1, 1, 1, 1], [1, 1]]), "dilation[1]:", ("2 numbers",)),
        (dict(dilation=2), "dilation:", ("window",)),
        (dict(global_tokens=[0]), "global_tokens:", ("window",)),
        (dict(window=4, global_tokens=[32]), "global_tokens:", ("32", "from 0 to 31")),
        (dict(window=4, global_tokens=[-1]), "global_tokens:", ("-1",)),
        (dict(window=4, global_tokens=[3, 3]), "global_tokens:", ("twice",)),
        (dict(window=4, global_tokens=3), "global_tokens:", ("3", "[0]")),
        (dict(rope_base=0.5), "rope_base:", ("0.5",)),
        (dict(rope_factor=0), "rope_factor:", ("0",)),
        (dict(rope_factor=2.0), "rope_factor:", ("2.0", "rope_scaling")),
        (dict(rope_scaling="linear", rope_factor=2.0), "rope_scaling:", ("learned", "rotary")),
        (dict(mlp=None), "mlp:", ("None",)),
        (dict(positions=3), "positions:", ("3",)),
    ],
    ids=str,
)
def test_a_pattern_that_cannot_be_is_refused(changes, field, words):
    with pytest.raises(UserError) as raised:
        tiny(**changes)
    assert refusal(raised).startswith(field)
    assert all(word in refusal(raised) for word in words)


@pytest.mark.parametrize(
    ("changes", "field"),
    [(dict(kernel="fast"), "kernel:"), (dict(positions="rotary", rope_scaling="longer"), "rope_scaling:")],
    ids=str,
)
def test_a_name_that_is_none_is_refused_when_the_model_is_built(changes, field):
    with pytest.raises(UserError) as raised:
        tiny_model(**changes)
    assert refusal(raised).startswith(field)


def test_a_kernel_that_cannot_run_here_is_refused():
    with pytest.raises(UserError) as raised:
        tiny_model(window=4, kernel="flex")(tokens(1, 10))
    assert refusal(raised).startswith("kernel: flex")


class TestStream:
    def test_tokens_come_one_at_a_time(self):
        model, prompt, read = tiny_model(), tokens(2, 4), []
        hidden = model.hidden
        model.hidden = lambda *a, **k: (read.append(1), hidden(*a, **k))[1]
        new = stream(model, prompt, 10, temperature=0)
        assert not read
        first = next(new)
        assert first.shape == (2,) and len(read) == 1
        text = torch.stack([first, *new], dim=1)
        assert torch.equal(text, generate(model, prompt, 10, temperature=0)[:, 4:])

    def test_a_row_that_has_stopped_repeats_its_end_and_leaves_the_others_alone(self):
        model, prompt = tiny_model(positions="rotary"), tokens(6, 4)
        free = generate(model, prompt, 40, generator=seeded())[:, 4:]
        stop = set(free[0, 10:12].tolist())
        ends = [next((t for t, token in enumerate(row) if token in stop), 40) for row in free.tolist()]
        assert ends[0] < 40
        found = generate(model, prompt, 40, generator=seeded(), stop=stop)[:, 4:]
        assert found.shape[1] == min(40, max(ends) + 1)
        for row, full, end in zip(found, free, ends, strict=True):
            assert torch.equal(row[: end + 1], full[: found.shape[1]][: end + 1])
            assert (row[end:] == row[min(end, len(row) - 1)]).all()

    def test_the_stream_ends_with_its_last_row(self):
        model, prompt = tiny_model(), tokens(1, 4)
        first = int(generate(model, prompt, 1, temperature=0)[0, -1])
        assert len(list(stream(model, prompt, 20, temperature=0, stop=[first]))) == 1

    @pytest.mark.parametrize("top_p", [0.01, 0.3, 0.9])
    def test_only_the_nucleus_is_drawn(self, top_p):
        model, n = tiny_model(), 20_000
        with torch.no_grad():
            p = model(tokens(1, 3))[0, -1].softmax(-1)
        order = p.argsort(descending=True)
        kept, total = [], 0.0
        for token in order.tolist():
            kept.append(token)
            total += p[token].item()
            if total >= top_p:
                break
        drawn = next(stream(model, tokens(1, 3).expand(n, -1), 1, top_p=top_p, generator=seeded()))
        shares = drawn.bincount(minlength=97) / n
        assert set(drawn.unique().tolist()) <= set(kept)
        expected = p[kept] / total
        assert ((shares[kept] - expected).abs() <= 5 * (expected * (1 - expected) / n).sqrt() + 1 / n).all()

    @pytest.mark.parametrize("training", [True, False])
    def test_the_training_mode_comes_back_when_the_stream_is_dropped(self, training):
        model = tiny_model().train(training)
        new = stream(model, tokens(1, 4), 10)
        next(new)
        assert torch.is_grad_enabled()
        new.close()
        assert model.training == training

    @pytest.mark.parametrize(
        ("arguments", "field"),
        [
            (dict(top_p=0.0), "top_p: 0.0"),
            (dict(top_p=1.5), "top_p: 1.5"),
            (dict(stop=[97]), "stop: 97"),
            (dict(lengths=torch.tensor([5])), "lengths: [5]"),
            (dict(lengths=torch.tensor([0])), "lengths: [0]"),
            (dict(lengths=torch.tensor([3, 3])), "lengths: [3, 3]"),
            (dict(max_new_tokens=100), "input_ids: 104"),
        ],
        ids=str,
    )
    def test_a_bad_argument_is_refused_at_once(self, arguments, field):
        with pytest.raises(UserError) as raised:
            stream(tiny_model(), tokens(1, 4), **{"max_new_tokens": 3, **arguments})
        assert refusal(raised).startswith(field)
