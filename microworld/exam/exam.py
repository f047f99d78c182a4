"""The microworld's examination: what is asked of a model, how it is judged, and the figures that come out.

Everything is drawn from a split and a seed. Nothing here trains anything.
"""

import random
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import islice

import torch
from PIL import Image
from transformers import CLIPModel, CLIPProcessor, PreTrainedModel

from microworld.world.caption_reader import caption_is_true
from microworld.world.language import NEVER_TWO_STEP, QUESTION_TYPES, Question, caption, question
from microworld.world.rendering import render
from microworld.world.scenes import UNSEEN_PAIRS, Scene, scenes
from modeling_vlkd.processing_vlkd import VQA_PROMPT
from trainer.evaluation.generation import complete, encode_images
from trainer.evaluation.intervals import Proportion, proportion
from trainer.evaluation.metrics.ranks import retrieval_ranks

TEXT_QA_PROMPT = f"{{passage}}. {VQA_PROMPT}"


@dataclass
class Exam:
    """Scenes of one split with their images, and questions as (row of the scene, question)."""

    scenes: list[Scene]
    images: list[Image.Image]
    captions: list[str]  # one that says all there is to say
    questions: list[tuple[int, Question]]
    features: torch.Tensor | None = field(default=None, repr=False)  # V of every image, set by `encode`

    def encode(self, model: PreTrainedModel, processor) -> None:
        """CLIP is frozen: one encoding serves every model that was made from it."""
        self.features = encode_images(model, processor, self.images)


def draw_exam(split: str, num_scenes: int, kinds: tuple[str, ...] = QUESTION_TYPES, seed: int = 0) -> Exam:
    """One question of every kind that each scene allows.

    On the split "unseen" the questions are about the group whose colour and shape no training image joins, and leave
    the background out.
    """
    rng = random.Random(f"exam {split} {seed}")
    drawn = list(islice(distinct(scenes(split, seed=1_000_000 + seed)), num_scenes))
    asked = []
    for row, scene in enumerate(drawn):
        unseen = next((g for g in scene.groups if (g.shape, g.color) in UNSEEN_PAIRS), None)
        for kind in kinds:
            if (unseen and kind == "background") or (found := question(scene, kind, rng, unseen)) is None:
                continue
            asked.append((row, found))
    return Exam(drawn, [render(s, rng) for s in drawn], [caption(s, rng, full=True) for s in drawn], asked)


def distinct(stream: Iterator[Scene], pool: int = 100) -> Iterator[Scene]:
    """The stream without scenes that are the same to a reader as one before it in its pool.

    Retrieval among the scenes of a pool has one right answer then.
    """
    while True:
        keys: set[str] = set()
        while len(keys) < pool:
            scene = next(stream)
            if scene.key() not in keys:
                keys.add(scene.key())
                yield scene


def answers(
    model: PreTrainedModel, tokenizer, exam: Exam, image_rows: list[int] | None = None, blind: bool = False
) -> list[str]:
    """The model's answer to each question of the exam.

    Args:
        image_rows: the image shown with each scene's questions, if not its own (the control with shuffled images).
        blind: show no image.
    """
    rows = [image_rows[row] if image_rows else row for row, _ in exam.questions]
    prompts = [VQA_PROMPT.format(question=q.question) for _, q in exam.questions]
    features = None if blind else exam.features[rows]
    return [
        first_sentence(text) for text in complete(model, tokenizer, prompts, features, max_new_tokens=10, desc="VQA")
    ]


def text_answers(model: PreTrainedModel, tokenizer, exam: Exam) -> list[str]:
    """The same questions asked of the caption, as plain text."""
    prompts = [TEXT_QA_PROMPT.format(passage=exam.captions[row], question=q.question) for row, q in exam.questions]
    return [first_sentence(text) for text in complete(model, tokenizer, prompts, max_new_tokens=10, desc="text QA")]


def first_sentence(text: str) -> str:
    return text.split(".")[0].strip()


def shuffled(exam: Exam, seed: int = 0) -> list[int]:
    """A permutation of the images under which no scene keeps its own."""
    order = list(range(len(exam.scenes)))
    random.Random(seed).shuffle(order)
    following = dict(zip(order, order[1:] + order[:1], strict=True))
    return [following[row] for row in range(len(order))]


