"""How many floating point operations one image with its caption costs, part by part, from the configs alone.

Counted are matrix products, a multiplication and an addition as two: a product of (m, k) and (k, n) is 2 m k n.
Left out is what is linear in the activations and so hundreds of times smaller: normalisation, softmax, GELU, the
embeddings' look-up, dropout, the optimizer; and the losses, whose largest product is batch × projection_dim a row.

The backward pass of Y = X W costs 2 m k n for the gradient of X and as much for that of W, and either only where
something needs it: a frozen W has none, and X has none where all before it is frozen.
"""

from transformers import BartConfig, CLIPTextConfig

from modeling_vlkd import VLKDConfig

DEFAULT_PROMPT = 3  # tokens of `<s><mask></s>`


def linear(rows: int, inputs: int, outputs: int) -> int:
    """A linear map of `rows` vectors: 2 · rows · inputs · outputs."""
    return 2 * rows * inputs * outputs


def attention(queries: int, keys: int, width: int) -> int:
    """Scores Q Kᵀ and the weighted sum of V, over all heads, masked or not: 2 · (2 · queries · keys · width)."""
    return 4 * queries * keys * width


def layer(tokens: int, width: int, hidden: int) -> int:
    """An encoder layer: the maps to Q, K, V and out, attention among the tokens, and the MLP's two maps."""
    return 4 * linear(tokens, width, width) + attention(tokens, tokens, width) + 2 * linear(tokens, width, hidden)


