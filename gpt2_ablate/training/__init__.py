"""How a model is trained: `module` (loss, optimizer, schedule), `callbacks` (what is watched), `trainer` (all
of it as one Lightning Trainer, from one YAML)."""
