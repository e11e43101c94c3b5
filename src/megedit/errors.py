"""The one error of MegEdit's own."""

from importlib.util import find_spec


class MegError(Exception):
    """An error the user can act on: one sentence naming the file, line or field and what to do."""


def needs(package: str, extra: str, purpose: str) -> None:
    """Check that an optional package is installed, before it is imported.

    Args:
        package: Name under which it is imported.
        extra: The extra of `megedit` that installs it.
        purpose: Work that needs it, such as "reading .gguf files".

    Raises:
        MegError: It is not installed.
    """
    if find_spec(package) is None:
        name = package.replace("_", "-")
        raise MegError(f"{name} is needed for {purpose}; run pip install 'megedit[{extra}]'.")
