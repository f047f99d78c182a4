"""Environment defaults of the commands.

Variables that the user has set are not changed.

Waiting threads of GNU OpenMP spin, by default for 300,000 rounds. If two programs share the cores, spinning threads
block the threads that they wait for. 6,000 rounds avoid most of that, and cost nothing otherwise.

Steps per second of `vlkd train --config hub_configs/microworld/train.yaml --max_steps 200` at commit 6d54d59, whose
microworld has a smaller CLIP than today's; 2 threads per process on 2 cores, nothing else running:

| GOMP_SPINCOUNT | default | 10000 | 6000 | 4000 | 1000 | OMP_WAIT_POLICY=passive |
| one process | 5.7 | 5.8 | 5.7 | 5.1 | 4.4 | 4.1 |
| two processes, each | 1.0 | 1.2 | 1.6 | 2.0 | 2.7 | 3.0 |
"""

import os
import sys


def set_defaults() -> None:
    """Set the defaults. Call this before torch and tqdm are imported: they read the environment only then."""
    if "OMP_WAIT_POLICY" not in os.environ:
        os.environ.setdefault("GOMP_SPINCOUNT", "6000")
    if sys.stderr is None or not sys.stderr.isatty():
        os.environ.setdefault("TQDM_MININTERVAL", "5")  # seconds between updates of a progress bar
        os.environ.setdefault("TQDM_DELAY", "5")  # shorter progress bars are not shown
