"""What is computed for a model: perplexity, LAMBADA, samples, costs, and the verification that it is GPT-2."""
