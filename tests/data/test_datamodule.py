"""A corpus as a LightningDataModule: what a trainer gets of it, and when."""

import itertools
from types import SimpleNamespace

import datasets
import pytest
import torch

from gpt2_ablate.data.batches import IGNORED, TrainingBatches, number_documents
from gpt2_ablate.data.datamodule import TextData
from gpt2_ablate.data.tokenizer import END_OF_TEXT, load_tokenizer

from .texts import decode, tokenised, write


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    return str(write(tmp_path_factory.mktemp("text"), train=words(3000), validation=words(500, "naïve"), test=words(200)))


def words(n, word="word"):
    return " ".join(f"{word} {i}" for i in range(n))


def data(text, global_step=0, accumulate=1, **changes):
    """The module as a trainer would have it that is at this step."""
    module = TextData(text, **{**dict(block_size=16, batch_size=4), **changes})
    module.trainer = SimpleNamespace(
        global_step=global_step,
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(root_device=torch.device("cpu")),
    )
    module.setup()
    return module


def first(loader, n=3):
    return [inputs.tolist() for inputs, _ in itertools.islice(loader, n)]


def test_training_batches_are_those_of_the_seed(text):
    ids = tokenised(text)["train"].ids
    for seed in (0, 7):
        assert first(data(text, seed=seed).train_dataloader()) == first(TrainingBatches(ids, 16, 4, seed))


@pytest.mark.parametrize(("step", "accumulate", "batch"), [(5, 1, 5), (5, 3, 15), (0, 4, 0)])
def test_a_resumed_run_goes_on_where_it_was(text, step, accumulate, batch):
    """Each step has taken as many batches as it accumulates."""
    from_the_start = first(data(text).train_dataloader(), batch + 3)
    assert first(data(text, step, accumulate).train_dataloader()) == from_the_start[batch:]


@pytest.mark.parametrize(("limit", "scored"), [(None, None), (100, 100), (16, 16), (10**6, None)])
def test_so_much_of_the_validation_text_is_scored(text, limit, scored):
    module = data(text, validation_tokens=limit)
    targets = torch.cat([t.flatten() for _, t in module.val_dataloader()])
    targets = targets[targets != IGNORED].tolist()
    expected = module.splits["validation"].ids.tolist()[1:]
    assert targets == expected[:scored]


@pytest.mark.parametrize("changes", [dict(batch_size=0), dict(batch_size=-1), dict(validation_tokens=-3)], ids=str)
def test_sizes_that_leave_nothing_are_refused(text, refused, changes):
    with refused(*changes):
        data(text, **changes).check()


@pytest.mark.parametrize("changes", [dict(block_size=8000), dict(block_size=4000), dict(validation_tokens=15)], ids=str)
def test_a_context_that_does_not_fit_is_refused_without_a_trainer(text, refused, changes):
    module = TextData(text, **{**dict(block_size=16), **changes})
    module.setup()
    with refused("block_size"):
        module.check()


@pytest.mark.parametrize("split", ["validation", "test"])
def test_a_text_that_is_too_short_is_refused_by_its_split(tmp_path, refused, split):
    module = data(str(write(tmp_path, **{"train": words(500), "validation": words(100), "test": words(100), split: words(4)})))
    with refused(f"{split}: ", "block_size: 16"):
        module.check()


def test_a_corpus_without_a_test_text_needs_none(tmp_path):
    module = data(str(write(tmp_path, train=words(500), validation=words(100))))
    assert "test" not in module.splits
    module.check()


@pytest.mark.parametrize("tokens", [2, 30, None])
@pytest.mark.parametrize("vocab_size", [None, 300])
def test_bytes_per_token_are_those_of_the_tokens_that_are_scored(text, tokens, vocab_size):
    """All but the first; <|endoftext|>, which ends the text, counts as a token of no bytes."""
    module = data(text, vocab_size=vocab_size)
    scored = module.splits["validation"].ids[1:tokens].tolist()
    written = load_tokenizer(module.vocab_size).decode_bytes(scored).removesuffix(END_OF_TEXT.encode())
    assert module.bytes_per_token("validation", tokens) == len(written) / len(scored)


@pytest.mark.parametrize("vocab_size", [256, 0, -5])
def test_a_vocabulary_without_all_bytes_is_refused(text, refused, vocab_size):
    with refused("vocab_size", vocab_size, 257):
        data(text, vocab_size=vocab_size)


@pytest.mark.parametrize("vocab_size", [257, 300, 50257, 50304])
def test_documents_end_where_the_tokenizer_says(tmp_path, vocab_size):
    file = tmp_path / "text.txt"
    file.write_text("<|endoftext|>".join(["one two three four"] * 40))
    module = data(str(file), vocab_size=vocab_size, separate_documents=True)
    inputs, _, documents = next(iter(module.train_dataloader()))
    ends = inputs == load_tokenizer(vocab_size).eot_token
    assert ends.any() and documents.diff(dim=1).bool().equal(ends[:, :-1])


def test_a_column_reaches_the_data_set(tmp_path):
    datasets.Dataset.from_dict({"body": [f"Document {n} is here." for n in range(100)]}).save_to_disk(tmp_path)
    module = data(f"dataset:{tmp_path}", column="body")
    assert decode(module.splits["train"].ids.tolist()).startswith("Document 0 is here.")


def test_setting_up_twice_reads_once(tmp_path):
    module = data(str(write(tmp_path, a=words(500))))
    (tmp_path / "a.txt").unlink()
    module.setup("fit")
    module.setup("validate")
    assert len(first(module.train_dataloader())) == 3


def test_a_corpus_that_is_not_there_is_refused(refused):
    with refused("no such corpus"):
        data("no such corpus")


def test_documents_are_told_apart_where_they_are_kept_apart(tmp_path):
    write(tmp_path, train="<|endoftext|>".join(words(3, f"text{n}") for n in range(90)), validation=words(500))
    for inputs, _, documents in itertools.islice(data(str(tmp_path), separate_documents=True).train_dataloader(), 5):
        assert documents.equal(number_documents(inputs)) and documents.max() > 0
    assert all(len(batch) == 3 for batch in data(str(tmp_path), separate_documents=True).val_dataloader())
