"""One training run, from its YAML: a LightningCLI over our module and our data.

Every run of a study is such a YAML, and can be rerun by hand: `gpt2-ablate train --config checkpoints/.../config.yaml`.
"""

from __future__ import annotations

import logging
import warnings
from dataclasses import replace
from typing import Any

import torch
from jsonargparse import ArgumentError
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch import Trainer
from lightning.pytorch.cli import LightningArgumentParser, LightningCLI

from gpt2_ablate.data.datamodule import TextData
from gpt2_ablate.data.tokenizer import GPT2_VOCABULARY
from gpt2_ablate.errors import UserError
from gpt2_ablate.ops.attention import select_kernel
from gpt2_ablate.training.lightning_module import LanguageModel
from gpt2_ablate.utils.system import auto_precision

LINKED = {"block_size": "model.config.block_size", "seed": "seed_everything"}  # of the data, from elsewhere

TRAINER_DEFAULTS = {
    "devices": 1,
    "max_epochs": -1,  # batches have no end; max_steps ends training
    "max_steps": 1000,
    "accumulate_grad_batches": 1,
    "gradient_clip_val": 1.0,
    "log_every_n_steps": 10,
    "val_check_interval": 250,
    "check_val_every_n_epoch": None,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
}


class TrainingCLI(LightningCLI):
    """Keys: seed_everything, model (config and optimizer), data, trainer. The data take the context length and the seed from
    model.config.block_size and seed_everything."""

    def __init__(self, *args: Any, callbacks: list, logger: Any, **kwargs: Any):
        self.callbacks, self.logger = callbacks, logger
        super().__init__(*args, **kwargs)

    def before_instantiate_classes(self) -> None:
        """The tokenizer and the model have one vocabulary, wherever it was said."""
        data, model = self.config.data, self.config.model.config
        if data.vocab_size is None:
            data.vocab_size = model.vocab_size
        elif model.vocab_size == GPT2_VOCABULARY:
            model.vocab_size = data.vocab_size
        elif model.vocab_size != data.vocab_size:
            raise UserError(
                f"data.vocab_size: {data.vocab_size} is not model.config.vocab_size, {model.vocab_size}; give one of them"
            )

    @property
    def settings(self) -> dict[str, Any]:
        """What is built, as `--config` reads it, defaults included; of the trainer's keys those that decide a result."""
        parsed = self.config.as_dict()
        trainer = {key: parsed["trainer"][key] for key in ("precision", *TRAINER_DEFAULTS)}
        data = {key: value for key, value in parsed["data"].items() if key not in LINKED}
        model = {**parsed["model"], "config": self.model.model.config.to_dict()}
        return {"seed_everything": parsed["seed_everything"], "model": model, "data": data, "trainer": trainer}

    def instantiate_trainer(self, **kwargs: Any) -> Trainer:
        """Our callbacks come after those that the YAML names: the checkpoint is written when the others are up to date."""
        from_yaml = self._get(self.config_init, "trainer", default={}).get("callbacks") or []
        return super().instantiate_trainer(callbacks=[*from_yaml, *self.callbacks], logger=self.logger, **kwargs)

    def add_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        for key, source in LINKED.items():
            parser.link_arguments(source, f"data.{key}")


def build(args: list[str] | dict[str, Any], callbacks: list, logger: Any = True) -> TrainingCLI:
    """Parse a run's configuration and build its model, data and trainer: `.model`, `.datamodule`, `.trainer`.

    Args:
        args: command line arguments, or the same as a nested dictionary.
        callbacks, logger: of the trainer.

    Raises:
        UserError: a key is unknown, or a value has the wrong type or cannot be used here.
    """
    quieten_lightning()
    if isinstance(args, dict):
        for key in ("model", "data", "trainer"):
            if not isinstance(args.get(key, {}), dict):
                raise UserError(f"{key}: {args[key]!r} should be keys and values")
        seed = args.get("seed_everything", 0)
        if not isinstance(seed, int) or not 0 <= seed < 2**32:
            raise UserError(f"seed_everything: {seed!r} is not a seed; give a number from 0 to {2**32 - 1}")
    try:
        cli = TrainingCLI(
            LanguageModel,
            TextData,
            run=False,
            callbacks=callbacks,
            logger=logger,
            args=args,  # type: ignore[arg-type]
            seed_everything_default=0,
            save_config_callback=None,
            parser_kwargs={"exit_on_error": False},
            trainer_defaults={"precision": auto_precision(), **TRAINER_DEFAULTS},
        )
    except UserError:
        raise
    except (ArgumentError, ValueError, TypeError) as error:
        raise UserError(one_line(str(error))) from error
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(str(error))}") from error
    _check(cli)
    return cli


def fit(cli: TrainingCLI) -> None:
    """Train what `build` has built.

    Raises:
        UserError: a setting that Lightning checks only now is wrong.
        NonFiniteLoss: training has diverged.
    """
    try:
        cli.trainer.fit(cli.model, cli.datamodule)
    except MisconfigurationException as error:
        raise UserError(f"trainer: {one_line(str(error))}") from error


def _check(cli: TrainingCLI) -> None:
    """Refuse settings that Lightning accepts and fails on later, or ignores."""
    settings = cli.config.trainer
    for key in ("accumulate_grad_batches", "log_every_n_steps"):
        if settings[key] is None or settings[key] < 1:
            raise UserError(f"trainer.{key}: {settings[key]} is not a number of steps; give 1 or more")
    interval, accumulate = settings.val_check_interval, settings.accumulate_grad_batches
    if isinstance(interval, int) and (interval < 1 or interval % accumulate):
        raise UserError(
            f"trainer.val_check_interval: {interval} batches do not end with an optimizer step; "
            f"give a multiple of {accumulate} (accumulate_grad_batches) above 0"
        )
    if settings.gradient_clip_algorithm not in (None, "norm"):
        raise UserError(f"trainer.gradient_clip_algorithm: {settings.gradient_clip_algorithm!r} is not supported; give norm")
    try:
        _check_kernels(cli)
    except UserError as error:
        raise UserError(f"model.config.{error}") from error


def _check_kernels(cli: TrainingCLI) -> None:
    """Refuse an attention kernel that cannot train this model on this device."""
    model, device = cli.model.model, cli.trainer.strategy.root_device
    config = model.config
    starts = torch.zeros(1, config.block_size, dtype=torch.long) if cli.datamodule.separate_documents else None
    for mask in config.masks:
        mask = replace(mask, document_starts=starts, score_bias=model.positions.score_bias)
        select_kernel(mask, device, config.block_size, config.dropout, config.kernel)


def one_line(message: str) -> str:
    """The first and the last line of jsonargparse's message, which say where and what."""
    lines = [line.strip(" -") for line in message.splitlines() if line.strip(" -")]
    return " ".join(dict.fromkeys((lines[0], lines[-1])))


def quieten_lightning() -> None:
    """No banners and tips."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # A small batch is loaded in well under a millisecond; worker processes would cost more than they save.
    warnings.filterwarnings("ignore", message=".*does not have many workers.*")
    warnings.filterwarnings("ignore", message=".*isinstance.treespec, LeafSpec.*")
    warnings.filterwarnings("ignore", message=".*args parameter is intended to run from within Python.*")
