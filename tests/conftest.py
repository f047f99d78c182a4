"""Tiny random CLIP and BART checkpoints, built offline, once for all tests."""

import gc
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from PIL import Image
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    BatchFeature,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)
from web_server import WebServer

from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor

CORPUS = [
    "a photo of a red circle and a blue square. the green triangle is left of it!",
    "Question: what color is the circle? Answer: red. Question: how many squares are there? Answer: two.",
    "two dogs on the grass, one cat under the table, a very long caption about nothing at all",
] * 3
PROMPTS = ["a photo of", "<mask>", "Question: what color is the circle? Answer: <mask>", "two dogs <mask> the grass"]


def pytest_collection_finish() -> None:
    """accelerate collects garbage after every training run: not among a million objects of imported modules."""
    gc.collect()
    gc.freeze()


def build_bart_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with BART's ids and its <mask>, which takes the space before it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=420, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(CORPUS, trainer)
    tokenizer.post_processor = processors.RobertaProcessing(("</s>", 2), ("<s>", 0), add_prefix_space=False)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<s>",
        cls_token="<s>",
        eos_token="</s>",
        sep_token="</s>",
        pad_token="<pad>",
        unk_token="<unk>",
        mask_token=AddedToken("<mask>", lstrip=True, special=True),
        model_max_length=64,
        model_input_names=["input_ids", "attention_mask"],
    )


@pytest.fixture(scope="session")
def bart_dir(tmp_path_factory) -> str:
    """A BART checkpoint with its tokenizer; large weights, so that what it writes depends on what it reads."""
    folder = str(tmp_path_factory.mktemp("bart"))
    tokenizer = build_bart_tokenizer()
    torch.manual_seed(0)
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=2,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=64,
        init_std=0.15,
    )
    model = BartForConditionalGeneration(config)
    model.final_logits_bias.normal_()
    model.generation_config.forced_bos_token_id = 0
    model.generation_config.no_repeat_ngram_size = 3
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def clip_dir(tmp_path_factory) -> str:
    """A CLIP checkpoint with its image processor and tokenizer: 16 patches, joint space of 24 dimensions."""
    folder = str(tmp_path_factory.mktemp("clip"))
    letters = "abcdefghijklmnopqrstuvwxyz"
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    tokenizer = CLIPTokenizer(vocab={word: number for number, word in enumerate(words)}, merges=[])
    torch.manual_seed(1)
    tower = {"num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64, "hidden_size": 32}
    config = CLIPConfig(
        text_config={
            **tower,
            "vocab_size": len(tokenizer),
            "max_position_embeddings": 32,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={**tower, "image_size": 32, "patch_size": 8},
        projection_dim=24,
        initializer_factor=5.0,
    )
    CLIPModel(config).save_pretrained(folder)
    size = {"height": 32, "width": 32}
    CLIPImageProcessor(size={"shortest_edge": 32}, crop_size=size).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def processor(clip_dir, bart_dir) -> VLKDProcessor:
    return VLKDProcessor.from_vision_text_pretrained(clip_dir, bart_dir)


@pytest.fixture(scope="session")
def model(clip_dir, bart_dir) -> VLKDForConditionalGeneration:
    """The tiny VLKD, with the paper's linear W_d. Shared by all tests: one that changes it takes a copy."""
    return VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, image_projector="linear")


@pytest.fixture(scope="session")
def vlkd_dir(model, processor, tmp_path_factory) -> str:
    """The tiny VLKD as a folder, with its code. One that changes it takes a copy."""
    folder = str(tmp_path_factory.mktemp("tiny-vlkd"))
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def micro_dir(tmp_path_factory) -> str:
    """The microworld's teachers, joined and untrained, as a folder: it reads longer prompts than the tiny one."""
    folder = str(tmp_path_factory.mktemp("micro-vlkd"))
    teachers = [str(Path(__file__).parents[1] / "microworld" / "teachers" / name) for name in ("clip", "bart")]
    VLKDForConditionalGeneration.from_vision_text_pretrained(*teachers).save_pretrained(folder)
    VLKDProcessor.from_vision_text_pretrained(*teachers).save_pretrained(folder)
    return folder


@pytest.fixture(scope="session")
def images() -> list[Image.Image]:
    """Four images of noise, each different."""
    generator = torch.Generator().manual_seed(2)
    pixels = torch.randint(0, 256, (4, 40, 48, 3), generator=generator, dtype=torch.uint8)
    return [Image.fromarray(image.numpy()) for image in pixels]


@pytest.fixture(scope="session")
def image(images) -> Image.Image:
    return images[0]


@pytest.fixture(scope="session")
def batch(processor, images) -> BatchFeature:
    """The four images with four prompts of different lengths, as the processor hands them to the model."""
    return processor(images=images, text=PROMPTS)


@pytest.fixture
def web(monkeypatch) -> Iterator[WebServer]:
    """A web server on loopback, reached past any proxy."""
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    with WebServer() as server:
        yield server
