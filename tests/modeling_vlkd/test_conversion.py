"""Two checkpoints, or a config, become one model: the maps, what cannot be joined, and the two full sizes."""

import pytest
import torch
from transformers import AutoTokenizer, BartConfig, CLIPVisionConfig

from modeling_vlkd import VLKDConfig, VLKDForConditionalGeneration


def build(**options) -> VLKDForConditionalGeneration:
    """A tiny model from a config alone."""
    text = {"d_model": 16, "encoder_layers": 1, "decoder_layers": 1, "encoder_ffn_dim": 16, "decoder_ffn_dim": 16}
    text |= {"encoder_attention_heads": 2, "decoder_attention_heads": 2, "vocab_size": 50}
    vision = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision |= {"image_size": 8, "patch_size": 4}
    return VLKDForConditionalGeneration(VLKDConfig(vision_config=vision, text_config=text, **options)).eval()


# the two maps


@pytest.mark.parametrize("projector", ["linear", "mlp"])
def test_maps_start_orthogonal_and_inverse(clip_dir, bart_dir, projector):
    state = torch.get_rng_state()
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, image_projector=projector)
    w_e = model.text_projection.weight  # (24, 32)
    torch.testing.assert_close(w_e @ w_e.T, torch.eye(24), rtol=0, atol=1e-5)
    joint = torch.randn(5, 24)
    torch.testing.assert_close(model.image_projection(joint), joint @ torch.linalg.pinv(w_e).T, rtol=0, atol=1e-5)
    torch.testing.assert_close(model.image_projection(joint) @ w_e.T, joint, rtol=0, atol=1e-5)
    again = VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, image_projector=projector)
    assert torch.equal(again.text_projection.weight, w_e)
    other = VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, seed=1)
    assert not torch.equal(other.text_projection.weight, w_e)
    torch.set_rng_state(state)


def test_building_leaves_the_global_generator_alone(clip_dir, bart_dir):
    state = torch.get_rng_state()
    VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir)
    assert torch.equal(torch.get_rng_state(), state)


def test_random_start_has_the_scale_of_the_joint_space(clip_dir, bart_dir):
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(
        clip_dir, bart_dir, image_projector="linear", projector_init="random"
    )
    w_e, w_d = model.text_projection.weight, model.image_projection.weight
    torch.testing.assert_close(w_e @ w_e.T, torch.eye(24), rtol=0, atol=1e-5)
    assert (w_d - torch.linalg.pinv(w_e)).abs().max() > 0.1
    assert w_d.std().item() == pytest.approx(24**-0.5, rel=0.1)


@pytest.mark.parametrize(("kind", "tokens"), [("all", slice(0, 17)), ("patch", slice(1, 17)), ("pooled", slice(0, 1))])
def test_image_tokens_choose_what_the_decoder_sees(clip_dir, bart_dir, batch, kind, tokens):
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(
        clip_dir, bart_dir, image_tokens=kind, image_projector="linear"
    )
    features = model.get_image_features(batch["pixel_values"])
    output = model(**batch, labels=batch["input_ids"])
    seen = features.last_hidden_state[:, tokens] @ model.image_projection.weight.T
    torch.testing.assert_close(output.encoder_last_hidden_state[:, : seen.shape[1]], seen, rtol=0, atol=1e-5)
    assert output.encoder_last_hidden_state.shape[1] == seen.shape[1] + batch["input_ids"].shape[1]
    assert torch.equal(output.image_embeds, features.pooler_output)
    assert model.generate(**batch, max_new_tokens=3).shape[0] == 4


@pytest.mark.parametrize(("projection_dim", "width"), [(8, 16), (32, 16)])
def test_joint_space_may_be_narrower_or_wider_than_bart(projection_dim, width):
    model = build(projection_dim=projection_dim)
    assert model.text_projection.weight.shape == (projection_dim, width)
    output = model(input_ids=torch.tensor([[0, 49, 2]]), pixel_values=torch.rand(1, 3, 8, 8))
    assert output.image_embeds.shape == (1, projection_dim)
    assert output.encoder_last_hidden_state.shape == (1, 5 + 3, width)


def test_names_of_the_mlp_are_found():
    model = build(projection_dim=8, image_projector="mlp")
    layers = {f"image_projection.{layer}.{kind}" for layer in (0, 2) for kind in ("weight", "bias")}
    assert model.projection_parameter_names() == layers | {"text_projection.weight"}
    assert model.image_projection[0].out_features == 32


