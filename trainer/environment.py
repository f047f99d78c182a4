"""Defaults of the process, set by importing this module before torch and tqdm: they read the environment once.

A variable that the user has set is left alone.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if sys.stderr is None or not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "5")  # seconds between two updates of a progress bar
    os.environ.setdefault("TQDM_DELAY", "5")  # bars of a shorter time are not shown
