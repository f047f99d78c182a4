"""What `use_peft` changes in flops.py: BART's weights have no gradient, and its queries and values get two
small products beside them.
"""

from transformers import BartConfig

from modeling_vlkd import VLKDConfig
from trainer.cost.flops import attention, linear, projector, visible_tokens


def lora_forward(config: VLKDConfig, prompt_tokens: int, caption_tokens: int, rank: int) -> int:
    """What the adapters add to `student_forward`."""
    bart, memory = config.text_config, _memory(config, prompt_tokens)
    encoder = sum(2 * bart.encoder_layers * _adapter(bart, tokens, rank) for tokens in (prompt_tokens, caption_tokens))
    decoder = 3 * _adapter(bart, caption_tokens, rank) + _adapter(bart, memory, rank)  # Q, V; Q of it, V of the memory
    return encoder + bart.decoder_layers * decoder


def lora_backward(
    config: VLKDConfig,
    prompt_tokens: int,
    caption_tokens: int,
    rank: int,
    infilling: bool = True,
    alignment: bool = True,
) -> int:
    """As `student_backward`, with an adapter."""
    bart, memory, flops = config.text_config, _memory(config, prompt_tokens), 0
    if infilling:
        first, *second = projector(config)
        flops += first + 2 * sum(second)
        flops += _encoder_backward(bart, prompt_tokens, rank) + _decoder_backward(bart, caption_tokens, memory, rank)
    if alignment:
        flops += _encoder_backward(bart, caption_tokens, rank) + 2 * linear(1, bart.d_model, config.projection_dim)
    return flops


def _memory(config: VLKDConfig, prompt_tokens: int) -> int:
    return visible_tokens(config) * config.image_token_expansion + prompt_tokens


def _adapter(bart: BartConfig, tokens: int, rank: int) -> int:
    return linear(tokens, bart.d_model, rank) + linear(tokens, rank, bart.d_model)


def _self_attention_backward(bart: BartConfig, tokens: int, layers: int, rank: int) -> int:
    """Of all layers: each map hands its gradient down, and an adapter learns besides.

    The first layer sees frozen embeddings, so that nothing goes further down than its adapters' own weights: none from
    Q, K and V, none to K, and none from the adapters' first products.
    """
    width = bart.d_model
    one = 4 * linear(tokens, width, width) + 2 * attention(tokens, tokens, width) + 4 * _adapter(bart, tokens, rank)
    spared = 3 * linear(tokens, width, width) + attention(tokens, tokens, width) // 2 + 2 * linear(tokens, width, rank)
    return layers * one - spared


def _encoder_backward(bart: BartConfig, tokens: int, rank: int) -> int:
    mlp = 2 * bart.encoder_layers * linear(tokens, bart.d_model, bart.encoder_ffn_dim)
    return mlp + _self_attention_backward(bart, tokens, bart.encoder_layers, rank)


def _decoder_backward(bart: BartConfig, targets: int, memory: int, rank: int) -> int:
    width = bart.d_model
    cross = 2 * linear(targets, width, width) + 2 * linear(memory, width, width)
    cross += 2 * attention(targets, memory, width)
    cross += 2 * (_adapter(bart, targets, rank) + _adapter(bart, memory, rank))
    mlp = 2 * linear(targets, width, bart.decoder_ffn_dim)
    attentions = _self_attention_backward(bart, targets, bart.decoder_layers, rank) + bart.decoder_layers * cross
    return attentions + bart.decoder_layers * mlp + linear(targets, width, bart.vocab_size)
