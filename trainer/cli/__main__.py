"""`python -m trainer.cli`: the `vlkd` command."""

import sys

from trainer.cli import main

sys.exit(main())
