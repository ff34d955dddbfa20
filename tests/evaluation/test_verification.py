"""Verification passes for GPT-2 at full size, and fails for each model that is nearly GPT-2."""

import dataclasses
import json
import math

import pytest
import torch
import torch.nn.functional as F
import transformers
from rich.console import Console

from gpt2_ablate.evaluation import hf_reference, verification
from gpt2_ablate.evaluation.hf_reference import Pair, open_pair, random_pair, reference_of
from gpt2_ablate.evaluation.verification import CHECKS, PUBLISHED, passed, verify
from gpt2_ablate.model import GPT2, GPT2Config
from gpt2_ablate.report.render import verification as verification_report
from gpt2_ablate.weights.folder import save_model
from gpt2_ablate.weights.hf_architectures import ARCHITECTURES

TINY = dict(vocab_size=97, n_positions=32, n_embd=32, n_layer=3, n_head=4)
CONFIG = GPT2Config(vocab_size=97, block_size=32, n_embd=32, n_layer=3, n_head=4)


@pytest.fixture
def pair():
    return random_pair(TINY)


@pytest.fixture(autouse=True)
def in_an_empty_folder_without_a_cache(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))


def outcomes(pair):
    return {check.__name__: check(pair).passed for check in CHECKS}


def test_the_124m_model_is_gpt2():
    found = outcomes(open_pair())
    assert found.pop("published_text") is None  # the released weights are not here, and that is no pass
    assert found == dict.fromkeys(found, True) and len(found) == 7


def test_a_small_model_is_gpt2(pair):
    assert [outcome for outcome in outcomes(pair).values() if outcome is not None] == 7 * [True]


def test_the_weights_are_all_random_and_come_from_the_seed(pair):
    assert all(p.std() > 0.01 for p in pair.model.parameters())
    again, other = random_pair(TINY), random_pair(TINY, seed=1)
    assert torch.equal(pair.model.embedding.weight, again.model.embedding.weight)
    assert not torch.equal(pair.model.embedding.weight, other.model.embedding.weight)


def exact_gelu(model):
    for block in model.blocks:
        block.mlp.forward = lambda x, mlp=block.mlp: mlp.output(F.gelu(mlp.input(x)))


def smaller_epsilon(model):
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-6


def scores_scaled_by_width(model):
    for block in model.blocks:
        project = block.attention.project

        def smaller_queries(x, context, project=project):
            q, k, v = project(x, context)
            return [q / math.sqrt(q.shape[-1]), k, v]

        block.attention.project = smaller_queries


def positions_off_by_one(model):
    table = model.positions.table
    model.positions.embed = lambda x, context: x + table((context.position_ids + 1) % table.num_embeddings)


def no_last_norm(model):
    model.norm.forward = lambda x: x


def norm_behind(model):
    for block in model.blocks:
        block.forward = lambda x, *rest, b=block: (lambda y: b.norm_2(y + b.mlp(y)))(b.norm_1(x + b.attention(x, *rest)))


def keys_and_values_exchanged(model):
    for block in model.blocks:
        project = block.attention.project
        block.attention.project = lambda x, context, project=project: [project(x, context)[i] for i in (0, 2, 1)]


WRONG = (
    exact_gelu, smaller_epsilon, scores_scaled_by_width, positions_off_by_one, no_last_norm, norm_behind,
    keys_and_values_exchanged,
)  # fmt: skip


@pytest.mark.parametrize("wrong", WRONG)
def test_another_function_of_the_same_weights_fails(pair, wrong):
    wrong(pair.model)
    found = outcomes(pair)
    assert found["weights"] is True  # nothing wrong with these
    assert found["exact_logits"] is False and found["hidden_states"] is False


@pytest.mark.parametrize("name", ["embedding.weight", "blocks.1.attention.qkv.bias", "blocks.2.norm_1.weight", "norm.bias"])
def test_a_single_number_that_differs_fails_and_is_named(pair, name):
    with torch.no_grad():
        pair.model.get_parameter(name).view(-1)[1] += 1e-2
    check = verification.weights(pair)
    assert check.passed is False and next(iter(ARCHITECTURES["gpt2"].renamed({name: torch.zeros(2, 2)}, CONFIG))) in check.found


def test_a_gradient_that_is_missing_or_wrong_fails_and_is_named(pair):
    pair.model.get_parameter("blocks.1.mlp.input.weight").register_hook(lambda gradient: 1.01 * gradient)
    check = verification.gradients(pair)
    assert check.passed is False and "h.1.mlp.c_fc.weight" in check.found
    pair.model.get_parameter("positions.table.weight").requires_grad_(False)
    check = verification.gradients(pair)
    assert check.passed is False and "wpe" in check.found and "inf" in check.found


