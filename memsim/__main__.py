"""`python -m memsim` is `memsim`."""

from memsim.cli import main

main()
