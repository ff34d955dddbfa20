"""One cache of token ids for this room, apart from the user's, and the study that many tests look at."""

import pytest

from .tiny import cache_home, trained_study


@pytest.fixture(scope="package", autouse=True)
def own_cache():
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", cache_home())
        yield


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    return trained_study(tmp_path_factory)
