"""Defaults of the process, set by importing this module before torch and tqdm: they read the environment once.

A variable that the user has set is left alone.

GNU OpenMP's threads spin while they wait for each other, by default for 300,000 rounds. Where two programs share the
cores, spinning threads keep the cores from the very threads they wait for. 6,000 rounds cost a program that runs alone
nothing, and end the worst of that.

Steps a second of `vlkd train --config hub_configs/microworld/train.yaml --max_steps 200`, 2 threads a process on 2
cores, nothing else running, commit 6d54d59:

| GOMP_SPINCOUNT | default | 10000 | 6000 | 4000 | 1000 | OMP_WAIT_POLICY=passive |
| one process | 5.7 | 5.8 | 5.7 | 5.1 | 4.4 | 4.1 |
| two processes, each | 1.0 | 1.2 | 1.6 | 2.0 | 2.7 | 3.0 |
"""

import os
import sys

if "OMP_WAIT_POLICY" not in os.environ:
    os.environ.setdefault("GOMP_SPINCOUNT", "6000")
if sys.stderr is None or not sys.stderr.isatty():
    os.environ.setdefault("TQDM_MININTERVAL", "5")  # seconds between two updates of a progress bar
    os.environ.setdefault("TQDM_DELAY", "5")  # bars of a shorter time are not shown
