"""How VLKD learns: data, losses and the training loop."""

from trainer.data import EpochDataset
from trainer.data_collator import VLKDDataCollator
from trainer.infilling import TextInfilling
from trainer.training_args import VLKDTrainingArguments
from trainer.vlkd_trainer import VLKDTrainer

__all__ = ["EpochDataset", "TextInfilling", "VLKDDataCollator", "VLKDTrainer", "VLKDTrainingArguments"]
