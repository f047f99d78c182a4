"""Captioning beside other small models: milliseconds for one image, and images per second in batches.

    python benchmarks/captioning.py
    python benchmarks/captioning.py --device cuda --dtype bfloat16 --batches 1 64

Each model has the sizes of its public checkpoint and random weights, and writes 20 tokens greedily. The rounds of all
models are interleaved, and the medians are compared, so that other load on the machine hits all of them.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from typing import Any

import torch
from measure import ROOT, parser, report
from transformers import (
    BartForConditionalGeneration,
    BlipConfig,
    BlipForConditionalGeneration,
    CLIPVisionModel,
    Florence2Config,
    Florence2ForConditionalGeneration,
    GenerationConfig,
    GitConfig,
    GitForCausalLM,
    GPT2Config,
    PreTrainedModel,
    VisionEncoderDecoderConfig,
    VisionEncoderDecoderModel,
    ViTConfig,
)
from transformers.modeling_outputs import BaseModelOutput

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration

TOKENS = 20
BASELINE = "GIT-base"
B16, L14 = "vlkd-vit-base-patch16-bart-base", "vlkd-vit-large-patch14-bart-large"
Captioner = tuple[PreTrainedModel, Callable[[torch.Tensor], Any]]  # the model, and a function of pixel values


def vlkd(name: str) -> Captioner:
    model = VLKDForConditionalGeneration(VLKDConfig.from_pretrained(ROOT / "hub_configs" / name))
    return model, lambda pixels: model.generate(pixel_values=pixels)


def composed_by_hand() -> Captioner:
    """CLIP's vision tower and BART without this package: the image tokens are the encoder's output."""
    config = VLKDConfig.from_pretrained(ROOT / "hub_configs" / B16)
    vision, bart = CLIPVisionModel(config.vision_config), BartForConditionalGeneration(config.text_config)
    bart.vision = vision  # so that both are moved to the device

    def generate(pixels: torch.Tensor) -> torch.Tensor:
        memory = BaseModelOutput(last_hidden_state=vision(pixel_values=pixels).last_hidden_state)
        start = torch.full((len(pixels), 2), config.text_config.decoder_start_token_id, device=pixels.device)
        return bart.generate(encoder_outputs=memory, decoder_input_ids=start)

    return bart, generate


def onnx(name: str, precision: str) -> Captioner:
    from trainer.inference.export import VLKDExportedModel, export_model  # needs the extra "onnx"

    model, _ = vlkd(name)
    folder = tempfile.mkdtemp()  # ONNX Runtime reads the weights from there
    export_model(model, precision).save_pretrained(folder)
    exported = VLKDExportedModel.from_pretrained(folder)
    return exported, lambda pixels: exported.generate(pixel_values=pixels)


def git_base() -> Captioner:
    model = GitForCausalLM(GitConfig())
    start = torch.tensor([[101]])
    return model, lambda pixels: model.generate(
        pixel_values=pixels, input_ids=start.to(pixels.device).repeat(len(pixels), 1)
    )


def blip_base() -> Captioner:
    model = BlipForConditionalGeneration(BlipConfig())
    tokens = {"max_new_tokens": TOKENS, "min_new_tokens": TOKENS}  # its `generate` ignores the generation config
    return model, lambda pixels: model.generate(pixel_values=pixels, **tokens)


def vit_gpt2() -> Captioner:
    config = VisionEncoderDecoderConfig.from_encoder_decoder_configs(ViTConfig(), GPT2Config())
    config.decoder_start_token_id = config.pad_token_id = 50256
    model = VisionEncoderDecoderModel(config)
    return model, lambda pixels: model.generate(pixel_values=pixels)


def florence2_base() -> Captioner:
    text = {"d_model": 768, "encoder_layers": 6, "decoder_layers": 6, "vocab_size": 51289}
    text |= {f"{part}_attention_heads": 12 for part in ("encoder", "decoder")}
    text |= {f"{part}_ffn_dim": 3072 for part in ("encoder", "decoder")}
    config = Florence2Config(
        text_config={"model_type": "bart", **text}, vision_config={"projection_dim": 768}, image_token_id=51288
    )
    model = Florence2ForConditionalGeneration(config)

    def generate(pixels: torch.Tensor) -> torch.Tensor:
        prompt = [51288] * 577 + [0, 2264, 473, 5, 2274, 6190, 116, 2]  # "What does the image describe?"
        ids = torch.tensor([prompt], device=pixels.device).repeat(len(pixels), 1)
        return model.generate(pixel_values=pixels, input_ids=ids)

    return model, generate


# Name in the table -> the function that builds the model, and the side of its images.
MODELS: dict[str, tuple[Callable[[], Captioner], int]] = {
    "VLKD ViT-B/16 + BART-base": (lambda: vlkd(B16), 224),
    "the same, ONNX Runtime": (lambda: onnx(B16, "fp32"), 224),
    "the same, ONNX Runtime, int8": (lambda: onnx(B16, "int8"), 224),
    "CLIP and BART composed by hand": (composed_by_hand, 224),
    BASELINE: (git_base, 224),
    "ViT-B/16 + GPT-2": (vit_gpt2, 224),
    "BLIP-base": (blip_base, 384),
    "Florence-2-base": (florence2_base, 768),
    "VLKD ViT-L/14 + BART-large": (lambda: vlkd(L14), 224),
}


@torch.inference_mode()
def seconds(captioner: Captioner, side: int, batch: int, args: argparse.Namespace) -> float:
    """The time in which a batch is captioned."""
    pixels = torch.randn(batch, 3, side, side, device=captioner[0].device, dtype=captioner[0].dtype)
    start = time.perf_counter()
    captioner[1](pixels)
    if args.device == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start


def build(name: str, args: argparse.Namespace) -> Captioner:
    """The model on the device, set to write exactly `TOKENS` tokens."""
    torch.manual_seed(0)
    model, generate = MODELS[name][0]()
    if not hasattr(model, "exported"):
        model.to(args.device, getattr(torch, args.dtype)).eval()
    known = model.generation_config.to_dict()
    ids = {key: known[key] for key in known if key.endswith("_token_id")}
    model.generation_config = GenerationConfig(
        **ids, do_sample=False, num_beams=1, max_new_tokens=TOKENS, min_new_tokens=TOKENS
    )
    return model, generate


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--models", nargs="+", choices=MODELS, metavar="MODEL", default=list(MODELS))
    options.add_argument("--batches", type=int, nargs="+", default=[1, 8], help="images in a batch")
    options.add_argument("--rounds", type=int, default=5, help="measured rounds; one more warms up")
    options.add_argument("--device", choices=("cpu", "cuda"), default="cpu")
    options.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32")
    options.add_argument("--name", default="captioning", help="name of the marks in the file of --into")
    args = options.parse_args()
    names = [name for name in args.models if args.device == "cpu" or "ONNX" not in name]
    captioners = {name: build(name, args) for name in names}
    rows = [{"model": name, "parameters, million": parameters(*captioners[name])} for name in names]
    for batch in args.batches:
        times: dict[str, list[float]] = {name: [] for name in names}
        for _ in range(args.rounds + 1):
            for name in names:
                times[name].append(seconds(captioners[name], MODELS[name][1], batch, args))
        medians = {name: statistics.median(found[1:]) for name, found in times.items()}
        for row in rows:
            median = medians[row["model"]]
            row[f"images/s, batch {batch}"] = batch / median
            if batch == 1:
                row["ms, batch 1"] = 1000 * median
            if BASELINE in medians:
                row[f"times {BASELINE}, batch {batch}"] = medians[BASELINE] / median
    report(args.name, rows, args.into)


def parameters(model: PreTrainedModel, generate: Callable) -> int | None:
    return round(model.num_parameters() / 1e6) or None


if __name__ == "__main__":
    main()
