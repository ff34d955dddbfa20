"""What is watched while a model trains; each file is one thing. All of it lands in TensorBoard under the same names for
every variant, so that curves overlay."""

from gpt2_ablate.training.callbacks.memory import Memory
from gpt2_ablate.training.callbacks.perplexity import Perplexity
from gpt2_ablate.training.callbacks.progress import Progress
from gpt2_ablate.training.callbacks.samples import Samples
from gpt2_ablate.training.callbacks.throughput import Throughput

__all__ = ["Memory", "Perplexity", "Progress", "Samples", "Throughput"]
