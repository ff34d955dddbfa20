"""The learning rate over time, and what decays."""

import math

import pytest
import torch

from gpt2_ablate.model import GPT2Config
from gpt2_ablate.training.lightning_module import LanguageModel
from gpt2_ablate.training.trainer import build

from .tiny import Steps, fit, weights


def rates(config, steps, warmup, **changes):
    """The rate of every optimizer step, the same for all groups of weights."""
    found = Steps(lambda trainer, _: [group["lr"] for group in trainer.optimizers[0].param_groups], before=True)
    changes = {"trainer.max_steps": steps, "trainer.val_check_interval": 1000, "model.warmup_steps": warmup, **changes}
    fit(config({**changes, "model.learning_rate": 0.01}), found)
    assert all(len(set(groups)) == 1 for groups in found.found)
    return [groups[0] for groups in found.found]


def test_the_rate_grows_linearly_to_its_highest(config):
    assert rates(config, 6, 5)[:5] == pytest.approx([0.002, 0.004, 0.006, 0.008, 0.01])


def test_without_warmup_the_first_step_has_the_highest_rate(config):
    found = rates(config, 4, 0)
    assert found[0] == pytest.approx(0.01) and found == sorted(found, reverse=True)


def test_the_rate_falls_along_half_a_cosine_to_a_tenth_at_the_last_step(config):
    found = rates(config, 12, 3)[3:]
    expected = [0.01 * (0.1 + 0.45 * (1 + math.cos(math.pi * n / 8))) for n in range(9)]
    assert found == pytest.approx(expected, rel=1e-6)


def test_a_warmup_longer_than_the_run_never_arrives(config):
    assert rates(config, 3, 10) == pytest.approx([0.001, 0.002, 0.003])


def test_the_rate_moves_once_per_optimizer_step(config):
    found = rates(config, 4, 4, **{"trainer.accumulate_grad_batches": 2})
    assert found == pytest.approx([0.0025] * 2 + [0.005] * 2 + [0.0075] * 2 + [0.01] * 2)


def test_matrices_decay_and_nothing_else(config):
    """After one step, weight decay has taken rate * decay of each matrix; biases and norms are the same bits."""
    after = {}
    for decay in (0.0, 0.5):
        cli, _ = fit(config({"trainer.max_steps": 1, "model.warmup_steps": 0, "model.weight_decay": decay}))
        after[decay] = weights(cli)
    start = weights(build(config(), [], logger=False))
    matrices = {name for name, p in start.items() if p.ndim == 2}
    assert "embedding.weight" in matrices and len(matrices) < len(start)
    for name, p in start.items():
        taken = after[0.0][name] - after[0.5][name]
        if name in matrices:
            torch.testing.assert_close(taken, 0.01 * 0.5 * p, rtol=1e-2, atol=1e-8)
        else:
            assert not taken.any(), name


@pytest.mark.parametrize(
    "changes", [dict(learning_rate=0.0), dict(learning_rate=-1.0), dict(learning_rate=math.nan), dict(warmup_steps=-1)], ids=str
)
def test_settings_that_do_not_train_are_refused(refused, changes):
    with refused(*changes):
        LanguageModel(GPT2Config(vocab_size=97, block_size=8, n_layer=1, n_head=1, n_embd=8), **changes)
