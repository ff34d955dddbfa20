"""The one exception that means: the user can put this right."""


class UserError(ValueError):
    """A mistake in what the user gave: one line that says what is wrong, where, and what would be right.

    The console script prints the line and exits with status 2; library callers can catch it as a `ValueError`.
    """