def spoilt(output):
    """The same, with one number that is none."""
    output = output.clone()
    output.view(-1)[-1] = math.nan
    return output


@pytest.mark.parametrize("step", [verification.hidden_states, verification.logits, verification.exact_logits])
@pytest.mark.parametrize("side", ["model", "reference"])
def test_a_number_that_is_none_fails(pair, step, side):
    model, reference = pair.model, pair.reference.transformer
    norms = {"model": [model.blocks[2].norm_1, model.norm], "reference": [reference.h[2].ln_1, reference.ln_f]}[side]
    for norm in norms:  # amid the layers, where what came before is right
        norm.register_forward_hook(lambda module, inputs, output: spoilt(output))
    check = step(pair)
    assert check.passed is False and "nan" in check.found


@pytest.mark.parametrize("side", ["model", "reference"])
def test_a_gradient_with_a_number_that_is_none_fails_and_is_named(pair, side):
    name = {"model": "blocks.1.mlp.input.weight", "reference": "transformer.h.1.mlp.c_fc.weight"}[side]
    getattr(pair, side).get_parameter(name).register_hook(spoilt)
    check = verification.gradients(pair)
    assert check.passed is False and "h.1.mlp.c_fc.weight" in check.found and "nan" in check.found


def test_gradients_leave_nothing_behind(pair):
    verification.gradients(pair)
    assert all(p.grad is None for p in pair.model.parameters())
    assert verification.gradients(pair).passed


def test_a_cache_that_forgets_fails(pair):
    from gpt2_ablate.model.kv_cache import KVCache  # as `generate` uses it

    hidden = pair.model.hidden

    def forgetful(ids, cache=None, *rest):
        return hidden(ids, KVCache(pair.model.config, len(ids)) if ids.shape[1] == 1 else cache, *rest)

    pair.model.hidden = forgetful
    assert verification.greedy_text(pair).passed is False


def test_other_parameter_counts_fail(pair, monkeypatch):
    monkeypatch.setitem(verification.PARAMETERS, "gpt2-large", 774_030_081)
    check = verification.parameters(pair)
    assert check.passed is False and check.found == "gpt2-large: 774,030,080"


def test_exact_logits_leave_the_weights_as_they_were(pair):
    before = [p.clone() for p in pair.model.parameters()]
    verification.exact_logits(pair)
    assert all(torch.equal(p, b) and p.dtype == torch.float32 for p, b in zip(pair.model.parameters(), before, strict=True))


class TestPublishedText:
    """The released weights are not here; a model that says what they say, and one that does not, stand in for them."""

    def pair(self, monkeypatch, texts):
        def generate(model, ids, new, temperature):
            (text,) = [text for text in texts if text[: ids.shape[1]] == ids[0].tolist()]
            return torch.tensor([text[: ids.shape[1] + new]])

        monkeypatch.setattr(verification, "generate", generate)
        return Pair("gpt2", None, None, "")

    def texts(self):
        encode = verification.load_tokenizer().encode_ordinary
        return [encode(prompt + text) for prompt, text in PUBLISHED.items()]

    def test_the_same_passes(self, monkeypatch):
        assert verification.published_text(self.pair(monkeypatch, self.texts())).passed is True
        assert all(len(text) == 20 for text in self.texts()[:2])

    @pytest.mark.parametrize("which", [0, 1, 2])
    def test_one_other_token_fails(self, monkeypatch, which):
        texts = self.texts()
        texts[which][-1] += 1
        assert verification.published_text(self.pair(monkeypatch, texts)).passed is False

    def test_random_weights_of_that_name_fail(self):
        torch.manual_seed(0)
        model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16)).eval()
        assert verification.published_text(Pair("gpt2", model, None, "")).passed is False


