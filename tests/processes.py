"""Commands in processes of their own."""

import sys

_HEEDING = """
import signal
from spectail.cli import main
signal.signal(signal.SIGINT, signal.default_int_handler)
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)
main()
"""

SIGNALLED = [sys.executable, "-c", _HEEDING]
"""The command line, which heeds signals even where the tests ignore them: a shell that runs them in
the background, or ``nohup``, makes all their children do so."""
