"""Training learns, always the same from the same seed, and in the number format of the machine."""

import pytest
import torch

from gpt2_ablate.training.optimizers import warmup_cosine
from gpt2_ablate.training.trainer import build
from gpt2_ablate.utils.system import auto_precision

from .tiny import Steps, fit, same, weights, words


def gradients(trainer, module):
    return {name: p.grad.clone() for name, p in module.named_parameters()}


def test_the_loss_goes_down(config):
    _, curves = fit(config({"trainer.max_steps": 30, "trainer.val_check_interval": 10}))
    for name in ("train", "validation"):
        losses = [loss for _, loss in curves[name]]
        assert losses[0] > 6 and losses[-1] < losses[0] - 1.5


def test_curves_have_a_point_for_each_reading(config):
    _, curves = fit(config())
    assert [step for step, _ in curves["train"]] == [2, 4, 6, 8]
    assert [step for step, _ in curves["validation"]] == [4, 8]


def test_the_learning_rate_is_kept_as_it_was(config):
    """At each reading, that of the step that was just made."""
    cli, curves = fit(config({"trainer.log_every_n_steps": 1}))
    module, steps = cli.model, cli.trainer.max_steps
    expected = [module.learning_rate * warmup_cosine(step, module.warmup_steps, steps) for step in range(steps)]
    assert [rate for _, rate in curves["learning_rate"]] == pytest.approx(expected)


@pytest.mark.parametrize("dropout", [0.0, 0.1])
def test_the_same_seed_gives_the_same_bits(config, dropout):
    changes = {"model.config.dropout": dropout}
    (one, curves), (two, again) = fit(config(changes)), fit(config(changes))
    assert same(weights(one), weights(two)) and curves == again
    _, others = fit(config({**changes, "seed_everything": 1}))
    assert others["train"] != curves["train"]


def test_dropout_differs_from_step_to_step_and_seed_to_seed(config):
    """What is dropped is drawn anew: the same batch at a learning rate of nearly nothing has other losses."""
    changes = {"model.config.dropout": 0.5, "model.learning_rate": 1e-12, "trainer.log_every_n_steps": 1}
    _, curves = fit(config(changes))
    _, without = fit(config({**changes, "model.config.dropout": 0.0}))
    moved = [a - b for (_, a), (_, b) in zip(curves["train"], without["train"], strict=True)]
    assert len(set(moved)) == len(moved) == 8
    assert curves["validation"] == without["validation"]


def test_no_two_steps_or_seeds_drop_the_same(config):
    drawn = []
    for seed in (0, 1):
        after = Steps(lambda trainer, module: torch.rand(1).item())
        fit(config({"model.config.dropout": 0.1, "seed_everything": seed}), after)
        drawn += after.found
    assert len(set(drawn)) == 16


def test_two_small_batches_accumulated_are_one_large_one(config):
    after_large, after_small = Steps(gradients), Steps(gradients)
    large, large_curves = fit(config({"data.batch_size": 2}), after_large)
    small, small_curves = fit(
        config({"data.batch_size": 1, "trainer.accumulate_grad_batches": 2, "trainer.val_check_interval": 8}), after_small
    )
    for name, gradient in after_large.found[0].items():
        torch.testing.assert_close(after_small.found[1][name], gradient, rtol=1e-4, atol=1e-7, msg=name)
    (step, loss), (same_step, same_loss) = large_curves["validation"][-1], small_curves["validation"][-1]
    assert step == same_step == 8 and loss == pytest.approx(same_loss, abs=0.01)


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_clipping_bounds_the_norm_of_the_gradient(config, precision):
    def norm(trainer, module):
        return torch.stack([p.grad.norm() for p in module.parameters()]).norm().item()

    free, clipped = Steps(norm), Steps(norm)
    changes = {"trainer.precision": precision, "trainer.max_steps": 4}
    fit(config({**changes, "trainer.gradient_clip_val": None}), free)
    fit(config({**changes, "trainer.gradient_clip_val": 0.01}), clipped)
    assert min(free.found) > 0.05
    assert clipped.found == pytest.approx([0.01] * 4, rel=1e-3)


def test_small_gradients_are_not_clipped(config):
    free, clipped = Steps(gradients), Steps(gradients)
    fit(config({"trainer.max_steps": 1, "trainer.gradient_clip_val": None}), free)
    fit(config({"trainer.max_steps": 1, "trainer.gradient_clip_val": 1000.0}), clipped)
    assert same(free.found[0], clipped.found[0])


def test_gradients_are_clipped_unless_the_yaml_says_otherwise(config):
    assert build(config(), [], logger=False).trainer.gradient_clip_val == 1.0


def test_the_machines_precision_is_the_default(config):
    made = config()
    del made["trainer"]["precision"]
    assert build(made, [], logger=False).trainer.precision == auto_precision()


def test_bf16_learns_as_fp32_does(config):
    """To 0.02 nats after the same steps; and the steps are not the same, or nothing was bf16."""
    changes = {"trainer.max_steps": 30, "trainer.val_check_interval": 10}
    full, curves = fit(config(changes))
    half, in_bf16 = fit(config({**changes, "trainer.precision": "bf16-mixed"}))
    for (_, one), (_, two) in zip(curves["validation"], in_bf16["validation"], strict=True):
        assert one != two and one == pytest.approx(two, abs=0.02)
    assert {p.dtype for p in half.model.parameters()} == {torch.float32}


@pytest.mark.parametrize("every", [1, 3])
def test_a_loss_that_is_no_number_stops_the_run_and_names_the_step(config, refused, every):
    changes = {"model.learning_rate": 1e30, "model.warmup_steps": 0, "trainer.log_every_n_steps": every}
    with refused(f"step {max(2, every)}", "learning_rate", "1e+30"):
        fit(config({**changes, "trainer.max_steps": 10, "trainer.val_check_interval": 10}))


def test_documents_kept_apart_are_read_as_if_each_were_alone(config, tmp_path):
    """Where every window holds parts of many documents, their losses differ from those of windows read as one text."""
    text = tmp_path / "text"
    text.mkdir()
    for split, n in {"train": 100, "validation": 40}.items():
        (text / f"{split}.txt").write_text("<|endoftext|>".join(words(5) for _ in range(n)))
    changes = {"data.corpus": str(text), "model.learning_rate": 1e-12}
    (_, apart), (_, joined) = (fit(config({**changes, "data.separate_documents": flag})) for flag in (True, False))
    assert apart["validation"] != joined["validation"]
    assert apart["validation"][0][1] == pytest.approx(joined["validation"][0][1], abs=0.1)
