"""How a run lives on a machine: files, devices, processes, progress, checkpoints. Nothing here knows of MeG."""
