"""`python -m megedit` is `meg`."""

from megedit.cli import main

main()
