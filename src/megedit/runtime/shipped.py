"""The files that the package ships, in `data/`; data/SOURCES.md says where they come from."""

from pathlib import Path


def shipped(name: str) -> Path:
    """The path of a file in `data/`."""
    return Path(__file__).parent.parent / "data" / name
