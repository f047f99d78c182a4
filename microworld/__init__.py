from trainer import environment  # noqa: F401 - before anything here imports torch
