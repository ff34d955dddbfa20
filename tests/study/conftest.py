"""What holds for all tests of this room: where their processes keep things, and the study that many of them look at."""

import pytest

from gpt2_ablate.utils import process

from .tiny import cache_home, trained_study


@pytest.fixture(scope="package", autouse=True)
def own_processes():
    """A cache apart from the user's; and one server for all children, which imports what they need once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache_home())
        patch.setenv("OMP_WAIT_POLICY", "PASSIVE")
        process.prepare(["gpt2_ablate.study.worker", "gpt2_ablate.benchmarks.measurements"])
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return trained_study(tmp_path_factory)
