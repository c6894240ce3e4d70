"""``python -m shearling`` is the same program as ``shearling``."""

from shearling.cli import main

main()
