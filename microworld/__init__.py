"""The microworld: a small generated world of drawings with its CLIP, BART, recipe and exam."""

from pathlib import Path

from trainer.environment import set_defaults

set_defaults()  # before a module of this package imports torch

TEACHERS = Path("microworld/teachers")  # the folders clip and bart
RECIPE = Path("hub_configs/microworld/train.yaml")
