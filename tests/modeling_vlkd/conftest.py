"""Pipelines of the tiny model."""

import pytest
from transformers import pipeline


@pytest.fixture(scope="module", params=["folder", "object"])
def source(request, vlkd_dir, model, processor) -> dict:
    return {"model": vlkd_dir} if request.param == "folder" else {"model": model, "processor": processor}


@pytest.fixture(scope="module")
def captioner(model, processor):
    return pipeline("image-to-text", model=model, processor=processor, device="cpu", max_new_tokens=6)


@pytest.fixture(scope="module")
def answerer(model, processor):
    return pipeline("visual-question-answering", model=model, processor=processor, device="cpu", max_new_tokens=6)
