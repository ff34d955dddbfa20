"""How a model is trained: `lightning_module` (the training step), `optimizers` (AdamW and its learning rate), `callbacks`
(what is logged), `trainer` (all of it as one Lightning Trainer, from one YAML)."""
