"""From text to batches: `tokenizer` (GPT-2's BPE), `corpora` (where documents come from), `tokens` (the cache of token
ids on disk), `batches` (which tokens are batch n), `datamodule` (all of it as a LightningDataModule)."""