def majority_answers(exam: Exam, reference: Exam) -> list[str]:
    """For every question the most frequent answer that the reference exam has to its type."""
    counts = defaultdict(Counter)
    for _, q in reference.questions:
        counts[q.kind][q.answer] += 1
    return [counts[q.kind].most_common(1)[0][0] for _, q in exam.questions]


def score(exam: Exam, given: list[str]) -> dict[str, Proportion]:
    """Exact match: over all questions, by type and by number of groups.

    Knowledge questions stand apart, by whether the text corpus ever took both steps for their shape.
    """
    hits = defaultdict(list)
    for (row, q), answer in zip(exam.questions, given, strict=True):
        for name in kinds_of(exam.scenes[row], q):
            hits[name].append(answer == q.answer)
    return {name: proportion(found) for name, found in hits.items()}


def kinds_of(scene: Scene, asked: Question) -> list[str]:
    """The rows of the table that a question counts in."""
    if asked.kind == "knowledge":
        return [f"knowledge, {'never' if asked.subject in NEVER_TWO_STEP else 'seen'} two-step"]
    return ["all", asked.kind, "two groups" if len(scene.groups) == 2 else "one group"]


def generated_captions(model: PreTrainedModel, tokenizer, exam: Exam) -> list[str]:
    """A caption of every image, from the prompt `<mask>`."""
    return complete(model, tokenizer, ["<mask>"] * len(exam.scenes), exam.features, max_new_tokens=48, desc="captions")


def true_captions(exam: Exam, captions: list[str]) -> Proportion:
    """Captions that name every group and say nothing false."""
    return proportion([caption_is_true(text, scene) for text, scene in zip(captions, exam.scenes, strict=True)])


@torch.no_grad()
def retrieval(model: PreTrainedModel, tokenizer, exam: Exam) -> dict[str, Proportion]:
    """R@1 among 100, with BART's text embedding: a caption's image and an image's caption."""
    inputs = tokenizer(exam.captions, padding=True, return_tensors="pt")
    return _both_ways(exam.features[:, 0], model.get_text_features(**inputs).pooler_output)


@torch.no_grad()
def clip_retrieval(clip: CLIPModel, clip_processor: CLIPProcessor, exam: Exam) -> dict[str, Proportion]:
    """The same with CLIP's own text tower: what the student can hope for."""
    inputs = clip_processor.tokenizer(exam.captions, padding=True, return_tensors="pt")
    return _both_ways(exam.features[:, 0], clip.get_text_features(**inputs).pooler_output)


def _both_ways(image_embeds: torch.Tensor, text_embeds: torch.Tensor) -> dict[str, Proportion]:
    return {way: proportion(found) for way, found in first_hits(image_embeds, text_embeds).items()}


def first_hits(image_embeds: torch.Tensor, text_embeds: torch.Tensor, pool: int = 100) -> dict[str, list[bool]]:
    """Whether each scene's own image is nearest to its caption, and its own caption nearest to its image.

    Args:
        image_embeds, text_embeds: (scenes, d_j); row i of one belongs to row i of the other.
        pool: scenes are compared within consecutive pools of this size; an incomplete last pool is left out.

    Returns:
        For "text to image" and "image to text", one value per scene; R@1 is their mean.

    Raises:
        ValueError: there is no complete pool, or the numbers of rows differ.
    """
    scenes = len(image_embeds)
    if scenes != len(text_embeds) or scenes < pool:
        raise ValueError(f"R@1 of {pool} requires {pool} pairs; got {scenes} images and {len(text_embeds)} texts.")
    hits: dict[str, list[bool]] = {"text to image": [], "image to text": []}
    for start in range(0, scenes - pool + 1, pool):
        rows = slice(start, start + pool)
        to_text, to_image = retrieval_ranks(image_embeds[rows].cpu(), text_embeds[rows].cpu(), range(pool))
        hits["text to image"] += (to_image == 0).tolist()
        hits["image to text"] += (to_text == 0).tolist()
    return hits
