"""What a run keeps in memory."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_ablate.machine import peak_bytes
from gpt2_ablate.model import KVCache


class Memory(Callback):
    """Logs, at the end, memory/peak_bytes, /weight_bytes, /optimizer_bytes, /kv_bytes_per_token (what one more token
    adds to the cache) and /kv_bytes_full (at full context), the cache in the dtype of the weights."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = pl_module.model.config  # type: ignore[union-attr]
        state = (value for values in trainer.optimizers[0].state.values() for value in values.values())
        self.values = {
            "peak_bytes": peak_bytes(trainer.strategy.root_device),  # the module itself is back on the CPU by now
            "weight_bytes": sum(p.nbytes for p in pl_module.parameters()),
            "optimizer_bytes": sum(value.nbytes for value in state if torch.is_tensor(value)),
            "kv_bytes_per_token": KVCache(config, capacity=1).nbytes,  # type: ignore[arg-type]
            "kv_bytes_full": KVCache(config).nbytes,  # type: ignore[arg-type]
        }
        for logger in trainer.loggers:
            logger.log_metrics({f"memory/{k}": v for k, v in self.values.items()}, step=trainer.global_step)
