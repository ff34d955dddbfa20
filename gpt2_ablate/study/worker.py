"""One run of a study, in a process of its own: train, score, write down."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tiktoken
import torch
import yaml
from filelock import FileLock
from lightning.pytorch.callbacks import ModelCheckpoint, Timer
from lightning.pytorch.loggers import TensorBoardLogger

from gpt2_ablate.data.tokenizer import GPT2_VOCABULARY, load_tokenizer
from gpt2_ablate.errors import UserError
from gpt2_ablate.evaluation import flops
from gpt2_ablate.evaluation.context import context_gain
from gpt2_ablate.evaluation.laws import broken_law, small_model
from gpt2_ablate.evaluation.perplexity import Score, score
from gpt2_ablate.model import GPT2, GPT2Config, KVCache
from gpt2_ablate.model.parts import part_files
from gpt2_ablate.ops.attention import record_kernels
from gpt2_ablate.records import environment
from gpt2_ablate.study.plan import Run
from gpt2_ablate.training.callbacks import ContextGain, Memory, Perplexity, Progress, Samples, Throughput
from gpt2_ablate.training.trainer import TrainingCLI, build
from gpt2_ablate.utils.io import write_json, write_text
from gpt2_ablate.utils.python_file import locate_error
from gpt2_ablate.utils.system import autocast, keep_freed_memory
from gpt2_ablate.weights.export import architecture_of
from gpt2_ablate.weights.folder import save_model

CONTEXTS = (256, 512, 1024, 2048, 4096, 8192, 16384)  # tokens, at which costs are tabulated
BINS = 16  # of places in the context, in which losses are averaged


def train_run(run: Run, fingerprint: str, folder: Path, logs: Path, at_once: int, on_progress: Callable[[dict], None]) -> None:
    """Train one variant with one seed, from its last checkpoint if there is one, and write its record.

    Args:
        fingerprint: of the run; a checkpoint with another one is not continued.
        folder: where config.yaml, checkpoints, the model and record.json go.
        logs: where TensorBoard's files go.
        at_once: how many runs share the machine; this one takes its share of the cores.
        on_progress: receives progress, as {"step", "steps", "loss", "tokens_per_second"} or {"phase"} or {"warning"}.
    """
    torch.set_num_threads(max(1, torch.get_num_threads() // at_once))
    keep_freed_memory()
    with FileLock(folder / ".lock"):  # an earlier process of this run may still be at its last step
        resume = _checkpoint_to_resume(folder, fingerprint, on_progress)
        if resume is None:
            _start_over(folder, logs)
        write_text(folder / "config.yaml", yaml.safe_dump(run.config, sort_keys=False))
        write_text(folder / "fingerprint", fingerprint)

        timer, perplexity, memory = Timer(), Perplexity(), Memory()
        throughput = Throughput(flops.training_flops_per_token)
        # Saved when a validation has ended: then a resumed run has nothing to repeat.
        checkpoint = ModelCheckpoint(folder, filename="{step}", every_n_epochs=1, save_on_train_epoch_end=False)
        purge = None if resume is None else _step(resume)
        logger = TensorBoardLogger(logs.parent, name="", version=logs.name, default_hp_metric=False, purge_step=purge)
        samples = Samples(run.prompt, _tokenizer(run))
        gain = ContextGain(context_gain)
        callbacks = [timer, perplexity, gain, throughput, memory, samples, Progress(on_progress, throughput), checkpoint]
        cli = build(run.config, callbacks, logger)
        before = _score_before(cli, run, on_progress)
        cli.trainer.fit(cli.model, cli.datamodule, ckpt_path=resume, weights_only=True)

        cli.model.to(cli.trainer.strategy.root_device)  # Lightning has moved it back to the CPU
        on_progress({"phase": "scoring"})
        metrics, details = _evaluate(cli, run.evaluation_tokens)
        metrics |= before
        metrics |= {
            **{name: value for name, value in memory.values.items() if name != "peak_bytes"},
            "run_peak_bytes": memory.values["peak_bytes"],
            "run_tokens_per_second": throughput.tokens_per_second or None,
            "run_first_batch_seconds": throughput.first_batch_seconds,
            "run_seconds": timer.time_elapsed("train"),
            "train_loss": perplexity.curves["train"][-1][1] if perplexity.curves["train"] else None,
        }
        curves = {**perplexity.curves, "context_gain": gain.curve}
        details |= {"kernels": _kernels(cli), "curves": curves, "sample": samples.write(cli.model)}
        _log_hyperparameters(logger, run, cli, metrics)
        save_model(cli.model.model, folder)
        details |= {"config": cli.settings, "precision": str(cli.trainer.precision), "environment": environment()}
        write_json(folder / "record.json", run.record(fingerprint, "finished", metrics=metrics, **details))
        for file in folder.glob("*.ckpt"):
            file.unlink()


def _log_hyperparameters(logger: TensorBoardLogger, run: Run, cli: TrainingCLI, metrics: dict[str, Any]) -> None:
    """TensorBoard's hparams tab: what was set, and what came of it."""
    outcome = {name: metrics[name] for name in ("validation_loss", "validation_perplexity", "validation_bits_per_byte")}
    logger.log_hyperparams({"variant": run.variant, "seed": run.seed, **cli.model.hparams}, outcome)
    logger.finalize("success")


