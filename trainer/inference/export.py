"""Export a VLKD to ONNX or OpenVINO with `transformers.exporters`, and run the export.

| program | inputs | outputs |
|---|---|---|
| `image_encoder` | pixel_values | V, CLIP's tokens in the joint space |
| `image_projection` | V | W_d V |
| `text_encoder` | input_ids, attention_mask | E(x), and the text's embedding |
| `memory_projection` | the memory [W_d V ; E(x)] | keys and values of each decoder layer's cross-attention |
| `decoder` | tokens, the memory's mask, past and cross-attention's keys and values | logits, new keys and values |
"""

import importlib
import io
import json
import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn
from tqdm.auto import tqdm
from transformers import DynamicCache, EncoderDecoderCache, GenerationConfig, PreTrainedModel
from transformers.exporters import DynamoConfig, ExportedModel, HfExporter
from transformers.modeling_outputs import BaseModelOutputWithPooling
from transformers.utils import cached_file

from modeling_vlkd.configuration_vlkd import VLKDConfig
from modeling_vlkd.generation_vlkd import VLKDEncoder, VLKDGenerationMixin, as_plain_dict
from modeling_vlkd.modeling_vlkd import VLKDForConditionalGeneration
from modeling_vlkd.processing_vlkd import check_same_number
from modeling_vlkd.towers_vlkd import VLKDEncoderOutput, VLKDSeq2SeqLMOutput, unit
from trainer.inference.backends import MANIFEST

Format = Literal["onnx", "openvino"]
Precision = Literal["fp32", "int8"]
KeysAndValues = list[Tensor]  # of each layer in turn: keys, values; (batch, heads, tokens, head_dim)


# ---- programs


class _Program(nn.Module):
    def __init__(self, model: VLKDForConditionalGeneration):
        super().__init__()
        self.model = model


class ImageEncoder(_Program):
    """(images, 3, height, width) -> V (images, image_tokens, d_j)."""

    def forward(self, pixel_values: Tensor) -> Tensor:
        return self.model.get_image_features(pixel_values, return_dict=True).last_hidden_state


class ImageProjection(_Program):
    """V (batch, image_tokens, d_j) -> W_d V (batch, image_tokens, d_model)."""

    def forward(self, image_features: Tensor) -> Tensor:
        return self.model.project_images(image_features)


class TextEncoder(_Program):
    """Ids and mask (batch, text_tokens) -> E(x) (batch, text_tokens, d_model), s (batch, d_j)."""

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor]:
        output = self.model.get_text_features(input_ids, attention_mask, return_dict=True)
        return output.last_hidden_state, output.pooler_output


class MemoryProjection(_Program):
    """Memory (batch, tokens, d_model) -> keys and values of the decoder's cross-attention."""

    def forward(self, memory: Tensor) -> KeysAndValues:
        found = []
        for layer in self.model.get_decoder().layers:
            attention = layer.encoder_attn
            for projection in (attention.k_proj, attention.v_proj):
                states = projection(memory).unflatten(-1, (attention.num_heads, attention.head_dim))
                found.append(states.transpose(1, 2))
        return found


class Decoder(_Program):
    """Tokens (batch, new_tokens) -> logits (batch, new_tokens, vocab_size), and their keys and values.

    The head is a copy of the tied embeddings, transposed: only so is it quantized.
    """

    def __init__(self, model: VLKDForConditionalGeneration):
        super().__init__(model)
        self.head = nn.Parameter(model.language_model.lm_head.weight.T.contiguous(), requires_grad=False)

    def forward(
        self, decoder_input_ids: Tensor, memory_mask: Tensor, past: KeysAndValues, cross: KeysAndValues
    ) -> tuple[Tensor, ...]:
        bart, past_tokens = self.model.language_model, past[0].shape[2]
        cache = EncoderDecoderCache(DynamicCache(_pairs(past)), DynamicCache(_pairs(cross)))
        memory = cross[0].transpose(1, 2).flatten(2)  # only its shape is used: the cache holds its keys and values
        output = bart.get_decoder()(
            decoder_input_ids,
            encoder_hidden_states=memory,
            encoder_attention_mask=memory_mask,
            past_key_values=cache,
            use_cache=True,
            return_dict=True,
        )
        logits = output.last_hidden_state @ self.head + bart.final_logits_bias
        return logits, *(states[:, :, past_tokens:] for states in _states_of(cache.self_attention_cache))


