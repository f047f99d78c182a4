"""VLKD for transformers. Importing the package registers its classes with the Auto classes and with `pipeline`."""

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
from .pipeline_vlkd import VLKDImageTextToTextPipeline, VLKDVisualQuestionAnsweringPipeline
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


def repair_message(record: logging.LogRecord) -> bool:
    """transformers 5 gives its warning about "image-to-text" a category as if it were text, which breaks logging."""
    if record.args == (UserWarning,):
        record.args = ()
    return True


# transformers reads "image-to-text" as "image-text-to-text", whose own pipeline takes no image without a prompt. Ours
# hands every model of another kind on to it. "visual-question-answering" was removed, and is ours alone.
TASKS = PIPELINE_REGISTRY.supported_tasks
TASKS["image-text-to-text"] = {**TASKS["image-text-to-text"], "impl": VLKDImageTextToTextPipeline}
TASKS["visual-question-answering"] = {
    "impl": VLKDVisualQuestionAnsweringPipeline,
    "pt": (AutoModelForVisualQuestionAnswering,),
    "default": {},
    "type": "multimodal",
}
REMOVED_TASKS.pop("visual-question-answering", None)
logging.getLogger("transformers.pipelines").addFilter(repair_message)

__all__ = ["VLKDConfig", "VLKDForConditionalGeneration", "VLKDModel", "VLKDProcessor"]
