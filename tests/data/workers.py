"""What other processes do in test_tokens; they import this file and nothing that is slow."""

import os
import signal
import time

from gpt2_ablate.data.corpora import Corpus
from gpt2_ablate.data.tokens import tokenise

TEXTS = [f"This is document number {n}." for n in range(200)]


def slow_corpus(log):
    """Takes a moment to read, and writes a line into `log` whenever it is read."""

    def read():
        with open(log, "a") as stream:
            stream.write("read\n")
        time.sleep(0.4)
        yield from TEXTS

    return Corpus("slow", "slow", {None: read})


def tokenise_at_once(barrier, log, answers):
    barrier.wait()
    splits = tokenise(slow_corpus(log))
    answers.put({name: (split.ids.tolist(), split.bytes) for name, split in splits.items()})


def deadly_corpus():
    """Kills its reader after five megabytes: more than are encoded at a time."""

    def read():
        for _ in range(500):
            yield "word " * 2000
        os.kill(os.getpid(), signal.SIGKILL)

    return Corpus("deadly", "deadly", {None: read})


def tokenise_and_die():
    tokenise(deadly_corpus())
