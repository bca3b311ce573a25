"""The one exception that commands show to the user as a single line."""


class UserError(Exception):
    """An error that the user can cause and mend.

    Its message is one line: what was got, what is needed, what to do.
    """
