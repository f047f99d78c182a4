"""VLKD for transformers. Importing this package registers its Auto classes and pipelines."""

import logging

from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForVisualQuestionAnswering,
    AutoModelForZeroShotImageClassification,
    AutoProcessor,
)
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS

from .configuration_vlkd import VLKDConfig
from .modeling_vlkd import VLKDForConditionalGeneration, VLKDModel
from .pipeline_vlkd import (
    VLKDImageTextToTextPipeline,
    VLKDVisualQuestionAnsweringPipeline,
)
from .processing_vlkd import VLKDProcessor

AutoConfig.register("vlkd", VLKDConfig)
AutoProcessor.register(VLKDConfig, VLKDProcessor)
for auto_class in (AutoModel, AutoModelForZeroShotImageClassification):
    auto_class.register(VLKDConfig, VLKDModel)
for auto_class in (
    AutoModelForImageTextToText,
    AutoModelForMultimodalLM,
    AutoModelForSeq2SeqLM,
    AutoModelForVisualQuestionAnswering,
):
    auto_class.register(VLKDConfig, VLKDForConditionalGeneration)


# transformers maps "image-to-text" to "image-text-to-text", whose own pipeline requires a prompt, and has removed
# "visual-question-answering". Our class returns transformers' own pipeline for other models.
TASKS = PIPELINE_REGISTRY.supported_tasks
TASKS["image-text-to-text"] = {**TASKS["image-text-to-text"], "impl": VLKDImageTextToTextPipeline}
TASKS["visual-question-answering"] = {
    "impl": VLKDVisualQuestionAnsweringPipeline,
    "pt": (AutoModelForVisualQuestionAnswering,),
    "default": {},
    "type": "multimodal",
}
PIPELINE_REGISTRY.task_aliases["vqa"] = "visual-question-answering"
for task in ("visual-question-answering", "vqa"):
    REMOVED_TASKS.pop(task, None)


def is_well_formed(record: logging.LogRecord) -> bool:
    """Returns False for transformers' message that "image-to-text" was removed, which cannot be formatted."""
    return record.args != (UserWarning,)


logging.getLogger("transformers.pipelines").addFilter(is_well_formed)

__all__ = ["VLKDConfig", "VLKDForConditionalGeneration", "VLKDModel", "VLKDProcessor"]
