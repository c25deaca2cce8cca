"""What the user can put right: the command line shows the message alone, without a traceback."""


class UserError(ValueError):
    """Base of errors in what was given to us. The message says what is wrong, what was found and how to fix it."""


class UnavailableError(UserError):
    """A service that is needed does not answer now; the same may work later."""
