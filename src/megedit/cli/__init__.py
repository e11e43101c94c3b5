"""The command `meg`."""

from megedit.cli.app import main

__all__ = ["main"]
