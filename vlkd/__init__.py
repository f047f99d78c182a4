"""VLKD: CLIP and BART joined into one model by vision-language knowledge distillation.

    from vlkd import VLKDForConditionalGeneration, VLKDProcessor

A name is imported when it is first used, so `import vlkd` alone is fast and loads neither torch nor transformers. The
first use of a model, config or processor class registers VLKD with the Auto classes and with `pipeline`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from trainer.extras import missing_extra

if TYPE_CHECKING:
    from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDModel, VLKDProcessor
    from trainer import (
        EpochDataset,
        TextInfilling,
        VLKDDataCollator,
        VLKDExportedModel,
        VLKDTrainer,
        VLKDTrainingArguments,
        export_model,
    )

__version__ = "0.1.0"

__all__ = [
    "EpochDataset",
    "TextInfilling",
    "VLKDConfig",
    "VLKDDataCollator",
    "VLKDExportedModel",
    "VLKDForConditionalGeneration",
    "VLKDModel",
    "VLKDProcessor",
    "VLKDTrainer",
    "VLKDTrainingArguments",
    "__version__",
    "export_model",
]

_EXTRAS = dict.fromkeys(
    ("EpochDataset", "TextInfilling", "VLKDDataCollator", "VLKDTrainer", "VLKDTrainingArguments"), "train"
) | dict.fromkeys(("VLKDExportedModel", "export_model"), "onnx")


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'vlkd' has no attribute '{name}'")
    try:
        return getattr(import_module("trainer" if name in _EXTRAS else "modeling_vlkd"), name)
    except ImportError as error:
        message = missing_extra(error, name, _EXTRAS.get(name))
        if message is None:
            raise
        raise ImportError(message, name=error.name) from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
