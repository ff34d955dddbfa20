"""LAMBADA (Paperno et al. 1606.06031): predict the last word of a passage.

Scored in two ways, because the GPT-2 paper and most later work differ:

- by word: the passage is split at its last space, and the target is that space and the word, with all of its tokens. A word is
  right if each of its tokens is the likeliest, given the passage and the word's earlier tokens. The perplexity is
  exp(mean over passages of the whole word's negative log-likelihood). EleutherAI's harness and the LAMBADA paper score so;
  for the original 124M weights others report 32.6 % and 40.1 on OpenAI's file.
- by last token: the target is the last token of the passage alone; earlier tokens of its word are given. Table 3 of the GPT-2
  paper (45.99 %, 35.13) does not say how it was scored. Its accuracy is within a point of this one (46.7 % by others,
  openai/gpt-2 issue 131) and far from that by word. How 35.13 was computed has, as far as we know, never been published.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from gpt2_ablate.data.tokenizer import GPT2_VOCABULARY, load_tokenizer
from gpt2_ablate.errors import UserError
from gpt2_ablate.evaluation.perplexity import evaluation_mode, perplexity
from gpt2_ablate.evaluation.strided import read_text
from gpt2_ablate.model import GPT2

BATCH_SIZE = 16  # passages

Passage = tuple[list[int], int]
Batch = Sequence[Passage]


@dataclass(frozen=True)
class LambadaScore:
    """Accuracies are shares from 0 to 1; the two ways to score are explained at the top of this file."""

    passages: int
    word_accuracy: float
    word_perplexity: float
    token_accuracy: float
    token_perplexity: float

    def rows(self) -> list[tuple[str, str]]:
        """Names and values, for display."""
        return [
            ("passages", f"{self.passages:,}"),
            ("LAMBADA by word, accuracy", f"{self.word_accuracy:.2%}"),
            ("LAMBADA by word, perplexity", f"{self.word_perplexity:.4f}"),
            ("LAMBADA by last token, accuracy", f"{self.token_accuracy:.2%}"),
            ("LAMBADA by last token, perplexity", f"{self.token_perplexity:.4f}"),
        ]


def read_passages(file: Path) -> list[str]:
    """The passages of a file of JSON lines, {"text": ...} each; white space around them is dropped.

    Raises:
        UserError: the file has none, or a line is something else, or its text has fewer than two words.
    """
    passages = []
    for number, line in enumerate(read_text(file).split("\n"), 1):
        if not line.strip():
            continue
        line_name = f"{file}: line {number}"
        try:
            found = json.loads(line)
        except ValueError as error:
            raise UserError(f'{line_name}: is not JSON ({error}); it should read {{"text": "..."}}') from error
        if not isinstance(found, dict) or not isinstance(found.get("text"), str):
            raise UserError(f'{line_name}: has no "text"; it should read {{"text": "..."}}')
        text = found["text"].strip()
        if " " not in text:
            raise UserError(f"{line_name}: text: {text[:30]!r} has no last word after others; give two words at least")
        passages.append(text)
    return passages


def encode(passage: str, vocab_size: int = GPT2_VOCABULARY) -> Passage:
    """Token ids of a passage, and how many of the last belong to its last word."""
    encode_ordinary = load_tokenizer(vocab_size).encode_ordinary
    before, _, word = passage.rpartition(" ")
    target = encode_ordinary(" " + word)
    return [*encode_ordinary(before), *target], len(target)


def score_passages(
    model: GPT2, passages: Sequence[Passage], watch: Callable[[list[Batch]], Iterable[Batch]] = lambda batches: batches
) -> LambadaScore:
    """Score passages, each as `encode` returns it. A passage longer than the model's context loses its beginning.

    Args:
        watch: iterates over the batches, as a progress bar does.

    Raises:
        UserError: a last word is as long as the context.
    """
    context = model.config.block_size
    for _, word in passages:
        if word >= context:
            raise UserError(f"text: the last word has {word} tokens, which leave nothing of a context of {context}")
    # Batches of similar lengths need little padding.
    texts = sorted(((ids[-context:], word) for ids, word in passages), key=lambda passage: len(passage[0]))
    batches: list[Batch] = [texts[n : n + BATCH_SIZE] for n in range(0, len(texts), BATCH_SIZE)]
    found = []
    with evaluation_mode(model):
        for batch in watch(batches):
            for losses, right in _targets(model, batch):
                found.append((bool(right.all()), float(losses.sum()), bool(right[-1]), float(losses[-1])))
    word_right, word_loss, token_right, token_loss = map(statistics.fmean, zip(*found, strict=True))
    return LambadaScore(len(texts), word_right, perplexity(word_loss), token_right, perplexity(token_loss))


def _targets(model: GPT2, batch: Batch) -> Iterator[tuple[Tensor, Tensor]]:
    """For each passage, of each token of its last word: the loss in nats, and whether it is the likeliest token."""
    # The padding comes after the passage, where no token sees it.
    inputs = pad_sequence([torch.tensor(ids) for ids, _ in batch], batch_first=True).to(model.device)
    hidden = model.hidden(inputs)
    before = [hidden[b, len(ids) - word - 1 : len(ids) - 1] for b, (ids, word) in enumerate(batch)]
    logits = model.embedding.logits(torch.cat(before)).float()
    targets = torch.cat([torch.tensor(ids[-word:]) for ids, word in batch]).to(model.device)
    losses = F.cross_entropy(logits, targets, reduction="none").cpu()
    right = (logits.argmax(-1) == targets).cpu()
    lengths = [word for _, word in batch]
    return zip(losses.split(lengths), right.split(lengths), strict=True)
