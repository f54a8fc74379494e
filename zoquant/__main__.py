"""The command line as a module: `python -m zoquant`."""

from zoquant.cli.app import main

main()
