from trainer.environment import set_defaults

set_defaults()  # before a module of this package imports torch
