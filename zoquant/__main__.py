"""The command line: what `zoquant` and `python -m zoquant` run."""

import sys


def main() -> None:
    """Run the command line. Ctrl-C ends it with exit code 130, while libraries are imported too."""
    try:
        from zoquant.cli.app import main as run

        run()
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
