"""Tiny random CLIP and BART checkpoints, built offline."""

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTokenizer,
    PreTrainedTokenizerFast,
)

CORPUS = [
    "a photo of a red circle and a blue square. the green triangle is left of it!",
    "Question: what color is the circle? Answer: red. Question: how many squares are there? Answer: two.",
    "two dogs on the grass, one cat under the table, a very long caption about nothing at all",
] * 3


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


def write_bart(folder: str) -> None:
    """A BART checkpoint with its tokenizer; large weights, so that what it writes depends on what it reads."""
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


def write_clip(folder: str) -> None:
    """A CLIP checkpoint with its image processor and tokenizer: 16 patches, joint space of 24 dimensions."""
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