PROGRAMS = {
    "image_encoder": ImageEncoder,
    "image_projection": ImageProjection,
    "text_encoder": TextEncoder,
    "memory_projection": MemoryProjection,
    "decoder": Decoder,
}


def _pairs(states: KeysAndValues) -> list[tuple[Tensor, Tensor]]:
    return list(zip(states[::2], states[1::2], strict=True))


def _states_of(cache: DynamicCache) -> KeysAndValues:
    return [states for layer in cache.layers for states in (layer.keys, layer.values)]


@torch.no_grad()
def _example_inputs(model: VLKDForConditionalGeneration) -> dict[str, dict[str, Any]]:
    """Inputs of each program. No dimension that varies has the size 0 or 1, which `torch.export` would fix."""
    size = model.config.vision_config.image_size
    input_ids = torch.tensor([[0, 9, 9, model.config.mask_token_id, 2]] * 2)
    attention_mask = torch.ones_like(input_ids)
    pixel_values = torch.zeros(2, 3, size, size)
    image_features = ImageEncoder(model)(pixel_values)
    text_states, _ = TextEncoder(model)(input_ids, attention_mask)
    memory = torch.cat([ImageProjection(model)(image_features), text_states], dim=1)
    cross = MemoryProjection(model)(memory)
    return {
        "image_encoder": {"pixel_values": pixel_values},
        "image_projection": {"image_features": image_features},
        "text_encoder": {"input_ids": input_ids, "attention_mask": attention_mask},
        "memory_projection": {"memory": memory},
        "decoder": {
            "decoder_input_ids": input_ids[:, :2].clone(),
            "memory_mask": torch.ones(memory.shape[:2], dtype=torch.long),
            "past": [states[:, :, :3].clone() for states in cross],
            "cross": cross,
        },
    }


def export_model(
    model: VLKDForConditionalGeneration, precision: Precision = "fp32", format: Format = "onnx"
) -> "VLKDExportedModel":
    """
    Exports a model for ONNX Runtime or OpenVINO on a CPU.

    Args:
        model: The model, in float32 on the CPU. It is in eval mode afterwards.
        precision: `"fp32"`, or `"int8"` for 8-bit weights. In ONNX, inputs of matrix products are quantized too.
        format: `"onnx"` or `"openvino"`.

    Raises:
        ImportError: A package of the extra of the same name as the format is missing.
        ValueError: The model has another dtype or device, or an option is unknown.
    """
    for name, value, known in (("precision", precision, Precision), ("format", format, Format)):
        if value not in get_args(known):
            raise ValueError(f"`{name}`={value!r} is unknown; choose one of {', '.join(get_args(known))}.")
    if model.dtype != torch.float32 or model.device.type != "cpu":
        raise ValueError(
            f"The model is in {model.dtype} on {model.device}; load it in float32 on the CPU to export it."
        )
    exporter, config = (_onnx if format == "onnx" else _openvino)(precision)
    model.eval()
    model.config.text_generation_config = as_plain_dict(model.text_generation_config)
    inputs, components = _example_inputs(model), {}
    for name, program in tqdm(PROGRAMS.items(), desc=f"export to {format}", unit="program"):
        with _quiet():
            components |= {name: exporter.export(program(model), inputs[name], config).components["model"]}
    return VLKDExportedModel(ExportedModel(components, exporter.export_format, model.config, model.generation_config))


