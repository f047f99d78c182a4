"""The study's questions: which rows each one compares, and how the answer is drawn."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from microworld.study.plots import Theme, draw_images, draw_learning_rate, draw_rows, draw_types
from microworld.study.results import Results
from microworld.study.rows import BY_NAME
from microworld.study.words import CAPTIONS, RATES, RETRIEVAL, TEXT, VQA, answer, answer_rates, answer_types

IMAGE = ("paper", "mlp", "random-projector", "patch-tokens", "pooled-token", "global-attention")
OURS = ("ours", "ours-no-itdd", "ours-one-vector", "ours-no-statements", "ours-decoder-learns")


@dataclass(frozen=True)
class Section:
    """One question.

    Args:
        name: of its picture.
        title: the question.
        about: what it is asked for.
        rows: the first is what the others are compared with.
        measures: columns of its table.
        answer: of the results and the rows that are there; its first sentences are what stands out.
        draw: of results, names, theme and path.
        choice: rows of which one has to be chosen, which validation does.
    """

    name: str
    title: str
    about: str
    rows: tuple[str, ...]
    measures: tuple[str, ...]
    answer: Callable[[Results, Sequence[str]], list[str]]
    draw: Callable[[Results, Sequence[str], Theme, Path], None]
    choice: tuple[str, ...] = ()


def _draw(measures: Sequence[str], results: Results, names: Sequence[str], theme: Theme, path: Path) -> None:
    draw_rows(results, names, measures, theme, path)


def _draw_types(results: Results, names: Sequence[str], theme: Theme, path: Path) -> None:
    draw_types(results, theme, path)


def _draw_rates(results: Results, names: Sequence[str], theme: Theme, path: Path) -> None:
    rates = [name for name in RATES if name in names]
    draw_learning_rate(results, rates, results.best(rates), theme, path)


SECTIONS = (
    Section(
        "types",
        "Does it answer questions that it was never asked of an image?",
        "Training showed it images with captions, and text with questions, but never a question about an image.",
        ("paper", "ours", "untrained"),
        (VQA, "blind VQA: all", "VQA: two groups", "VQA: relation", "VQA: yes/no", "VQA: knowledge, never two-step"),
        answer_types,
        _draw_types,
    ),
    Section(
        "losses",
        "What does each loss carry?",
        "TTDM draws BART's sentence embedding to CLIP's, ITCL draws it to the image, ICTI has the decoder write the "
        "caption from the image. Each is left out in turn; then ITDD, which is ours, is added: the decoder is to read "
        "an image as BART reads a caption of it.",
        ("paper", "without-icti", "without-itcl", "without-ttdm", "with-itdd"),
        (VQA, CAPTIONS, RETRIEVAL),
        partial(answer, measures=(VQA, RETRIEVAL)),
        partial(_draw, (VQA, CAPTIONS, RETRIEVAL)),
    ),
    Section(
        "bart",
        "Must BART know its language, and must it learn?",
        "One row begins with a BART that has read nothing; in the other BART stays as it is and only the maps learn.",
        ("paper", "random-bart", "frozen-bart"),
        (VQA, CAPTIONS, RETRIEVAL, TEXT),
        partial(answer, measures=(VQA, RETRIEVAL)),
        partial(_draw, (VQA, CAPTIONS, RETRIEVAL, TEXT)),
    ),
    Section(
        "image",
        "How should the image reach the decoder?",
        "Which of CLIP's tokens it sees, what a patch attends to in CLIP's last layer, what maps them to BART's.",
        IMAGE,
        (VQA, CAPTIONS),
        partial(answer, choose=True),
        partial(_draw, (VQA, CAPTIONS)),
        choice=IMAGE,
    ),
    Section(
        "prompt",
        "Where should the question stand?",
        "The decoder always starts from the question. The encoder may read it too, or see the mask alone.",
        ("paper", "prompt-in-encoder"),
        (VQA, "VQA: relation", "VQA: yes/no"),
        partial(answer, choose=True),
        partial(_draw, (VQA, CAPTIONS)),
        choice=("paper", "prompt-in-encoder"),
    ),
    Section(
        "learning-rate",
        "What does learning to see cost the language model?",
        "The faster BART learns captions, the more of its own reading it may lose.",
        RATES,
        (VQA, TEXT),
        answer_rates,
        _draw_rates,
        choice=RATES,
    ),
    Section(
        "images",
        "How many captioned images does it take?",
        "The same number of steps with 1%, 10% and all of the 8,000 images.",
        ("paper", "images-800", "images-80"),
        (VQA, CAPTIONS, RETRIEVAL),
        partial(answer, measures=(VQA, RETRIEVAL)),
        draw_images,
    ),
    Section(
        "ours",
        "What is it in our recipe that helps?",
        "Our recipe has a fourth loss, ITDD, makes several vectors of each image token, adds short true sentences to "
        "the captions, and leaves the decoder as it was. Each is undone in turn.",
        OURS,
        (VQA, CAPTIONS, RETRIEVAL, TEXT),
        answer,
        partial(_draw, (VQA, CAPTIONS, RETRIEVAL, TEXT)),
    ),
)


def present(results: Results) -> Iterator[tuple[Section, list[str]]]:
    """The sections that have something to compare, each with its rows that are there."""
    for section in SECTIONS:
        names = [name for name in section.rows if results.has(name)]
        if len(names) > 1 and BY_NAME[section.rows[-1]].base in names:  # a recipe is the row of its name
            yield section, names


def glance(results: Results) -> dict[str, list[str]]:
    """Heading -> rows of the picture of all differences."""
    headings = {
        "the losses": ("without-icti", "without-itcl", "without-ttdm", "with-itdd"),
        "BART": ("random-bart", "frozen-bart"),
        "the image's way": IMAGE[1:],
        "the question": ("prompt-in-encoder",),
        "learning rate": tuple(name for name in RATES if name != "paper"),
        "data": ("images-800", "images-80"),
        "our recipe, against itself": OURS[1:],
    }
    there = {
        heading: [name for name in names if results.has(name, BY_NAME[name].against)]
        for heading, names in headings.items()
    }
    return {heading: names for heading, names in there.items() if names}
