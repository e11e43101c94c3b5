"""Fit the shared tiny adapter in a process of its own, to be killed, starved of disk or started several times.

    python -m tests.run_fit BASE ENCODER OUT [LARGEST_FILE]

LARGEST_FILE: bytes; what is longer cannot be written, as on a full disk.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

import megedit.encoder
from megedit.errors import MegError
from megedit.fitting import fit
from tests.conftest import made_up_edits, made_up_pseudo_knowledge, small_settings

torch.set_num_threads(1)
megedit.encoder.CHECKPOINT_EVERY = 1


def main() -> None:
    base, encoder, out = sys.argv[1:4]
    if len(sys.argv) > 4:
        resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[4]),) * 2)
    settings, pseudo = small_settings(Path(encoder)), made_up_pseudo_knowledge()
    try:
        fit(base, made_up_edits(), out, settings, pseudo=pseudo, dtype=torch.float32)
    except MegError as error:
        sys.exit(f"Error: {error}")
    finally:
        if torch.distributed.is_initialized():
            torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
