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
    PreTrainedConfig,
)
from transformers.pipelines import PIPELINE_REGISTRY, REMOVED_TASKS

from .configuration_vlkd import VLKDConfig
from .modeling_vlkd import VLKDForConditionalGeneration, VLKDModel
from .pipeline_vlkd import (
    VLKDImageTextToTextPipeline,
    VLKDVisualQuestionAnsweringPipeline,
    VLKDZeroShotImageClassificationPipeline,
    check_is_vlkd,
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


def repair_message(record: logging.LogRecord) -> bool:
    """transformers 5 gives its warning about "image-to-text" a category as if it were text, which breaks logging."""
    if record.args == (UserWarning,):
        record.args = ()
    return True


class AutoModelForVLKDQuestions(AutoModelForVisualQuestionAnswering):
    """What `visual-question-answering` loads: for models of another kind the task stays removed."""

    @classmethod
    def from_pretrained(cls, name, *args, **kwargs):
        config, _ = PreTrainedConfig.get_config_dict(name, **kwargs)  # before any weights are fetched
        check_is_vlkd(config.get("model_type", "vlkd"))  # an adapter's folder may have none
        return AutoModelForVisualQuestionAnswering.from_pretrained(name, *args, **kwargs)


# transformers reads "image-to-text" as "image-text-to-text", whose own pipeline takes no image without a prompt. Ours
# hand every model of another kind on to transformers'. "visual-question-answering" was removed, and is ours alone.
TASKS = PIPELINE_REGISTRY.supported_tasks
for task, implementation in (
    ("image-text-to-text", VLKDImageTextToTextPipeline),
    ("zero-shot-image-classification", VLKDZeroShotImageClassificationPipeline),
):
    TASKS[task] = {**TASKS[task], "impl": implementation}
TASKS["visual-question-answering"] = {
    "impl": VLKDVisualQuestionAnsweringPipeline,
    "pt": (AutoModelForVLKDQuestions,),
    "default": {},
    "type": "multimodal",
}
PIPELINE_REGISTRY.task_aliases["vqa"] = "visual-question-answering"
for task in ("visual-question-answering", "vqa"):
    REMOVED_TASKS.pop(task, None)
logging.getLogger("transformers.pipelines").addFilter(repair_message)

__all__ = ["VLKDConfig", "VLKDForConditionalGeneration", "VLKDModel", "VLKDProcessor"]