def check_runs(runs: list[Run], on_progress: Callable[[str], None]) -> None:
    """Parse and build every configuration, without training it.

    Raises:
        UserError: one of them is wrong; the message begins with the files that it comes from.
    """
    for run in runs:
        try:
            cli = build(run.config, [], logger=False)
            cli.datamodule.setup()
            cli.datamodule.check()
            _check_scoring(run, cli.model.model.config.block_size)
            _check_laws(cli.model.model.config)
        except UserError as error:
            raise UserError(f"{run.source}: {error}") from error


def _check_laws(config: GPT2Config) -> None:
    """A model that sees the future, or another one when it is cached, would be trained in vain."""
    files = ", ".join(map(str, part_files(config)))
    try:
        broken = broken_law(small_model(config))
    except UserError:
        raise
    except Exception as error:
        if not files:
            raise
        raise UserError(locate_error(error) or f"{files}: {type(error).__name__}: {' '.join(str(error).split())}") from error
    if broken:
        raise UserError(broken if any(broken.startswith(str(file)) for file in part_files(config)) else f"{files}: {broken}")


def _check_scoring(run: Run, block_size: int) -> None:
    if run.evaluation_tokens is not None and run.evaluation_tokens <= block_size:
        raise UserError(f"evaluation_tokens: {run.evaluation_tokens} do not fill a context of {block_size}; give more")
    if (length := len(_tokenizer(run).encode_ordinary(run.prompt))) >= block_size:
        raise UserError(f"prompt: its {length} tokens leave no room in a context of {block_size}; give a shorter one")


def _tokenizer(run: Run) -> tiktoken.Encoding:
    return load_tokenizer(run.config["model"].get("config", {}).get("vocab_size", GPT2_VOCABULARY))


def _start_over(folder: Path, logs: Path) -> None:
    """Remove what another run has left in these folders, but for the lock that is held and the log that is being written."""
    for entry in [*folder.iterdir(), *logs.iterdir()]:
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name not in (".lock", "train.log"):
            entry.unlink()


def _checkpoint_to_resume(folder: Path, fingerprint: str, on_progress: Callable[[dict], None]) -> Path | None:
    """The newest whole checkpoint of just this run."""
    own = folder / "fingerprint"
    if not own.exists() or own.read_text() != fingerprint:
        return None
    for file in sorted(folder.glob("*.ckpt"), key=_step, reverse=True):
        try:
            torch.load(file, weights_only=True, map_location="cpu", mmap=True)
            return file
        except Exception as error:  # torch names a broken file by half a dozen exceptions
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            on_progress({"warning": f"{file} is broken ({reason}); training goes on from the one before it, or starts over"})
            file.unlink()
    return None


def _step(checkpoint: Path) -> int:
    return int(checkpoint.stem.partition("=")[2])


def _score_before(cli: TrainingCLI, run: Run, on_progress: Callable[[dict], None]) -> dict[str, float]:
    """The validation loss of a converted checkpoint before it is trained on; a resumed run finds the same once more."""
    if not run.init_digest:
        return {}
    on_progress({"phase": "scoring"})
    cli.datamodule.setup()
    cli.model.to(cli.trainer.strategy.root_device)
    return {"validation_loss_before": _score(cli, "validation", run.evaluation_tokens).loss}


