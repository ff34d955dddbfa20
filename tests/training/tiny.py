"""What the tests of this room share: a text, running a configuration, and comparing what came of it."""

import random

import torch
from lightning.pytorch import Callback

from gpt2_ablate.training.callbacks import Perplexity
from gpt2_ablate.training.trainer import build


def words(n):
    """A text of few words, of which each tells something about the next."""
    draw, names = random.Random(0), ["one", "two", "three", "four", "five", "six", "seven"]
    at, text = 0, []
    for _ in range(n):
        at = (at + draw.choice((1, 1, 1, 2))) % len(names)
        text.append(names[at])
    return " ".join(text)


def fit(config, *callbacks, logger=False, **options):
    """Run a configuration; returns what `build` built, and the curves."""
    perplexity = Perplexity()
    cli = build(config, [perplexity, *callbacks], logger)
    cli.trainer.fit(cli.model, cli.datamodule, **options)
    return cli, perplexity.curves


def weights(cli):
    return {name: p.detach().clone() for name, p in cli.model.model.named_parameters()}


def same(one, other):
    """Whether two dictionaries of tensors are equal, bit for bit."""
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


class Steps(Callback):
    """Keeps what `look(trainer, module)` returns after each batch, or before."""

    def __init__(self, look, before=False):
        self.look, self.before, self.found = look, before, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.before:
            self.found.append(self.look(trainer, pl_module))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not self.before:
            self.found.append(self.look(trainer, pl_module))
