"""What commands show to the user as a single line."""

import textwrap


class UserError(Exception):
    """An error that the user can cause and mend.

    Its message is one line: what was got, what is needed, what to do.
    """


def one_line(error: Exception) -> str:
    """Return what an error says, of several lines too, in at most 400 characters; its name where it says nothing."""
    return textwrap.shorten(str(error), 400, placeholder=" …") or type(error).__name__
