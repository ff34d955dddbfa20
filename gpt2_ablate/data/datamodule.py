"""A corpus as a LightningDataModule."""

from __future__ import annotations

from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from gpt2_ablate.data.batches import EvaluationBatches, TrainingBatches, number_documents
from gpt2_ablate.data.corpora import open_corpus
from gpt2_ablate.data.tokenizer import GPT2_VOCABULARY, byte_lengths, end_of_text_id, load_tokenizer
from gpt2_ablate.data.tokens import Tokens, tokenise
from gpt2_ablate.errors import UserError


class TextData(LightningDataModule):
    """Batches of (input_ids [B, T], targets [B, T]) from a corpus.

    Args:
        corpus: `shakespeare`, a path, or `dataset:NAME`, see `gpt2_ablate.data.corpora`.
        block_size: T, tokens of context.
        batch_size: B, windows in a batch.
        seed: of the order of the training windows.
        column: the column of a data set that holds the text.
        separate_documents: whether tokens attend only to their own document; GPT-2 was trained without. Batches then have a
            third tensor, documents [B, T].
        validation_tokens: length of the validation text that is scored while training; None: all of it.
        vocab_size: V, of the tokenizer (see `gpt2_ablate.data.tokenizer`) and of the model; None: GPT-2's 50,257.

    Raises:
        UserError: the corpus cannot be read, or is shorter than the context.
    """

    def __init__(
        self,
        corpus: str = "shakespeare",
        block_size: int = 1024,
        batch_size: int = 8,
        seed: int = 0,
        column: str = "text",
        validation_tokens: int | None = None,
        separate_documents: bool = False,
        vocab_size: int | None = None,
    ):
        super().__init__()
        if batch_size < 1:
            raise UserError(f"batch_size: {batch_size} is too small; give 1 or more")
        if validation_tokens is not None and validation_tokens < 1:
            raise UserError(f"validation_tokens: {validation_tokens} is too small; give 1 or more, or nothing for all")
        self.corpus, self.column = corpus, column
        self.block_size, self.batch_size, self.seed = block_size, batch_size, seed
        self.validation_tokens = validation_tokens
        self.separate_documents = separate_documents
        self.vocab_size = GPT2_VOCABULARY if vocab_size is None else vocab_size
        load_tokenizer(self.vocab_size)  # refuses one that is too small
        self.splits: dict[str, Tokens] = {}

    def setup(self, stage: str | None = None) -> None:
        if not self.splits:
            self.splits = tokenise(open_corpus(self.corpus, self.column), vocab_size=self.vocab_size)

    def check(self) -> None:
        """Check that every split is longer than the context, without a trainer.

        Raises:
            UserError: one is not; the message names the split.
        """
        TrainingBatches(self.splits["train"].ids, self.block_size, self.batch_size, self.seed)
        self._evaluation_batches("validation", self.validation_tokens)
        if "test" in self.splits:  # scored after training: too late for an error
            self._evaluation_batches("test")

    def train_dataloader(self) -> DataLoader:
        # Lightning restores the step before it asks for data: a resumed run continues with its next batch.
        trainer = self.trainer
        assert trainer is not None
        start = trainer.global_step * trainer.accumulate_grad_batches
        batches = TrainingBatches(self.splits["train"].ids, self.block_size, self.batch_size, self.seed, start)
        return self._loader(batches, pinned=trainer.strategy.root_device.type == "cuda")

    def val_dataloader(self) -> DataLoader:
        return self._loader(self._evaluation_batches("validation", self.validation_tokens))

    def _evaluation_batches(self, split: str, tokens: int | None = None) -> EvaluationBatches:
        ids = self.splits[split].ids[: None if tokens is None else tokens + 1]
        try:
            return EvaluationBatches(ids, self.block_size, self.batch_size)
        except UserError as error:
            raise UserError(f"{split}: {error}") from error

    def _loader(self, batches: TrainingBatches | EvaluationBatches, pinned: bool = False) -> DataLoader:
        # Our items are batches already: without a batch size torch passes each to collate_fn as it is.
        collate = (
            (lambda batch: (*batch, number_documents(batch[0], end_of_text_id(self.vocab_size))))
            if self.separate_documents
            else None
        )
        return DataLoader(batches, batch_size=None, collate_fn=collate, pin_memory=pinned)

    def bytes_per_token(self, split: str, tokens: int | None = None) -> float:
        """UTF-8 bytes per token of those that are scored: of the first so many of a split, all but the very first.

        They turn a loss into bits per byte.
        """
        return float(byte_lengths(self.vocab_size)[self.splits[split].ids[1:tokens]].mean())
