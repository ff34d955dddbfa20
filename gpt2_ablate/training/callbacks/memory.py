"""The memory that a run takes."""

from __future__ import annotations

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from gpt2_ablate.model import KVCache
from gpt2_ablate.utils.system import peak_bytes


class Memory(Callback):
    """Logs, at the end, memory/peak_bytes, /weight_bytes, /optimizer_bytes, and the bytes of an fp32 key/value cache:
    /kv_bytes_per_token (for one token) and /kv_bytes_full (for a full context)."""

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        config = pl_module.model.config  # type: ignore[union-attr]
        state = (value for values in trainer.optimizers[0].state.values() for value in values.values())
        self.values = {
            "peak_bytes": peak_bytes(trainer.strategy.root_device),  # Lightning has moved the module back to the CPU
            "weight_bytes": sum(p.nbytes for p in pl_module.parameters()),
            "optimizer_bytes": sum(value.nbytes for value in state if torch.is_tensor(value)),
            "kv_bytes_per_token": KVCache(config, capacity=1, device="meta").nbytes,  # type: ignore[arg-type]
            "kv_bytes_full": KVCache(config, device="meta").nbytes,  # type: ignore[arg-type]
        }
        for logger in trainer.loggers:
            logger.log_metrics({f"memory/{k}": v for k, v in self.values.items()}, step=trainer.global_step)
