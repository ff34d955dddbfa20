"""Corpora that `datasets` opens, here all of them local."""

import json

import datasets
import pytest

from gpt2_ablate.data.corpora import open_corpus

from .texts import documents, encoded, tokenised, whole

TEXTS = ["one", "two 😁", "three"]


@pytest.fixture(autouse=True)
def offline(tmp_path, monkeypatch):
    """What `datasets` unpacks goes with the test."""
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")


def table(texts=TEXTS, column="text"):
    return datasets.Dataset.from_dict({column: texts, "number": list(range(len(texts)))})


def saved(folder, content):
    content.save_to_disk(folder)
    return f"dataset:{folder}"


def parquet(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split, content in splits.items():
        content.to_parquet(folder / f"{split}.parquet")
    return f"dataset:{folder}"


def lines(folder, **splits):
    folder.mkdir(exist_ok=True)
    for split, texts in splits.items():
        (folder / f"{split}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    return f"dataset:{folder}"


def test_a_table_saved_to_disk_is_unsplit(tmp_path):
    assert documents(open_corpus(saved(tmp_path / "a", table()))) == {None: TEXTS}


def test_saved_splits_are_kept(tmp_path):
    splits = datasets.DatasetDict(train=table(), validation=table(["four"]), test=table(["five"]))
    expected = {"train": TEXTS, "validation": ["four"], "test": ["five"]}
    assert documents(open_corpus(saved(tmp_path / "a", splits))) == expected


@pytest.mark.parametrize("name", ["valid", "dev"])
def test_validation_has_other_names(tmp_path, name):
    splits = datasets.DatasetDict({"train": table(), name: table(["four"])})
    assert documents(open_corpus(saved(tmp_path / "a", splits))) == {"train": TEXTS, "validation": ["four"]}


def test_splits_without_a_validation_are_unsplit(tmp_path):
    splits = datasets.DatasetDict(train=table(), unsupervised=table(["four"]))
    assert documents(open_corpus(saved(tmp_path / "a", splits))) == {None: [*TEXTS, "four"]}


def test_without_a_validation_the_test_stays_a_test(tmp_path):
    """What is scored at the end must not have been trained on."""
    splits = datasets.DatasetDict(train=table(), test=table(["four"]))
    assert documents(open_corpus(saved(tmp_path / "a", splits))) == {None: TEXTS, "test": ["four"]}


def test_a_folder_of_parquet(tmp_path):
    name = parquet(tmp_path / "a", train=table(), validation=table(["four"]))
    assert documents(open_corpus(name)) == {"train": TEXTS, "validation": ["four"]}


def test_a_folder_of_json_lines(tmp_path):
    assert documents(open_corpus(lines(tmp_path / "a", train=TEXTS, test=["four"], validation=["five"]))) == {
        "train": TEXTS, "validation": ["five"], "test": ["four"],
    }  # fmt: skip


def test_another_column(tmp_path):
    name = saved(tmp_path / "a", table(column="body"))
    assert documents(open_corpus(name, column="body")) == {None: TEXTS}


def test_documents_without_text_are_left_out(tmp_path):
    name = saved(tmp_path / "a", table([None, "one", "", " \n", "two"]))
    assert documents(open_corpus(name)) == {None: ["one", "two"]}


def test_becomes_tokens(tmp_path):
    texts = [f"Document number {n}." for n in range(40)]
    assert whole(tokenised(lines(tmp_path / "a", data=texts))).tolist() == encoded(texts).tolist()


def make_saved(folder, texts):
    return saved(folder, datasets.DatasetDict(train=table(texts), validation=table(["four"])))


def make_parquet(folder, texts):
    return parquet(folder, train=table(texts), validation=table(["four"]))


def make_lines(folder, texts):
    return lines(folder, train=texts, validation=["four"])


@pytest.mark.parametrize("make", [make_saved, make_parquet, make_lines])
def test_a_digest_is_that_of_the_text(tmp_path, make):
    one, other = make(tmp_path / "one", TEXTS), make(tmp_path / "other", TEXTS[1:])
    assert open_corpus(one).digest == open_corpus(one).digest != open_corpus(other).digest


@pytest.mark.parametrize("make", [make_parquet, make_lines])
def test_a_file_that_has_changed_has_another_digest(tmp_path, make):
    before = open_corpus(make(tmp_path / "a", TEXTS)).digest
    assert open_corpus(make(tmp_path / "a", [*TEXTS, "four"])).digest != before


def test_a_digest_is_that_of_the_column(tmp_path):
    both = datasets.Dataset.from_dict({"text": TEXTS, "body": ["a", "b", "c"]})
    name = saved(tmp_path / "a", both)
    assert open_corpus(name).digest != open_corpus(name, "body").digest


def test_a_column_that_is_not_there_is_named_with_those_that_are(tmp_path, refused):
    name = saved(tmp_path / "a", table(column="body"))
    with refused(name, "'text'", "body", "number"):
        open_corpus(name)


def test_a_column_that_is_no_text_is_refused(tmp_path, refused):
    name = saved(tmp_path / "a", table())
    with refused(name, "number"):
        documents(open_corpus(name, column="number"))


def not_there(folder):
    return f"dataset:{folder}"


def nothing_in_it(folder):
    folder.mkdir()
    return f"dataset:{folder}"


def broken_state(folder):
    name = saved(folder, table())
    (folder / "state.json").write_text("{")
    return name


def cut_off(folder):
    name = saved(folder, table(TEXTS * 100))
    for file in folder.glob("*.arrow"):
        file.write_bytes(file.read_bytes()[:500])
    return name


def broken_lines(folder):
    name = lines(folder, train=TEXTS)
    (folder / "train.jsonl").write_text('{"text": "one"\n{')
    return name


@pytest.mark.parametrize("make", [not_there, nothing_in_it, broken_state, cut_off, broken_lines])
def test_what_cannot_be_opened_is_refused_by_its_name(tmp_path, refused, make):
    name = make(tmp_path / "a")
    with refused(name):
        documents(open_corpus(name))
