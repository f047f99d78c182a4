"""Train and evaluate VLKD models."""

from importlib import import_module
from typing import Any

_MODULES = {
    "EpochDataset": "trainer.data.epoch_dataset",
    "TextInfilling": "trainer.data.infilling",
    "VLKDDataCollator": "trainer.data.collator",
    "VLKDExportedModel": "trainer.inference.export",
    "VLKDTrainer": "trainer.vlkd_trainer",
    "VLKDTrainingArguments": "trainer.arguments",
    "export_model": "trainer.inference.export",
}
__all__ = list(_MODULES)


def __getattr__(name: str) -> Any:
    """Import a public name on first use, so that `trainer.environment` can be imported before torch."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
