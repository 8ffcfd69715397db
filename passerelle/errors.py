"""The one error type that stands for a mistake the user can mend."""


def install_extra(extra: str) -> str:
    """Returns the remedy for a missing library of an optional dependency group of `pyproject.toml`."""
    return f"install it in the checkout: pip install -e '.[{extra}]'"


class UserError(ValueError):
    """A mistake in the user's input, told in one line: what is wrong, where, and how to mend it.

    The command line prints the message alone and exits with status 1; library callers catch `ValueError`.
    """
