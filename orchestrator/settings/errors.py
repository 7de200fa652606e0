"""The errors that a user is meant to read, and how a command ends with them."""


class UserError(Exception):
    """Bad input: one line that names the field, file or line and the way out."""

    exit_code = 2


class IncompleteError(UserError):
    """What was started has ended, and a part of it failed: one line that says how much, and how to go on."""

    exit_code = 1