def _onnx(precision: Precision) -> tuple[HfExporter, DynamoConfig]:
    _check_installed("onnx", "onnxscript", "onnxruntime")
    from transformers.exporters import OnnxConfig, OnnxExporter, OnnxRuntimeDynamicConfig, OnnxRuntimeQuantizer

    with _quiet():
        quantizer = None
        if precision == "int8":
            # 7 bits: without VNNI instructions, a sum of two products of 8 bits overflows.
            options = {"op_types_to_quantize": ["MatMul"], "per_channel": True, "reduce_range": True}
            quantizer = OnnxRuntimeQuantizer(OnnxRuntimeDynamicConfig(**options))
        return OnnxExporter(), OnnxConfig(dynamic=True, quantizer=quantizer)


def _openvino(precision: Precision) -> tuple[HfExporter, DynamoConfig]:
    _check_installed("openvino")
    from transformers.exporters import OpenVINOConfig, OpenVINOExporter

    with _quiet():
        quantizer = None
        if precision == "int8":
            _check_installed("nncf")
            from transformers.exporters import NNCFOpenVINOQuantizer, NNCFWeightCompressionConfig

            quantizer = NNCFOpenVINOQuantizer(NNCFWeightCompressionConfig())
        return OpenVINOExporter(), OpenVINOConfig(dynamic=True, stateful=False, quantizer=quantizer)


def _check_installed(*modules: str) -> None:
    """Raise the ImportError that names a missing module, which the exporters do not."""
    for module in modules:
        importlib.import_module(module)


@contextmanager
def _quiet() -> Iterator[None]:
    """The exporters print each of their steps, and warn of operators that no program here uses."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(before)


# ---- the model


def _session_options() -> dict[str, Any]:
    """Of ONNX Runtime."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")  # cores are shared with image loading
    return {"session_options": options}