class TestOpening:
    @pytest.mark.parametrize("safe", [True, False])
    def test_a_hf_folder_is_read_by_transformers(self, tmp_path, monkeypatch, safe):
        reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY))
        if safe:
            reference.save_pretrained(tmp_path / "gpt2")
        else:
            reference.config.save_pretrained(tmp_path / "gpt2")
            torch.save(reference.state_dict(), tmp_path / "gpt2" / "pytorch_model.bin")
        monkeypatch.setattr(hf_reference, "reference_of", None)  # not used
        pair = open_pair(str(tmp_path / "gpt2"))
        assert verification.weights(pair).passed and "124M" in pair.why_not_original

    def test_a_model_of_ours(self, tmp_path):
        torch.manual_seed(0)
        save_model(GPT2(CONFIG), tmp_path)
        found = outcomes(open_pair(str(tmp_path)))
        assert found.pop("published_text") is None and all(found.values())

    def test_checkpoints_gpt2_is_the_default(self, tmp_path):
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY)).save_pretrained(tmp_path / "checkpoints" / "gpt2")
        assert open_pair().weights == "checkpoints/gpt2"

    def test_the_cache_of_the_hub_comes_next(self, tmp_path, monkeypatch):
        cache = tmp_path / "hub" / "models--openai-community--gpt2"
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY)).save_pretrained(cache / "snapshots" / "abc")
        (cache / "refs").mkdir()
        (cache / "refs" / "main").write_text("abc")
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
        pair = open_pair()
        assert pair.weights == "gpt2" and verification.weights(pair).passed and pair.model.config.n_embd == 32

    def test_without_weights_they_are_random_and_said_to_be(self, monkeypatch):
        monkeypatch.setattr(hf_reference, "random_pair", lambda: random_pair(TINY))
        pair = open_pair()
        assert "random" in pair.weights and pair.why_not_original
        assert "not present" in verification.published_text(pair).found

    def test_the_released_sizes_from_elsewhere_are_taken_to_be_the_original(self, tmp_path, monkeypatch):
        monkeypatch.setattr(hf_reference, "load_pretrained", lambda source: model)
        monkeypatch.setattr(hf_reference, "reference_of", lambda model: None)
        with torch.device("meta"):
            model = GPT2(GPT2Config.preset("gpt2"))
        (tmp_path / "weights.safetensors").touch()
        assert open_pair("weights.safetensors").why_not_original == ""
        (tmp_path / "run").mkdir()
        (tmp_path / "run" / "model.json").touch()
        pair = open_pair("run")
        assert "trained or converted here" in pair.why_not_original
        monkeypatch.setattr(hf_reference, "_hf_folder", lambda source: None)
        assert open_pair("openai-community/gpt2").why_not_original == ""
        assert "another model" in open_pair("someone/gpt2-tuned").why_not_original

    @pytest.mark.parametrize(
        ("changes", "field"),
        [(dict(positions="rotary"), "positions"), (dict(n_kv_head=2), "n_kv_head"), (dict(window=8), "window")],
        ids=["rotary", "grouped", "window"],
    )
    def test_a_variant_is_refused_by_name(self, tmp_path, refused, changes, field):
        save_model(GPT2(dataclasses.replace(CONFIG, **changes)), tmp_path)
        with refused(tmp_path, field, "baseline"):
            open_pair(str(tmp_path))

    def test_what_transformers_does_not_open_is_one_line(self, tmp_path, refused):
        transformers.GPT2LMHeadModel(transformers.GPT2Config(**TINY)).save_pretrained(tmp_path)
        config = json.loads((tmp_path / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps({**config, "resid_pdrop": "much"}))
        with refused(tmp_path, "transformers", "config.json"):
            open_pair(str(tmp_path))

    def test_without_transformers_a_line_says_what_to_install(self, monkeypatch, refused):
        monkeypatch.setitem(__import__("sys").modules, "transformers", None)
        with refused("transformers", "gpt2-ablate[verify]"):
            open_pair()


class TestReport:
    ENVIRONMENT = {"hardware": "a machine", "packages": {"torch": "2", "transformers": "5"}}

    def shown(self, pair):
        console = Console(record=True, width=200)
        checks = verify(pair, console)
        return checks, console.export_text()

    def test_a_report_names_every_check(self, pair):
        checks, text = self.shown(pair)
        report = verification_report(pair.weights, checks, self.ENVIRONMENT)
        assert passed(checks) and "FAILED" not in text + report and "all 7 checks" in report
        for check in checks:
            assert check.name in text and f"| {check.name} | {check.found} |" in report
        assert "a machine" in report and "random, seed 0" in report and report.count("- transformers: 5") == 1

    def test_what_was_not_checked_is_no_pass(self, pair):
        checks, text = self.shown(pair)
        (line,) = [line for line in verification_report(pair.weights, checks, {}).splitlines() if line.startswith("| published")]
        assert line.endswith("| not checked |") and "Not checked: published" in verification_report(pair.weights, checks, {})

    def test_a_failure_is_said_first(self, pair):
        exact_gelu(pair.model)
        checks, text = self.shown(pair)
        report = verification_report(pair.weights, checks, self.ENVIRONMENT)
        assert not passed(checks) and "FAILED" in text
        assert report.splitlines()[2].startswith("**Failed: ") and "is GPT-2" not in report


def test_the_reference_of_a_model_is_that_model():
    torch.manual_seed(0)
    model = GPT2(CONFIG).eval()
    text = torch.randint(97, (2, 32))
    with torch.no_grad():
        torch.testing.assert_close(model(text), reference_of(model)(text).logits, rtol=1e-5, atol=1e-5)
