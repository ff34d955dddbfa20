"""What is logged while a model trains, one thing a file. TensorBoard has it under the same names for every variant, so that
curves overlay."""

from gpt2_ablate.training.callbacks.memory import Memory
from gpt2_ablate.training.callbacks.perplexity import Perplexity
from gpt2_ablate.training.callbacks.progress import Progress
from gpt2_ablate.training.callbacks.samples import Samples
from gpt2_ablate.training.callbacks.throughput import Throughput

__all__ = ["Memory", "Perplexity", "Progress", "Samples", "Throughput"]
