"""The life of a run on a machine: files, devices, processes, progress, checkpoints. Nothing here knows of MeG."""
