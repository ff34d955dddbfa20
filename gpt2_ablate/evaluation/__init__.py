"""What is measured on a model: perplexity, long context, probes, cost."""
