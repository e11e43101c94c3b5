"""The files that the package ships, in `data/`; data/SOURCES.md says where they come from."""

from pathlib import Path

ENCODER = "encoder.safetensors"  # changes to all-MiniLM-L6-v2; adapters hold a copy
VERIFIER = "verifier.safetensors"  # others, and a head
SECOND_VERIFIER = "second_verifier.safetensors"  # of another training, which reads what the first is surest of


def shipped(name: str) -> Path:
    """The path of a file in `data/`."""
    return Path(__file__).parent.parent / "data" / name
