"""The one error that is the user's to mend."""

from __future__ import annotations


class InputError(ValueError):
    """Something given by the user cannot be used.

    The message is one paragraph: what was got, what is allowed, what to do. The command line prints it
    without a traceback and exits with code 2.
    """
