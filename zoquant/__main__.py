"""The command line as a module: `python -m zoquant`."""

from zoquant.cli import main

main()
