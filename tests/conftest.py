"""What all rooms share: how OpenMP's threads wait, what it means to be refused, and a disk that is full."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # has to be said before torch is imported, see gpt2_ablate.cli

import resource
from contextlib import contextmanager

import pytest

from gpt2_ablate.errors import UserError


@pytest.fixture(scope="session")
def refused():
    """`with refused("a.txt", 7):` something raises a UserError whose message is one line and holds these words."""

    @contextmanager
    def refused(*words):
        with pytest.raises(UserError) as raised:
            yield
        message = str(raised.value)
        assert message and "\n" not in message
        for word in words:
            assert str(word) in message, message

    return refused


@pytest.fixture(scope="session")
def full_disk():
    """`with full_disk(100):` no file can grow over 100 bytes; the kernel fails the write that would, as on a full disk."""

    @contextmanager
    def full_disk(size):
        limits = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, limits[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    return full_disk
