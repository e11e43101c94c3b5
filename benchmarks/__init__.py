"""Measurements of MegEdit: each module is one command, `python -m benchmarks.NAME`, and writes JSON."""
