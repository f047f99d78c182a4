"""One dataset with one column of the feature cache."""

from typing import Any

from datasets import Dataset

from trainer.cache.clip_features import ImageFeatures, TeacherEmbeds, add_cached_columns


def add_teacher_embeds(dataset: Dataset, *args: Any, **options: Any) -> Dataset:
    """Arguments as of `TeacherEmbeds`."""
    return add_cached_columns([dataset], [TeacherEmbeds(*args, **options)])[0]


def add_image_features(dataset: Dataset, *args: Any, **options: Any) -> Dataset:
    """Arguments as of `ImageFeatures`."""
    return add_cached_columns([dataset], [ImageFeatures(*args, **options)])[0]
