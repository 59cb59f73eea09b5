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

_SLOWLY = """
import time
import spectail.measuring.engines.local as local
measure = local.measure_layer
def slowly(layer, plan):
    time.sleep(0.2)
    return measure(layer, plan)
local.measure_layer = slowly
"""

SIGNALLED_SLOW = [sys.executable, "-c", _SLOWLY + _HEEDING]
"""The same, with time between layers: a run must not end before the test has sent its signal."""
