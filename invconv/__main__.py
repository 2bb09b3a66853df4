"""The command `invconv`: `python -m invconv --help`."""

from invconv.cli import main

main()
