"""As in tests/study: processes with a cache of their own, and the study that many tests look at."""

from ..study.conftest import own_processes, trained  # noqa: F401
