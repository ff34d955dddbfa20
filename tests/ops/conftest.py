"""As in tests/model: one thread, its tensors being tiny."""

from ..model.conftest import one_thread  # noqa: F401
