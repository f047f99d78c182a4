"""ProcessorTesterMixin of transformers on our processor."""

import unittest

import pytest
from transformers import CLIPImageProcessor
from transformers_tests.test_processing_common import ProcessorTesterMixin

from modeling_vlkd import VLKDProcessor
from tests.conftest import build_bart_tokenizer

pytestmark = pytest.mark.slow


class VLKDProcessorTest(ProcessorTesterMixin, unittest.TestCase):
    processor_class = VLKDProcessor

    @classmethod
    def _setup_image_processor(cls) -> CLIPImageProcessor:
        return CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})

    @classmethod
    def _setup_tokenizer(cls):
        tokenizer = build_bart_tokenizer()
        tokenizer.model_max_length = 1024  # bart-base's and bart-large's: the mixin pads to lengths of more than 100
        return tokenizer