def _score(cli: TrainingCLI, split: str, tokens: int | None, contexts: int = 1) -> Score:
    """Losses, in fp32, on the first `tokens` of a split, in stretches of so many contexts."""
    model, data = cli.model.model, cli.datamodule
    ids = data.splits[split].ids[:tokens]
    return score(model, ids, contexts * model.config.block_size, data.batch_size, data.separate_documents)


def _evaluate(cli: TrainingCLI, tokens: int | None) -> tuple[dict[str, Any], dict[str, Any]]:
    """What the trained model is worth, and what it costs: single numbers, and those that depend on something."""
    model: GPT2 = cli.model.model
    config, splits = model.config, cli.datamodule.splits
    metrics: dict[str, Any] = {}
    details: dict[str, Any] = {}
    for split in ("validation", "test"):
        if split in splits:
            result = _score(cli, split, tokens)
            metrics[f"{split}_loss"] = result.loss
            metrics[f"{split}_perplexity"] = result.perplexity
            metrics[f"{split}_bits_per_byte"] = result.bits_per_byte(cli.datamodule.bytes_per_token(split, tokens))
            if split == "validation":
                within = result
                details["loss_by_position"] = _binned(result)
                # Where most of the past can be missed: what a window or a poor sense of distance costs shows here first.
                metrics["validation_loss_late"] = float(result.by_position[-(config.block_size // 4) :].mean())
    longest, scored = model.positions.max_length, splits["validation"].ids[:tokens]
    if (longest is None or longest >= 2 * config.block_size) and len(scored) > 2 * config.block_size:
        beyond, quarter = _score(cli, "validation", tokens, contexts=2), config.block_size // 4
        details["loss_by_position_beyond"] = _binned(beyond)
        # The same targets, far into a window of twice the trained length, and far into one of the trained length.
        metrics["validation_loss_beyond"] = float(np.nanmean(beyond.losses[:, -quarter:]))
        metrics["validation_loss_within"] = float(np.nanmean(within.losses[1::2, -quarter:]))

    metrics |= {f"parameters_{name}": count for name, count in flops.count_parameters(model).items()}
    metrics["forward_flops_per_token"] = flops.forward_flops_per_token(config, config.block_size)
    metrics["training_flops_per_token"] = flops.training_flops_per_token(config, config.block_size)
    metrics["receptive_field"] = flops.receptive_field(config)
    metrics["max_length"] = longest
    details["cost_by_context"] = [
        {
            "context": context,
            "forward_flops_per_token": flops.forward_flops_per_token(config, context),
            "kv_bytes": KVCache(config, capacity=context, device="meta").nbytes,
        }
        for context in CONTEXTS
    ]
    details["hf_architecture"] = _hf_architecture(config)
    details["tensors"] = {name: list(p.shape) for name, p in model.named_parameters()}
    return metrics, details


@torch.no_grad()
def _kernels(cli: TrainingCLI) -> list[str]:
    """The names of the attention kernels that a training step runs."""
    model: GPT2 = cli.model.model
    ids = torch.zeros(1, model.config.block_size, dtype=torch.long, device=model.device)
    with torch.random.fork_rng(), autocast(str(cli.trainer.precision), model.device), record_kernels() as names:
        model.train()
        model.hidden(ids, documents=ids if cli.datamodule.separate_documents else None)
        model.eval()
    return list(names)


def _hf_architecture(config: GPT2Config) -> str | None:
    """The architecture of transformers that computes the same function; None where there is none."""
    try:
        return architecture_of(config).class_name
    except UserError:
        return None


def _binned(result: Score) -> list[dict[str, float]]:
    """Losses averaged over equal stretches of the context: [{"from", "to" (tokens), "loss" (nats)}]."""
    size = max(1, len(result.by_position) // BINS)
    starts = range(0, len(result.by_position) - size + 1, size)
    return [{"from": s, "to": s + size, "loss": float(result.by_position[s : s + size].mean())} for s in starts]
