"""The one exception for input that a user can mend. Raised everywhere; `lvlm.cli` and its siblings print it and
exit with status 2.
"""


class InputError(Exception):
    """What is wrong, where (file, index or line, field), and what to do: one paragraph, shown without a traceback."""


class Diverged(InputError):
    """Training whose loss or gradients are no longer finite: a fault of its settings, and of none of its files."""


class StartAgain(InputError):
    """Work that several processes could not go on with, and that goes on from its checkpoint where the same command is
    started again."""


def nearest(name: str, known: list[str]) -> str:
    """The known names closest to `name`, as text for an error message."""
    import difflib

    close = difflib.get_close_matches(name, known, n=3, cutoff=0.4)
    return ", ".join(close or sorted(known)[:12])
