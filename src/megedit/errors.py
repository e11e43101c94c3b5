"""The one error of MegEdit's own."""


class MegError(Exception):
    """An error the user can act on: one sentence naming the file, line or field and what to do."""
