"""Fills the model card template `model_card.md` from a model's config."""

import json
from pathlib import Path
from string import Template

from .configuration_vlkd import VLKDConfig

TEMPLATE = Path(__file__).with_name("model_card.md")  # transformers does not download it with remote code
MARK = "<!-- Generated. To keep your edits, delete this line; otherwise the next push overwrites the card. -->"
TRANSFORMERS_CARD = "This model card has been automatically generated."

NO_RECIPE = "Not recorded: the model's folder had no `train.yaml` when this card was written."
NO_RESULTS = "No results: these weights had not been evaluated when this card was written."
IMAGE_TOKENS = {
    "all": "all tokens of CLIP, class token first",
    "patch": "CLIP's patch tokens",
    "pooled": "CLIP's class token only",
}


def model_card(
    config: VLKDConfig,
    repo_id: str,
    base_models: list[str] | None = None,
    recipe: str = NO_RECIPE,
    evaluation: str = NO_RESULTS,
) -> str:
    """
    Returns the text of a model card (README.md).

    Args:
        config: Config of the model.
        repo_id: Repository on the Hub: "user/name".
        base_models: Hub names of the CLIP and BART checkpoints.
        recipe: Markdown of the section "Training recipe".
        evaluation: Markdown of the section "Evaluation".
    """
    links = [f"[{name}](https://huggingface.co/{name})" for name in base_models or []]
    return Template(TEMPLATE.read_text(encoding="utf-8")).substitute(
        name=repo_id.split("/")[-1],
        repo_id=repo_id,
        mark=MARK,
        base_model=f"base_model: {json.dumps(base_models)}" if base_models else "",
        made_of=" and ".join(links) if links else "a CLIP and a BART from local folders",
        image_tokens=IMAGE_TOKENS[config.image_tokens],
        image_projector=config.image_projector,
        projection_dim=config.projection_dim,
        d_model=config.text_config.d_model,
        max_position_embeddings=config.text_config.max_position_embeddings,
        image_size=config.vision_config.image_size,
        recipe=recipe,
        evaluation=evaluation,
    )
