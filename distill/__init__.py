"""Distil heavyweight video-saliency teachers into a tiny recurrent ONNX student.

Importing this package does no work and imports no torch: the gate and `distill --help` must start at once.
"""

import os
import signal
import sys

__version__ = "0.1.0"

# `python -m distill.opallowlist` imports this package before a line of its own can run. Python calls itself `-m` until then.
if sys.argv[:1] == ["-m"] and "distill.opallowlist" in sys.orig_argv:
    signal.signal(signal.SIGINT, lambda *_: os._exit(130))
