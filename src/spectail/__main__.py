"""``python -m spectail``: the command line."""

from spectail.cli import main

main()
