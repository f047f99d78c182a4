"""Defaults of the process, set by importing this module before torch and tqdm: they read the environment once.

A variable that the user has set is left alone.

By default GNU OpenMP's threads spin for 300,000 rounds while they wait for each other. Where other programs run on the
same cores, they keep those from the very threads they wait for. With OMP_WAIT_POLICY=passive they sleep.

Training steps a second with 2 threads a process on 2 cores, beside two other programs, one run of 6 s each:

| | default | GOMP_SPINCOUNT=10000 | 1000 | passive |
| one process | 1.15 | 1.89 | 3.14 | 5.40 |
| two processes, each | 0.21 | 1.00 | 2.57 | 4.92 |

On another machine, with nothing beside it, the demo made 3.37 steps a second by default, and 3.17 with passive.
"""

import os
import sys

os.environ.setdefault("OMP_WAIT_POLICY", "passive")
if sys.stderr is None or not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "5")  # seconds between two updates of a progress bar
    os.environ.setdefault("TQDM_DELAY", "5")  # bars of a shorter time are not shown