# -------------------------------------------------------------------------------------------------------------- frozen
def num_patches(config: VLKDConfig) -> int:
    """(image_size / patch_size)²."""
    return (config.vision_config.image_size // config.vision_config.patch_size) ** 2


def vision_forward(config: VLKDConfig) -> int:
    """CLIP's vision tower: the patches' convolution, whose stride is its size, the layers over patches and class
    token, and the projection of every token. `patch_attention: self` computes the last layer's values and MLP a second
    time for the patches.
    """
    vision, patches = config.vision_config, num_patches(config)
    width, hidden = vision.hidden_size, vision.intermediate_size
    flops = linear(patches, vision.num_channels * vision.patch_size**2, width)
    flops += vision.num_hidden_layers * layer(patches + 1, width, hidden)
    flops += linear(patches + 1, width, config.projection_dim)
    if config.patch_attention == "self":
        flops += 2 * linear(patches, width, width) + 2 * linear(patches, width, hidden)
    return flops


def teacher_forward(teacher: CLIPTextConfig, tokens: int) -> int:
    """CLIP's text tower: the layers over the caption, and the projection of its last token."""
    flops = teacher.num_hidden_layers * layer(tokens, teacher.hidden_size, teacher.intermediate_size)
    return flops + linear(1, teacher.hidden_size, teacher.projection_dim)


# ------------------------------------------------------------------------------------------------------------- student
def visible_tokens(config: VLKDConfig) -> int:
    """How many of CLIP's tokens W_d maps: all, those of patches, or the class token alone."""
    return {"all": num_patches(config) + 1, "patch": num_patches(config), "pooled": 1}[config.image_tokens]


def projector(config: VLKDConfig) -> list[int]:
    """The layers of W_d, one or two: visible tokens from the joint space to `image_token_expansion` BART states."""
    tokens, width = visible_tokens(config), config.image_token_expansion * config.text_config.d_model
    if config.image_projector == "linear":
        return [linear(tokens, config.projection_dim, width)]
    hidden = config.image_projector_hidden_size
    return [linear(tokens, config.projection_dim, hidden), linear(tokens, hidden, width)]


def encoder_forward(bart: BartConfig, tokens: int) -> int:
    """BART's encoder."""
    return bart.encoder_layers * layer(tokens, bart.d_model, bart.encoder_ffn_dim)


def decoder_forward(bart: BartConfig, targets: int, memory: int) -> int:
    """BART's decoder and head: in each layer an encoder layer's work on the targets, cross-attention's maps of the
    targets (Q, out) and of the memory (K, V), and its attention; then the vocabulary's scores of every target.
    """
    width = bart.d_model
    cross = 2 * linear(targets, width, width) + 2 * linear(memory, width, width) + attention(targets, memory, width)
    layers = bart.decoder_layers * (layer(targets, width, bart.decoder_ffn_dim) + cross)
    return layers + _head(bart, targets)


def decoder_backward(bart: BartConfig, targets: int, memory: int, freeze: str) -> int:
    """Twice the forward pass where the decoder learns.

    Frozen, it still hands the gradient down to the memory: every linear map once, both factors of attention's
    products. The first layer's self-attention and queries see frozen embeddings alone and have no gradient, so that of
    its cross-attention's scores only the keys' remains.
    """
    forward = decoder_forward(bart, targets, memory)
    if freeze == "none":
        return 2 * forward
    width = bart.d_model
    both = attention(targets, targets, width) + attention(targets, memory, width)
    without_gradient = (
        5 * linear(targets, width, width)
        + 2 * attention(targets, targets, width)
        + attention(targets, memory, width) // 2
    )
    return forward + bart.decoder_layers * both - without_gradient


def student_forward(config: VLKDConfig, prompt_tokens: int, caption_tokens: int) -> int:
    """One call of the model in training: W_d, the encoder on the corrupted caption (the prompt), the decoder on the
    whole caption with [image tokens ; prompt] as its memory, the encoder on the whole caption, and W_e of one state.
    """
    bart = config.text_config
    memory = visible_tokens(config) * config.image_token_expansion + prompt_tokens
    return (
        sum(projector(config))
        + encoder_forward(bart, prompt_tokens)
        + decoder_forward(bart, caption_tokens, memory)
        + encoder_forward(bart, caption_tokens)
        + linear(1, bart.d_model, config.projection_dim)
    )


def student_backward(
    config: VLKDConfig,
    prompt_tokens: int,
    caption_tokens: int,
    freeze: str = "none",
    infilling: bool = True,
    alignment: bool = True,
) -> int:
    """The backward pass of `student_forward`. CLIP has none, and its tokens need no gradient: of W_d's first layer
    there is the weight's alone.

    Args:
        config: of the model.
        prompt_tokens, caption_tokens: of the corrupted and of the whole caption.
        freeze: "none", "decoder" or "all", as `freeze_language_model` takes it.
        infilling: whether ICTI has a weight; without, decoder, prompt and W_d have no gradient.
        alignment: whether TTDM or ITCL has one; without, neither have the whole caption and W_e.
    """
    bart, flops = config.text_config, 0
    memory = visible_tokens(config) * config.image_token_expansion + prompt_tokens
    encoders = 0 if freeze == "all" else 2  # gradients of inputs and of weights
    if infilling:
        first, *second = projector(config)
        flops += first + 2 * sum(second) + decoder_backward(bart, caption_tokens, memory, freeze)
        flops += encoders * encoder_forward(bart, prompt_tokens)
    if alignment:
        flops += encoders * encoder_forward(bart, caption_tokens)
        flops += max(1, encoders) * linear(1, bart.d_model, config.projection_dim)
    return flops


def checkpointing_forward(config: VLKDConfig, prompt_tokens: int, caption_tokens: int) -> int:
    """What gradient checkpointing computes a second time: every layer of BART, neither maps nor head."""
    bart = config.text_config
    memory = visible_tokens(config) * config.image_token_expansion + prompt_tokens
    decoder = decoder_forward(bart, caption_tokens, memory) - _head(bart, caption_tokens)
    return encoder_forward(bart, prompt_tokens) + decoder + encoder_forward(bart, caption_tokens)


def chunking_forward(config: VLKDConfig, caption_tokens: int) -> int:
    """What `contrastive_chunk_size` computes a second time: the sentence embedding."""
    bart = config.text_config
    return encoder_forward(bart, caption_tokens) + linear(1, bart.d_model, config.projection_dim)


def reading_forward(config: VLKDConfig, caption_tokens: int) -> int:
    """What ITDD adds to the student: the encoder on the default prompt, and the decoder, without its head, at [image
    tokens ; default prompt].
    """
    bart, states = config.text_config, visible_tokens(config) * config.image_token_expansion + DEFAULT_PROMPT
    decoder = decoder_forward(bart, caption_tokens, states) - _head(bart, caption_tokens)
    return encoder_forward(bart, DEFAULT_PROMPT) + decoder


def reader_forward(bart: BartConfig, text_tokens: int, caption_tokens: int) -> int:
    """ITDD's teacher, which has no backward: BART as it was, without its head, on a caption and at it."""
    decoder = decoder_forward(bart, caption_tokens, text_tokens) - _head(bart, caption_tokens)
    return encoder_forward(bart, text_tokens) + decoder


def reading_backward(config: VLKDConfig, caption_tokens: int, freeze: str) -> int:
    """The backward pass of `reading_forward`, which joins ICTI's at W_d."""
    bart, states = config.text_config, visible_tokens(config) * config.image_token_expansion + DEFAULT_PROMPT
    heads = (2 if freeze == "none" else 1) * _head(bart, caption_tokens)
    encoder = 0 if freeze == "all" else 2 * encoder_forward(bart, DEFAULT_PROMPT)
    return decoder_backward(bart, caption_tokens, states, freeze) - heads + encoder


def _head(bart: BartConfig, tokens: int) -> int:
    return linear(tokens, bart.d_model, bart.vocab_size)
