"""Costs: FLOPs are those that torch counts and those of the pairs that a mask shows; receptive fields are of real models."""

from __future__ import annotations

import itertools
import logging
import subprocess
import sys
import textwrap
from dataclasses import replace

import pytest
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from gpt2_ablate.errors import UserError
from gpt2_ablate.evaluation.flops import (
    count_parameters,
    forward_flops_per_token,
    receptive_field,
    training_flops_per_token,
)
from gpt2_ablate.model import GPT2, GPT2Config

WINDOW = 16
SMALL = dict(vocab_size=97, block_size=64, n_layer=2, n_head=4, n_embd=32)
VARIANTS = [
    dict(positions=positions, n_kv_head=n_kv_head, window=window)
    for positions, n_kv_head, window in itertools.product(("learned", "rotary"), (None, 2), (None, WINDOW))
]
PATTERNS = [
    dict(window=[WINDOW, None]),
    dict(window=[4, 12], n_kv_head=2),
    dict(window=WINDOW, dilation=3),
    dict(window=8, dilation=[1, 1, 2, 5], n_kv_head=2),
    dict(window=8, dilation=[[1, 1, 1, 1], [1, 2, 1, 2]], global_tokens=[0, 40], n_kv_head=1),
    dict(window=WINDOW, positions="rotary", global_tokens=[0]),
]
each_pattern = pytest.mark.parametrize("pattern", PATTERNS, ids=str)
each_variant = pytest.mark.parametrize("variant", VARIANTS, ids=lambda v: "-".join(str(x) for x in v.values()))


def small(**changes) -> GPT2Config:
    return GPT2Config(**{**SMALL, **changes})


def on_meta(config: GPT2Config) -> GPT2:
    with torch.device("meta"):
        return GPT2(config)


def closed_form_flops_per_token(config: GPT2Config, context: int) -> float:
    """As the textbook has it, for GPT-2's own attention and MLP."""
    C = config.n_embd
    projections = C * (config.n_head + 2 * config.kv_heads) * config.head_dim + C * C
    mlp = 2 * C * 4 * C
    head = C * config.vocab_size
    return 2 * (config.n_layer * (projections + mlp) + head) + score_flops_per_token(config, context)


def score_flops_per_token(config: GPT2Config, context: int) -> float:
    """Queries with keys, then probabilities with values: D multiply-adds each for every pair that a mask shows."""
    return 2 * 2 * config.head_dim * sum(shown_pairs(mask, config.n_head, context) for mask in config.masks) / context


