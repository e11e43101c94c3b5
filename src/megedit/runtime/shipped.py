"""The files that the package ships, in `data/`; data/SOURCES.md says where they come from."""

from pathlib import Path

ENCODER = "encoder.safetensors"  # changes to all-MiniLM-L6-v2; adapters hold a copy
VERIFIER = "verifier.safetensors"  # others, and a head


def shipped(name: str) -> Path:
    """The path of a file in `data/`."""
    return Path(__file__).parent.parent / "data" / name
