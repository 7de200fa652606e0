"""The one error that a user is meant to read."""


class UserError(Exception):
    """Bad input: one line that names the field, file or line and the way out (exit code 2)."""