# wrong checkpoints


@pytest.mark.parametrize(
    ("pair", "message"),
    [
        (("bart", "bart"), "`clip`=.* is of type 'bart'; give a clip"),
        (("clip", "clip"), "`bart`=.* is of type 'clip'; give a bart"),
        (("empty", "bart"), "`clip`=.* is not a readable checkpoint"),
        (("clip", "empty"), "`bart`=.* is not a readable checkpoint"),
        (("clip", "weightless"), "`bart`=.* has no complete weights of a BartFor.*no file named"),
    ],
)
def test_wrong_checkpoints_are_value_errors(clip_dir, bart_dir, tmp_path, pair, message):
    (tmp_path / "empty").mkdir()
    BartConfig.from_pretrained(bart_dir).save_pretrained(tmp_path / "weightless")
    AutoTokenizer.from_pretrained(bart_dir).save_pretrained(tmp_path / "weightless")
    folders = {name: str(tmp_path / name) for name in ("empty", "weightless")} | {"clip": clip_dir, "bart": bart_dir}
    with pytest.raises(ValueError, match=message):
        VLKDForConditionalGeneration.from_vision_text_pretrained(*(folders[name] for name in pair))


def test_unknown_options_are_value_errors(clip_dir, bart_dir):
    for option in ("image_tokens", "image_projector", "projector_init"):
        with pytest.raises(ValueError, match=f"`{option}`='other' is unknown; choose one of"):
            VLKDForConditionalGeneration.from_vision_text_pretrained(clip_dir, bart_dir, **{option: "other"})
    with pytest.raises(ValueError, match="`mask_token_id`=50264 is outside the vocabulary of 50264"):
        VLKDConfig(text_config=BartConfig(vocab_size=50264), mask_token_id=50264)
    with pytest.raises(ValueError, match="must contain `mask_token_id`=50264"):
        VLKDConfig(default_prompt_ids=[0, 2])


# the two sizes

VIT_B16 = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
VIT_L14 = {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16}
BART_BASE = {
    "d_model": 768,
    "encoder_ffn_dim": 3072,
    "decoder_ffn_dim": 3072,
    "encoder_layers": 6,
    "decoder_layers": 6,
}
BART_BASE |= {"encoder_attention_heads": 12, "decoder_attention_heads": 12}


def full_size(name: str) -> VLKDConfig:
    vision = {"B/16": CLIPVisionConfig(**VIT_B16, patch_size=16), "L/14": CLIPVisionConfig(**VIT_L14, patch_size=14)}
    clip, bart = name.split("+")
    text = BartConfig() if bart == "large" else BartConfig(**BART_BASE)
    return VLKDConfig(vision_config=vision[clip], text_config=text, projection_dim={"B/16": 512, "L/14": 768}[clip])


@pytest.mark.parametrize(("name", "millions"), [("B/16+large", 407.34), ("L/14+large", 407.86), ("B/16+base", 140.2)])
def test_parameters_that_learn_are_the_papers(name, millions):
    config = full_size(name)
    config.image_projector = "linear"
    with torch.device("meta"):
        model = VLKDForConditionalGeneration(config)
    learning = sum(p.numel() for p in model.parameters() if p.requires_grad)
    assert learning / 1e6 == pytest.approx(millions, abs=0.05)
    bart = sum(p.numel() for p in model.language_model.parameters())
    assert learning - bart == 2 * config.projection_dim * config.text_config.d_model


@pytest.mark.slow
@pytest.mark.parametrize("name", ["B/16+base", "L/14+large"])
def test_full_size_runs(name):
    model = VLKDForConditionalGeneration(full_size(name)).eval()
    pixels, ids = torch.rand(1, 3, 224, 224), torch.tensor([[0, 250, 50264, 2]])
    with torch.no_grad():
        output = model(input_ids=ids, pixel_values=pixels, labels=ids)
    assert torch.isfinite(output.loss)
    tokens = 1 + (224 // model.config.vision_config.patch_size) ** 2
    assert output.encoder_last_hidden_state.shape == (1, tokens + 4, model.config.text_config.d_model)
    written = model.generate(input_ids=ids, pixel_values=pixels, max_new_tokens=3, min_new_tokens=3)
    assert written[:, :3].tolist() == [[2, 0, 250]] and written.shape == (1, 6)
