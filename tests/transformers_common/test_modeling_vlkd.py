"""ModelTesterMixin of transformers on our two models, and ConfigTester on their config."""

import unittest
from unittest.mock import patch

import pytest
import torch
from transformers import PreTrainedModel
from transformers.models.auto.modeling_auto import MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES
from transformers.models.bart.modeling_bart import BartEncoderLayer
from transformers.testing_utils import torch_device
from transformers_tests.test_configuration_common import ConfigTester
from transformers_tests.test_modeling_common import ModelTesterMixin, floats_tensor, ids_tensor, random_attention_mask

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration, VLKDModel

from .leaving_out import leave_out

pytestmark = pytest.mark.slow

# transformers knows its own classes by these tables of names, which `AutoModel…register` leaves alone: with it, the
# tests make labels for our class and check its loss.
MODEL_FOR_SEQ_TO_SEQ_CAUSAL_LM_MAPPING_NAMES["vlkd"] = "VLKDForConditionalGeneration"

TWO_TOWERS = "no single stack of layers; transformers leaves it out of CLIPModel's tests too"
LEFT_OUT_OF_BOTH = {
    "test_cannot_load_with_meta_device_context_manager": "our from_pretrained raises it as a ValueError",
}
LEFT_OUT_OF_THE_GENERATOR = {
    **LEFT_OUT_OF_BOTH,
    "test_model_base_model_prefix": "no base model with a head on it: BART is held with its head",
    "test_generation_tester_mixin_inheritance": "its mixin is not in the sdist; see test_generation.py",
}
LEFT_OUT_OF_THE_DUAL_ENCODER = {
    **LEFT_OUT_OF_BOTH,
    "test_attention_outputs": TWO_TOWERS,
    "test_hidden_states_output": TWO_TOWERS,
    "test_retain_grad_hidden_states_attentions": TWO_TOWERS,
}


class VLKDModelTester:
    """The tiny config and inputs that ModelTesterMixin asks its `model_tester` for."""

    batch_size, seq_length, hidden_size, num_hidden_layers, num_attention_heads = 3, 7, 32, 2, 4
    vision_config = {
        "hidden_size": 32,
        "intermediate_size": 37,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "image_size": 32,
        "patch_size": 8,
    }
    text_config = {
        "vocab_size": 99,
        "d_model": 32,
        "encoder_layers": 2,
        "decoder_layers": 2,
        "encoder_attention_heads": 4,
        "decoder_attention_heads": 4,
        "encoder_ffn_dim": 37,
        "decoder_ffn_dim": 37,
        "max_position_embeddings": 40,
    }

    def __init__(self, is_training: bool, decoder: bool):
        self.is_training, self.decoder, self.with_image = is_training, decoder, True

    def get_config(self) -> VLKDConfig:
        return VLKDConfig(vision_config=self.vision_config, text_config=self.text_config, projection_dim=24)

    def prepare_config_and_inputs_for_common(self) -> tuple[VLKDConfig, dict[str, torch.Tensor]]:
        size, tokens = self.vision_config["image_size"], [self.batch_size, self.seq_length]
        inputs = {
            "input_ids": ids_tensor(tokens, 95).clamp(min=4),  # no special tokens
            "attention_mask": random_attention_mask(tokens),
        }
        if self.with_image:
            inputs["pixel_values"] = floats_tensor([self.batch_size, 3, size, size])
        if self.decoder:
            inputs["decoder_input_ids"] = ids_tensor(tokens, 95).clamp(min=4)
            inputs["decoder_attention_mask"] = torch.ones(tokens, dtype=torch.long, device=torch_device)
        return self.get_config(), inputs


class VLKDTest(ModelTesterMixin):
    """What the tests of both models need."""

    additional_model_inputs = ["pixel_values"]
    _is_composite = True
    test_can_init_all_missing_weights_before_2023 = True
    skip_test_image_features_output_shape = True  # every token is in the joint space, not in CLIP's width

    def test_can_init_all_missing_weights(self):
        """In other packages' models transformers passes over modules without weights of their own: CLIPAttention."""
        with patch.object(PreTrainedModel, "is_custom_code", return_value=False):
            super().test_can_init_all_missing_weights()


@leave_out(LEFT_OUT_OF_THE_GENERATOR)
class VLKDForConditionalGenerationTest(VLKDTest, unittest.TestCase):
    all_model_classes = (VLKDForConditionalGeneration,)
    is_encoder_decoder = True
    test_all_params_have_gradient = False  # W_e learns from embeddings of captions, which these tests have none of

    def setUp(self):
        self.model_tester = VLKDModelTester(is_training=True, decoder=True)
        self.config_tester = ConfigTester(self, config_class=VLKDConfig, has_text_modality=False)

    def test_config(self):
        self.config_tester.run_common_tests()

    def test_attention_outputs(self):
        """The mixin knows one length for encoder states and memory: that is the case without an image."""
        self.model_tester.with_image = False
        super().test_attention_outputs()

    def check_training_gradient_checkpointing(self, gradient_checkpointing_kwargs=None):
        """The mixin watches the first layer it finds: CLIP's, which is frozen. BART's is the one to watch."""
        with patch("transformers_tests.test_modeling_common.GradientCheckpointingLayer", BartEncoderLayer):
            super().check_training_gradient_checkpointing(gradient_checkpointing_kwargs)

    def _prepare_config_and_inputs_for_retain_grad_hidden_states_attentions(self):
        """With a mask, the encoder's states are handed out as copies, moved back to where the tokens stand."""
        config, inputs = super()._prepare_config_and_inputs_for_retain_grad_hidden_states_attentions()
        del inputs["attention_mask"]
        return config, inputs


@leave_out(LEFT_OUT_OF_THE_DUAL_ENCODER)
class VLKDModelTest(VLKDTest, unittest.TestCase):
    all_model_classes = (VLKDModel,)

    def setUp(self):
        self.model_tester = VLKDModelTester(is_training=False, decoder=False)
