"""What the tests of this room share: making texts, and reading them back."""

import numpy as np

from gpt2_ablate.data.corpora import Corpus, open_corpus
from gpt2_ablate.data.tokenizer import load_tokenizer
from gpt2_ablate.data.tokens import tokenise

SEPARATOR = "<|endoftext|>"
END = 50256

decode = load_tokenizer().decode


def bytes_of_token(i):
    return len(load_tokenizer().decode_single_token_bytes(i))


def write(folder, **files):
    """A folder of text files: write(folder, a="text") writes a.txt."""
    folder.mkdir(exist_ok=True)
    for name, text in files.items():
        (folder / f"{name}.txt").write_bytes(text.encode())
    return folder


def documents(corpus):
    """All of a corpus, {split: [document]}; the name None is that of what is still to be split."""
    return {split: list(read()) for split, read in corpus.documents.items()}


def encoded(texts):
    """The ids that a list of documents should become."""
    ids = [[*load_tokenizer().encode_ordinary(text), END] for text in texts]
    return np.concatenate(ids) if ids else np.empty(0, int)


def tokenised(path):
    """The splits of a text file or folder."""
    return tokenise(open_corpus(str(path)))


def unsplit(texts, digest="a corpus"):
    """A corpus of these documents, without a file."""
    return Corpus("a corpus", digest, {None: lambda: iter(texts)})


def whole(splits):
    """All ids of a tokenised corpus, in the order of the splits."""
    return np.concatenate([splits[name].ids for name in ("train", "validation", "test")])
