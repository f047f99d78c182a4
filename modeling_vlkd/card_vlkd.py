"""The model card: `model_card.md`, filled with what a model's config tells."""

import json
from pathlib import Path
from string import Template

from transformers.utils import PushToHubMixin

from .configuration_vlkd import VLKDConfig

TEMPLATE = Path(__file__).with_name("model_card.md")  # transformers does not fetch it beside remote code
MARK = "<!-- Made from a template and the run's files. Delete this line when you edit: the card is then kept. -->"
TRANSFORMERS_CARD = "This model card has been automatically generated."

NO_RECIPE = "Not recorded: there was no `train.yaml` beside the weights when this card was made."
NO_FIGURES = "No figures: nothing was measured on these weights when this card was made."
IMAGE_TOKENS = {
    "all": "every token of CLIP, class token first",
    "patch": "CLIP's patch tokens",
    "pooled": "CLIP's class token alone",
}


def model_card(
    config: VLKDConfig,
    repo_id: str,
    base_models: list[str] | None = None,
    recipe: str = NO_RECIPE,
    evaluation: str = NO_FIGURES,
) -> str:
    """
    The text of a README.md.

    Args:
        config: of the model.
        repo_id: where the model will lie: "user/name".
        base_models: Hub names of the CLIP and the BART it was made of, where known.
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


class CardMixin(PushToHubMixin):
    """`push_to_hub` with our card, where the repository has none but the one transformers writes unasked."""

    def _upload_modified_files(self, working_dir: str, repo_id: str, *args, **kwargs):
        card = Path(working_dir, "README.md")
        if TEMPLATE.is_file() and TRANSFORMERS_CARD in card.read_text(encoding="utf-8"):
            card.write_text(model_card(self.config, repo_id, self.config.base_models), encoding="utf-8")
        return super()._upload_modified_files(working_dir, repo_id, *args, **kwargs)