def _compile_options() -> dict[str, Any]:
    """Of OpenVINO, which otherwise computes in bfloat16 on CPUs that can."""
    _check_installed("openvino")
    return {"config": {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": torch.get_num_threads()}}


class VLKDExportedModel(VLKDGenerationMixin, PreTrainedModel):
    """
    An export of a [`VLKDForConditionalGeneration`], which generates, and embeds images and texts, as the model does.

    It cannot be trained. `export_model` returns one, `save_pretrained` writes it, and `from_pretrained` loads it.
    """

    config_class = VLKDConfig
    main_input_name = "input_ids"
    _supports_flash_attn = _supports_sdpa = _supports_flex_attn = True  # the config may name any
    dtype = torch.float32
    device = torch.device("cpu")

    def __init__(self, exported: ExportedModel):
        super().__init__(exported.config)
        self.exported = exported
        self.digest: str | None = None  # of what was exported, if it is known
        self.generation_config = exported.generation_config
        self.text_generation_config = GenerationConfig.from_dict(self.config.text_generation_config or {})

    @classmethod
    def from_pretrained(cls, name: str | os.PathLike, **kwargs) -> "VLKDExportedModel":
        """
        Loads what `save_pretrained` wrote.

        Args:
            name: Hub name or folder.
            **kwargs: Where to find it: `subfolder`, `revision`, `token`, `cache_dir`, `local_files_only`.

        Raises:
            ImportError: The runtime of the export is not installed.
            OSError: There is no export, or a file of it is missing.
        """
        with open(cached_file(name, MANIFEST, **kwargs), encoding="utf-8") as file:
            is_onnx = json.load(file)["export_format"] == "onnx"
        options = _session_options() if is_onnx else _compile_options()
        exported = ExportedModel.from_pretrained(name, device="cpu", **options, **kwargs)
        if None in (exported.config, exported.generation_config):
            raise OSError(f"'{name}' has no config.json or no generation_config.json.")
        return cls(exported)

    def save_pretrained(self, save_directory: str | os.PathLike, **kwargs) -> None:
        """Writes the programs, their description `export.json`, and the configs. Options: those of `ExportedModel`."""
        self.exported.save_pretrained(save_directory, **kwargs)

    def _run(self, program: str, **inputs) -> Any:
        return self.exported.runners[program](**inputs)

    def get_encoder(self, modality: str | None = None) -> nn.Module:
        return VLKDEncoder(self)

    def get_image_features(self, pixel_values: torch.FloatTensor, **kwargs) -> BaseModelOutputWithPooling:
        tokens = self._run("image_encoder", pixel_values=pixel_values.float())
        return BaseModelOutputWithPooling(last_hidden_state=tokens, pooler_output=unit(tokens[:, 0]))

    def get_text_features(
        self, input_ids: torch.LongTensor, attention_mask: torch.Tensor | None = None, **kwargs
    ) -> BaseModelOutputWithPooling:
        mask = torch.ones_like(input_ids) if attention_mask is None else attention_mask.long()
        states, embeds = self._run("text_encoder", input_ids=input_ids, attention_mask=mask)
        return BaseModelOutputWithPooling(last_hidden_state=states, pooler_output=embeds)

    def encode_multimodal(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        **kwargs,
    ) -> VLKDEncoderOutput:
        """See [`VLKDForConditionalGeneration.encode_multimodal`]; there are no `inputs_embeds`."""
        if pixel_values is not None:
            image_features = self.get_image_features(pixel_values).last_hidden_state
        if input_ids is None:
            input_ids = self.default_prompt(image_features.shape[0])
        memory = self.get_text_features(input_ids, attention_mask).last_hidden_state
        if image_features is None:
            return VLKDEncoderOutput(memory)
        check_same_number(image_features.shape[0], input_ids.shape[0])
        image_states = self._run("image_projection", image_features=image_features)
        memory = torch.cat([image_states, memory], dim=1)
        return VLKDEncoderOutput(last_hidden_state=memory, image_embeds=unit(image_features[:, 0]))

    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        pixel_values: torch.FloatTensor | None = None,
        image_features: torch.FloatTensor | None = None,
        decoder_input_ids: torch.LongTensor | None = None,
        encoder_outputs: VLKDEncoderOutput | tuple | None = None,
        past_key_values: EncoderDecoderCache | None = None,
        use_cache: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.LongTensor | None = None,
    ) -> VLKDSeq2SeqLMOutput:
        """The inputs and outputs that `generate` needs of [`VLKDForConditionalGeneration`]."""
        if encoder_outputs is None:
            encoder_outputs = self.encode_multimodal(input_ids, attention_mask, pixel_values, image_features)
        memory = encoder_outputs[0]
        mask = torch.ones(memory.shape[:2], dtype=torch.long)
        if attention_mask is not None:
            mask[:, memory.shape[1] - attention_mask.shape[1] :] = attention_mask
        cache = EncoderDecoderCache(DynamicCache(), DynamicCache()) if past_key_values is None else past_key_values
        if cache.cross_attention_cache.get_seq_length() == 0:
            for layer, states in enumerate(_pairs(self._run("memory_projection", memory=memory))):
                cache.cross_attention_cache.update(*states, layer)
                cache.is_updated[layer] = True
        past, cross = self._past(cache, memory.shape[0]), _states_of(cache.cross_attention_cache)
        logits, *new = self._run(
            "decoder", decoder_input_ids=decoder_input_ids, memory_mask=mask, past=past, cross=cross
        )
        for layer, states in enumerate(_pairs(new)):
            cache.self_attention_cache.update(*states, layer)
        return VLKDSeq2SeqLMOutput(
            logits=logits,
            past_key_values=None if use_cache is False else cache,
            encoder_last_hidden_state=memory,
            image_embeds=getattr(encoder_outputs, "image_embeds", None),
        )

    def _past(self, cache: EncoderDecoderCache, batch: int) -> KeysAndValues:
        if cache.get_seq_length() > 0:
            return _states_of(cache.self_attention_cache)
        text = self.config.text_config
        heads = text.decoder_attention_heads
        return [torch.empty(batch, heads, 0, text.d_model // heads)] * (2 * text.decoder_layers)
