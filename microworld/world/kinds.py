"""What kinds.yaml has: sixty kinds of things, their categories, what is known about them, and eight backgrounds.

The facts are true of the real things. They are in the text corpus only: no caption and no image tells them.
"""

from dataclasses import dataclass
from pathlib import Path

import yaml

_WORLD = yaml.safe_load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"))
CATEGORIES = tuple(_WORLD["categories"])
CATEGORY = {kind: name for name, category in _WORLD["categories"].items() for kind in category["kinds"]}
KINDS = tuple(CATEGORY)
WHERE = _WORLD["backgrounds"]  # "in a meadow", by the name of the background
# No text joins the facts of these kinds to a scene: for them a model must combine seeing and knowing by itself.
NEVER_TWO_STEP = frozenset(KINDS[2::5])
QUESTIONS = {topic: question for topic, (_, _, question) in _WORLD["topics"].items()}


@dataclass(frozen=True)
class Fact:
    """What is known about a kind: "a penguin eats fish", "penguins eat fish"; `topic` is a key of `QUESTIONS`."""

    topic: str
    verb: str
    verbs: str
    phrase: str

    def question(self, subject: str, plural: bool) -> str:
        verbs = {"do": "do", "be": "are"} if plural else {"do": "does", "be": "is"}
        return QUESTIONS[self.topic].format(subject=subject, **verbs)

    def sentence(self, kind: str, plural: bool) -> str:
        return f"{PLURAL[kind]} {self.verbs} {self.phrase}" if plural else f"{article(kind)} {self.verb} {self.phrase}"


FACTS = {
    kind: tuple(
        Fact(topic, *_WORLD["topics"][topic][:2], phrase)
        for topic, phrase in zip(category["topics"], phrases, strict=True)
    )
    for category in _WORLD["categories"].values()
    for kind, phrases in category["kinds"].items()
}


def category_sentence(kind: str, plural: bool) -> str:
    """'a penguin is an animal', 'penguins are animals'."""
    category = CATEGORY[kind]
    return f"{PLURAL[kind]} are {PLURAL[category]}" if plural else f"{article(kind)} is {article(category)}"


def article(phrase: str) -> str:
    """'a penguin', 'an octopus'."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "ch")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


PLURAL = {noun: _plural(noun) for noun in (*KINDS, *CATEGORIES, "thing")}