def shown_pairs(mask, n_head: int, T: int) -> int:
    """Of all heads of one layer, one by one: the definition of a window, of dilation and of global tokens."""
    count = 0
    for d in mask.dilation if isinstance(mask.dilation, tuple) else (mask.dilation,) * n_head:
        for i, j in itertools.combinations_with_replacement(range(T), 2):
            distance = j - i  # of the query j to the key i
            near = mask.window is None or (distance % d == 0 and distance // d < mask.window)
            count += near or i in mask.global_tokens or j in mask.global_tokens
    return count


def torch_flops_per_token(config: GPT2Config, context: int, device: str = "meta") -> float:
    """As torch.utils.flop_counter counts them: below autograd, from other operators than fvcore, every score of attention."""
    # torch has no formula for the fused attention of CPUs; unfused, it is two products as on any device.
    with torch.device(device), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
        GPT2(replace(config, block_size=max(config.block_size, context)))(torch.zeros(1, context, dtype=torch.long))
    return counter.get_total_flops() / context


def torch_flops_beside_scores(config: GPT2Config, context: int, device: str = "meta") -> float:
    """The same, less those of full attention's scores, all T x T of them."""
    full = replace(config, window=None, dilation=1, global_tokens=())
    return torch_flops_per_token(full, context, device) - 4 * config.n_layer * context * config.n_embd


@pytest.fixture
def add_part(tmp_path):
    """A function that writes a class into the file of a part, as a user would, and returns how a config names it."""

    def add(source: str) -> str:
        imports = """
            import torch
            import torch.nn.functional as F
            from torch import nn
            from gpt2_ablate.model.attention import SelfAttention
            from gpt2_ablate.model.gpt2 import Block
            from gpt2_ablate.model.positions import Positions
        """
        (tmp_path / "part.py").write_text(textwrap.dedent(imports) + textwrap.dedent(source))
        return f"{tmp_path / 'part.py'}:Part"

    return add


class TestFlops:
    @each_variant
    @pytest.mark.parametrize("context", [1, WINDOW, WINDOW + 1, 4 * WINDOW, 5 * WINDOW + 3])
    def test_the_scores_are_those_that_the_mask_shows(self, variant, context):
        config = small(**variant)
        assert forward_flops_per_token(config, context) == pytest.approx(closed_form_flops_per_token(config, context), rel=1e-12)

    @each_pattern
    @pytest.mark.parametrize("context", [1, 7, 50, 64, 83])
    def test_the_scores_are_those_that_any_pattern_shows(self, pattern, context, caplog):
        config = small(**pattern)
        expected = closed_form_flops_per_token(config, context)
        with caplog.at_level(logging.WARNING):
            assert forward_flops_per_token(config, context) == pytest.approx(expected, rel=1e-12)
        assert not caplog.records

    @pytest.mark.parametrize("changes", [*VARIANTS, *PATTERNS], ids=str)
    def test_all_else_is_what_torch_counts(self, changes):
        config = small(**changes)
        without_scores = forward_flops_per_token(config, 50) - score_flops_per_token(config, 50)
        assert without_scores == pytest.approx(torch_flops_beside_scores(config, 50), rel=1e-12)

    @each_variant
    def test_at_full_size(self, variant):
        config = GPT2Config(**{**variant, "window": variant["window"] and 256, "n_kv_head": variant["n_kv_head"] and 4})
        pairs = sum(min(t, config.window or t) for t in range(1, 1001))
        expected = torch_flops_beside_scores(config, 1000) + 4 * 12 * 768 * pairs / 1000
        assert forward_flops_per_token(config, 1000) == pytest.approx(expected, rel=1e-12)

    def test_124m_is_two_per_weight_and_the_scores(self):
        # 2 N of every weight that is multiplied (tables and norms are not, the head is), 4 L (T + 1) / 2 C of attention.
        matrices = 12 * 12 * 768**2 + 50257 * 768
        assert forward_flops_per_token(GPT2Config(), 1024) == 2 * matrices + 4 * 12 * 1025 // 2 * 768 == 265_956_864

    @pytest.mark.parametrize("changes", VARIANTS, ids=str)
    def test_generating_a_text_with_a_cache_costs_what_reading_it_does(self, changes):
        model, steps = GPT2(small(**changes)).eval(), 50
        cache = model.make_cache()
        with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter, torch.no_grad():
            for _ in range(steps):
                model.embedding.logits(model.hidden(torch.zeros(1, 1, dtype=torch.long), cache))
        assert counter.get_total_flops() / steps == pytest.approx(forward_flops_per_token(model.config, steps), rel=1e-12)

    def test_full_attention_grows_with_the_context(self):
        at = [forward_flops_per_token(small(), context) for context in (16, 32, 48)]
        assert at[1] - at[0] == at[2] - at[1] == 4 * 2 * 16 / 2 * 32  # 4 L dT C, of which the future is half

    def test_a_window_makes_the_whole_linear_in_the_context(self):
        total = [forward_flops_per_token(small(window=16), n * 16) * n * 16 for n in (1, 2, 3, 7)]
        assert total[2] - total[1] == total[1] - total[0]
        assert total[3] - total[2] == 4 * (total[2] - total[1])

    def test_a_window_that_covers_the_context_changes_nothing(self):
        assert forward_flops_per_token(small(window=64), 64) == forward_flops_per_token(small(), 64)

    @pytest.mark.parametrize("window", [None, WINDOW])
    @pytest.mark.parametrize("groups", [1, 2])
    def test_grouped_queries_save_the_projections_of_the_missing_heads(self, groups, window):
        saved = 2 * 2 * 32 * 2 * (4 - groups) * 8  # 2 a multiply-add, L, C, keys and values, H - G heads, D
        all_heads, fewer = small(window=window), small(window=window, n_kv_head=groups)
        assert forward_flops_per_token(all_heads, 50) - forward_flops_per_token(fewer, 50) == pytest.approx(saved)

    def test_rotary_positions_add_no_products(self):
        assert forward_flops_per_token(small(positions="rotary"), 50) == forward_flops_per_token(small(), 50)

    def test_context_may_be_longer_than_the_model_reads(self):
        assert forward_flops_per_token(small(), 200) == forward_flops_per_token(small(block_size=200), 200)

    def test_dropout_costs_nothing(self):
        assert forward_flops_per_token(small(dropout=0.1), 50) == forward_flops_per_token(small(), 50)

    @each_variant
    def test_training_is_three_times_that(self, variant, add_part):
        part = add_part("""
            class Part(SelfAttention):
                def attend(self, q, k, v, key_positions, context):
                    return v.repeat_interleave(q.shape[1] // v.shape[1], 1)
        """)
        config = small(**variant, attention=part)  # all but the scores
        with FlopCounterMode(display=False) as counter:
            on_meta(config)(torch.empty(1, 50, dtype=torch.long, device="meta")).sum().backward()
        assert training_flops_per_token(config, 50) == pytest.approx(counter.get_total_flops() / 50, rel=1e-12)
        scores = training_flops_per_token(small(**variant), 50) - training_flops_per_token(config, 50)
        assert scores == pytest.approx(3 * score_flops_per_token(config, 50), rel=1e-12)

    def test_no_text_is_refused(self):
        with pytest.raises(UserError, match="^context: 0 is too small"):
            forward_flops_per_token(small(), 0)

    def test_counting_leaves_random_numbers_alone(self):
        torch.manual_seed(0)
        before = torch.get_rng_state()
        forward_flops_per_token(small(n_layer=3), 20)
        assert torch.equal(torch.get_rng_state(), before)

    def test_nothing_is_printed(self):
        program = """
            from gpt2_ablate.evaluation.flops import *
            config = GPT2Config(n_layer=2, positions="rotary", n_kv_head=3, window=100)
            forward_flops_per_token(config, 250)
        """
        command = [sys.executable, "-W", "always", "-c", textwrap.dedent(program)]
        run = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert (run.returncode, run.stdout, run.stderr) == (0, "", "")


class TestParameters:
    def test_124m(self):
        assert count_parameters(on_meta(GPT2Config())) == {
            "total": 124_439_808,
            "embedding": 50257 * 768 + 1024 * 768,
            "attention": 12 * (4 * 768**2 + 4 * 768),
            "mlp": 12 * (8 * 768**2 + 5 * 768),
            "norm": 25 * 2 * 768,
        }

    @each_variant
    def test_pieces_sum_to_the_total(self, variant):
        model = on_meta(small(**variant))
        total, *pieces = count_parameters(model).values()
        assert sum(pieces) == total == sum(p.numel() for p in model.parameters())

    def test_rotary_saves_the_table_and_grouped_queries_their_heads(self):
        full = count_parameters(on_meta(small()))
        less = count_parameters(on_meta(small(positions="rotary", n_kv_head=1)))
        assert full["embedding"] - less["embedding"] == 64 * 32
        missing = 2 * 2 * 3 * 8  # L, keys and values, H - G heads, D
        assert full["attention"] - less["attention"] == missing * (32 + 1)  # C weights and a bias for each
        assert (full["mlp"], full["norm"]) == (less["mlp"], less["norm"])

    def test_what_a_part_adds_is_counted_where_it_sits(self, add_part):
        block = add_part("""
            class Part(Block):
                def __init__(self, config, layer):
                    super().__init__(config, layer)
                    self.scale = nn.Parameter(torch.ones(config.n_embd))
                    self.adapter = nn.Linear(config.n_embd, 2)
        """)
        plain, counted = (count_parameters(on_meta(small(**changes))) for changes in ({}, {"block": block}))
        assert counted == {**plain, "total": plain["total"] + 2 * (32 + 66), "block": 2 * 32, "adapter": 2 * 66}


class TestReceptiveField:
    @pytest.mark.parametrize(("n_layer", "window"), [(1, 1), (1, 4), (2, 3), (3, 5)])
    @pytest.mark.parametrize("dilation", [1, 2])
    def test_is_as_far_as_gradients_flow(self, n_layer, window, dilation):
        torch.manual_seed(0)
        model = GPT2(small(n_layer=n_layer, window=window, dilation=dilation))
        tokens: list[torch.Tensor] = []
        hook = model.embedding.register_forward_hook(lambda _module, _inputs, output: tokens.append(output))
        logits = model(torch.randint(97, (1, 40)))
        hook.remove()
        (gradient,) = torch.autograd.grad(logits[0, -1].square().sum(), tokens)
        reached = gradient[0].abs().sum(-1).nonzero().flatten()
        assert 40 - int(reached.min()) == receptive_field(model.config)
        assert len(reached) == n_layer * (window - 1) + 1

    def test_layers_add_up_and_one_without_a_window_has_no_end(self):
        assert receptive_field(small(window=[3, 5])) == 2 + 4 + 1
        assert receptive_field(small(window=4, dilation=[1, 1, 1, 3])) == 2 * 9 + 1
        assert receptive_field(small()) is receptive_field(small(window=[3, None])) is None


class TestAddedParts:
    def test_swiglu(self, add_part):
        part = add_part("""
            class Part(nn.Module):
                def __init__(self, config, layer):
                    super().__init__()
                    self.gate = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
                    self.input = nn.Linear(config.n_embd, 3 * config.n_embd, bias=False)
                    self.output = nn.Linear(3 * config.n_embd, config.n_embd, bias=False)

                def forward(self, x):
                    return self.output(F.silu(self.gate(x)) * self.input(x))
        """)  # fmt: skip
        config = small(mlp=part)
        assert count_parameters(on_meta(config))["mlp"] == 2 * 9 * 32**2
        more = 2 * 2 * (9 - 8) * 32**2  # 2 a multiply-add, L, 3 matrices of 3 C^2 in the place of 2 of 4 C^2
        assert forward_flops_per_token(config, 50) - forward_flops_per_token(small(), 50) == pytest.approx(more)
        assert forward_flops_per_token(config, 50) - score_flops_per_token(config, 50) == torch_flops_beside_scores(config, 50)

    def test_attention_written_out(self, add_part, caplog):
        # Sizes read in every way, products by einsum and by broadcasting, and a loop over the tokens.
        part = add_part("""
            class Part(nn.Module):
                def __init__(self, config, layer):
                    super().__init__()
                    self.heads = config.n_head
                    self.qkv = nn.Linear(config.n_embd, 3 * config.n_embd)
                    self.output = nn.Linear(config.n_embd, config.n_embd)

                def forward(self, x, context):
                    B, T, C = x.size()
                    q, k, v = self.qkv(x).view(B, T, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
                    scores = torch.einsum("bhqd,bhkd->bhqk", q, k) / q.size(-1) ** 0.5
                    hidden = torch.triu(torch.ones(T, T, dtype=torch.bool), 1)
                    y = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ v
                    mean = torch.ones(T, T) / x.numel() @ y
                    last = torch.stack([mean[:, :, t] for t in range(x.shape[1])], 2)
                    return self.output((y + last).transpose(1, 2).reshape(B, T, C))
        """)  # fmt: skip
        config = small(attention=part)
        assert count_parameters(on_meta(config))["attention"] == 2 * (4 * 32**2 + 4 * 32)
        with caplog.at_level(logging.WARNING):
            counted = forward_flops_per_token(config, 50)
        assert not caplog.records
        assert counted == pytest.approx(torch_flops_per_token(config, 50), rel=1e-3)
        dense = 3 * 2 * 2 * 50 * 32  # three products of T x T, of which none is known to be masked
        assert counted - dense == pytest.approx(torch_flops_beside_scores(small(), 50), rel=1e-3)

    def test_attention_by_torch_is_known_to_be_causal(self, add_part):
        part = add_part("""
            class Part(SelfAttention):
                def attend(self, q, k, v, key_positions, context):
                    return F.scaled_dot_product_attention(q, k, v, is_causal=True)
        """)
        assert forward_flops_per_token(small(attention=part), 50) == forward_flops_per_token(small(), 50)

    def test_a_mask_of_its_own_and_wider_values(self, add_part):
        part = add_part("""
            from dataclasses import replace
            class Part(SelfAttention):
                def attend(self, q, k, v, key_positions, context):
                    self.mask = replace(self.mask, window=5)
                    return super().attend(q, k, torch.cat((v, v), -1), key_positions, context)[..., : q.shape[-1]]
        """)
        scores = score_flops_per_token(small(window=5), 50) * 3 / 2
        without = forward_flops_per_token(small(), 50) - score_flops_per_token(small(), 50)
        assert forward_flops_per_token(small(attention=part), 50) == pytest.approx(without + scores)

    def test_positions_that_bias_the_scores(self, add_part, caplog):
        part = add_part("""
            class Part(Positions):
                def __init__(self, config):
                    super().__init__()
                    self.slopes = nn.Parameter(torch.ones(config.n_head))

                def score_bias(self, queries, keys):
                    return -self.slopes[:, None, None] * (queries[:, None] - keys[None, :]).abs()
        """)  # fmt: skip
        config, plain = small(positions=part, window=16), small(window=16)
        assert count_parameters(on_meta(config))["embedding"] == 97 * 32 + 4
        with caplog.at_level(logging.WARNING):
            assert forward_flops_per_token(config, 50) == forward_flops_per_token(plain, 50)
        assert not caplog.records

    @pytest.mark.parametrize(
        ("product", "multiply_adds"),
        [
            ("mm(x[0], self.w)", 20 * 32**2),
            ("bmm(x, self.w[None])", 20 * 32**2),
            ("addmm(x[0], x[0], self.w)", 20 * 32**2),
            ("baddbmm(x, x, self.w[None])", 20 * 32**2),
            ("mv(self.w, x[0, 0])", 32**2),
            ("addmv(x[0, 0], self.w, x[0, 0])", 32**2),
            ("dot(x[0, 0], x[0, 0])", 32),
            ("einsum('btc,cd->btd', x, self.w)", 20 * 32**2),
            ("conv1d(x.mT, self.w[:, :, None].repeat(1, 1, 3), padding=1).mT", 3 * 20 * 32**2),
        ],
    )
    def test_every_product(self, add_part, caplog, product, multiply_adds):
        part = add_part(f"""
            class Part(nn.Module):
                def __init__(self, config, layer):
                    super().__init__()
                    self.w = nn.Parameter(torch.empty(config.n_embd, config.n_embd))

                def forward(self, x):
                    return x + torch.{product}
        """)  # fmt: skip
        without_mlp = closed_form_flops_per_token(small(), 20) - 2 * 2 * 8 * 32**2
        with caplog.at_level(logging.WARNING):
            counted = forward_flops_per_token(small(mlp=part), 20)
        assert counted - without_mlp == pytest.approx(2 * 2 * multiply_adds / 20)
        assert not caplog.records

    def test_a_choice_by_value(self, add_part, caplog):
        part = add_part("""
            class Part(nn.Module):
                def __init__(self, config, layer):
                    super().__init__()
                    self.expert = nn.Linear(config.n_embd, config.n_embd)

                def forward(self, x):
                    return x + self.expert(x) if x.isfinite().all() else x
        """)  # fmt: skip
        config = small(mlp=part, n_kv_head=2, window=16)
        expected = closed_form_flops_per_token(small(n_kv_head=2, window=16), 50) - 2 * 2 * (8 - 1) * 32**2
        with caplog.at_level(logging.WARNING):
            assert forward_flops_per_token(config, 50) == pytest.approx(expected)
        scores = score_flops_per_token(config, 50)
        assert torch_flops_beside_scores(config, 50, "cpu") == pytest.approx(expected - scores)
        assert not caplog.records

    def test_an_operator_that_nobody_knows_is_named(self, add_part, caplog):
        part = add_part("""
            class Part(nn.Module):
                def __init__(self, config, layer):
                    super().__init__()

                def forward(self, x):
                    return x + torch.tensordot(x, x.new_ones(x.shape[-1], x.shape[-1]), 1)
        """)  # fmt: skip
        with caplog.at_level(logging.WARNING):
            forward_flops_per_token(small(mlp=part), 20)
        (record,) = caplog.records
        assert "aten::tensordot" in record.getMessage()


def test_a_kernel_that_cannot_run_where_flops_are_counted_does_not_matter():
    config = GPT2Config(**SMALL, window=WINDOW)
    forced = GPT2Config(**SMALL, window=WINDOW, kernel="flex")
    assert forward_flops_per_token(forced, 64) == forward_flops_per_token(config, 64)
