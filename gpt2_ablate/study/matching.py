"""Companions: a variant that spends what its change saves, and so has as many parameters, or training FLOPs, as the baseline."""

from __future__ import annotations

from typing import Any

from gpt2_ablate.errors import UserError


def as_many_parameters(config: dict[str, Any], baseline: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The fields of a GPT2Config whose MLPs have the width that brings it nearest to the baseline's parameters; and a sentence.

    Raises:
        UserError: it has more than the baseline, or an MLP without a width.
    """
    mlp = config.get("mlp", "mlp")
    mlp = dict(mlp) if isinstance(mlp, dict) else {"name": mlp}
    usual = mlp.get("width") or 4 * _config(config).n_embd

    def widened(width: int) -> dict[str, Any]:
        return {**config, "mlp": {**mlp, "width": width}}

    wanted, start, next_one = map(_parameters, (baseline, config, widened(usual + 1)))
    width = usual + round((wanted - start) / (next_one - start)) if next_one > start else usual
    if width <= usual:
        raise UserError("matched: it saves no parameters that its MLPs could get; leave matched out")
    return widened(width), f"Its MLPs are {width} wide instead of {usual}, so that it has as many parameters as the baseline."


def as_many_flops(trainer: dict[str, Any], config: dict[str, Any], baseline: dict[str, Any]) -> tuple[dict[str, Any], str]:
    """The trainer's settings with as many steps as take the baseline's training FLOPs; and a sentence.

    The loss is looked at as often as in the baseline's training, at the same shares of it.

    Raises:
        UserError: a step costs no less than one of the baseline, or too little less for a step more.
    """
    from gpt2_ablate.evaluation.flops import training_flops_per_token

    own, reference = _config(config), _config(baseline)
    ratio = training_flops_per_token(reference, reference.block_size) / training_flops_per_token(own, own.block_size)
    interval, steps = trainer["val_check_interval"], trainer["max_steps"]
    longer = round(ratio * interval)
    if longer <= interval or steps % interval:
        raise UserError(
            f"matched: a step saves {1 - 1 / ratio:.1%} of the baseline's FLOPs, which is no step more in the "
            f"{interval} between two validations; leave matched out, or train for longer"
        )
    new = longer * (steps // interval)
    found = {**trainer, "max_steps": new, "val_check_interval": longer}
    return found, f"It is trained for {new} steps instead of {steps}, which takes as many FLOPs as the baseline's."


def _config(fields: dict[str, Any]) -> Any:
    from gpt2_ablate.model.config import GPT2Config  # torch takes a second to import; --help does not need it

    return GPT2Config(**fields)


def _parameters(fields: dict[str, Any]) -> int:
    import torch

    from gpt2_ablate.model import GPT2

    with torch.device("meta"):
        return sum(p.numel() for p in GPT2(_config(fields)).parameters())
