"""What limits the results on the microworld: CLIP's image tokens, or the training that starts from them.

    python benchmarks/ideal_tokens.py

Trains with the recipe of `make demo` on the tokens of the microworld's CLIP, and on ideal tokens: these say in one-hot
vectors what their patch shows (the kind, size and number of the drawings, and the background) and where the patch is.
The class token, which ITCL and TTDM use, is CLIP's in both. Evaluates on the validation split.
"""

import random
import sys
import tempfile
from collections.abc import Sequence
from contextlib import redirect_stdout
from itertools import islice
from typing import Any

import torch
from datasets import Dataset, Features, List, Value
from measure import TEACHERS, parser, recipe, report
from torch.nn.functional import one_hot
from transformers import HfArgumentParser

from microworld.exam import captions, questions, sample_exam, score_answers, score_captions
from microworld.pretrain.clip import positions
from microworld.study.report import as_text, estimate
from microworld.world.kinds import KINDS
from microworld.world.language import caption
from microworld.world.rendering import render
from microworld.world.scenes import BACKGROUNDS, CANVAS, COUNTS, SIZES, Scene, scenes
from modeling_vlkd import VLKDForConditionalGeneration, VLKDProcessor
from modeling_vlkd.processing_vlkd import MASK, VQA_PROMPT, first_sentence_of
from trainer import VLKDTrainer
from trainer.arguments import VLKDTrainingArguments
from trainer.evaluation.generation import complete, encode_images

MEASURES = {"VQA": "all", "two or three groups": "two or three groups", "yes/no": "yes/no"}  # the exam's rows
SETTINGS = {"microworld's CLIP": False, "ideal": True}


def with_ideal_patches(tokens: torch.Tensor, shown: list[Scene]) -> torch.Tensor:
    """CLIP's tokens (scenes, 1 + patches, d_j) with those of the patches replaced by ideal ones of the same size."""
    norm = tokens[:, 1:].square().sum(dim=-1).mean().sqrt()
    ideal = torch.stack([ideal_patches(scene, *tokens.shape[1:]) for scene in shown])
    return torch.cat([tokens[:, :1], ideal * norm / ideal.square().sum(dim=-1).mean().sqrt()], dim=1)


def ideal_patches(scene: Scene, tokens: int, width: int) -> torch.Tensor:
    """(tokens - 1, width): the traits of the drawings that each patch shows, the background, and the patch's place."""
    side = round((tokens - 1) ** 0.5)
    centers = (torch.arange(side) + 0.5) * CANVAS / side
    traits = torch.zeros(side, side, len(KINDS) + len(SIZES) + len(COUNTS))  # by row and column
    for group in scene.groups:
        own = torch.cat([one(KINDS, group.kind), one(tuple(SIZES), group.size), one(COUNTS, group.count)])
        for x, y in group.members():
            reach = SIZES[group.size] / 2 + 2
            traits[((centers - y).abs() < reach)[:, None] & ((centers - x).abs() < reach)] = own
    place = 0.18 * positions(CANVAS, 64)[1:]
    background = one(BACKGROUNDS, scene.background).expand(len(place), -1)
    known = torch.cat([traits.flatten(0, 1), background, place], dim=1)
    return torch.nn.functional.pad(known, (0, width - known.shape[1]))


def one(values: Sequence[Any], value: Any) -> torch.Tensor:
    """(values,): 1 at the value, 0 elsewhere."""
    return one_hot(torch.tensor(values.index(value)), len(values)).float()


def training_rows(model: Any, processor: VLKDProcessor, shown: list[Scene]) -> tuple[torch.Tensor, list[list[str]]]:
    """CLIP's tokens of an image of each scene, and five captions of each."""
    rng = random.Random("ideal tokens")
    tokens = encode_images(model, processor, [render(scene, rng) for scene in shown])
    return tokens, [[caption(scene, rng) for _ in range(5)] for scene in shown]


def train(model: Any, processor: VLKDProcessor, tokens: torch.Tensor, texts: list[list[str]], **options) -> None:
    columns = {"image_features": list(tokens.half().flatten(1).numpy()), "caption": texts}
    types = Features({"image_features": List(Value("float16")), "caption": List(Value("string"))})
    options = {**recipe("microworld"), "clip": str(TEACHERS / "clip"), **options}
    (args,) = HfArgumentParser(VLKDTrainingArguments).parse_dict(options, allow_extra_keys=True)
    dataset = Dataset.from_dict(columns, features=types)
    with redirect_stdout(sys.stderr):  # the losses; the report is all that goes to stdout
        VLKDTrainer(model, args, train_dataset=dataset, processing_class=processor).train()


def evaluate(model: Any, processor: VLKDProcessor, tokens: torch.Tensor, size: int, seed: int) -> dict[str, Any]:
    """The (value, trials) of each measure on the exam of `seed`, whose images have these tokens."""
    asked = questions("validation", size, seed).remove_columns("image")
    prompts = [VQA_PROMPT.format(question=question) for question in asked["question"]]
    answers = complete(model, processor.tokenizer, prompts, tokens[asked["image_id"]], max_new_tokens=16)
    results = score_answers(list(asked), [first_sentence_of(text) for text in answers])
    found = {name: next(result for result in results if result["row"] == row) for name, row in MEASURES.items()}
    texts = complete(model, processor.tokenizer, [MASK] * size, tokens, max_new_tokens=56)
    shown = list(captions("validation", size, seed).remove_columns("image"))
    found["captions"] = score_captions(shown, [first_sentence_of(text) for text in texts])[0]
    return {name: (result["value"], result["n"]) for name, result in found.items()}


def results(args: Any, folder: str) -> dict[str, list[dict[str, Any]]]:
    """The measures of each seed, by setting. A seed draws the new weights, the batches and the exam."""
    teachers = str(TEACHERS / "clip"), str(TEACHERS / "bart")
    processor = VLKDProcessor.from_vision_text_pretrained(*teachers)
    shown, found = list(islice(scenes("train"), args.images)), {name: [] for name in SETTINGS}
    model = VLKDForConditionalGeneration.from_vision_text_pretrained(*teachers)
    tokens, texts = training_rows(model, processor, shown)  # CLIP is frozen: they are the same for every seed
    for seed in range(1, args.seeds + 1):
        exam = sample_exam("validation", args.scenes, seed)
        exam_tokens = encode_images(model, processor, [exam.picture(row) for row in range(args.scenes)])
        for name, ideal in SETTINGS.items():
            new = VLKDForConditionalGeneration.from_vision_text_pretrained(*teachers, seed=seed)
            own = with_ideal_patches(tokens, shown) if ideal else tokens
            train(new, processor, own, texts, max_steps=args.steps, seed=seed, output_dir=folder)
            own = with_ideal_patches(exam_tokens, exam.scenes) if ideal else exam_tokens
            found[name].append(evaluate(new, processor, own, args.scenes, seed))
    return found


def main() -> None:
    options = parser(__doc__.splitlines()[0])
    options.add_argument("--images", type=int, default=5000)
    options.add_argument("--steps", type=int, default=900)
    options.add_argument("--scenes", type=int, default=300, help="of each exam")
    options.add_argument("--seeds", type=int, default=3)
    args = options.parse_args()
    with tempfile.TemporaryDirectory(prefix="vlkd-benchmark-") as folder:
        found = results(args, folder)
    rows = []
    for tokens, seeds in found.items():
        means = {name: estimate([result[name] for result in seeds]) for name in seeds[0]}
        rows.append({"image tokens": tokens} | {name: as_text(mean) for name, mean in means.items()})
    report("ideal-tokens", rows, args.into)


if __name__ == "__main__":
    main()
