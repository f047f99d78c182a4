"""Reads a caption: what it claims about a scene, and whether that is true."""

import re
from dataclasses import dataclass, field

from microworld.world.kinds import KINDS, PLURAL
from microworld.world.language import GROUND, NUMBERS, WHERE
from microworld.world.scenes import RELATIONS, SIZES, Group, Scene, relation

_SINGULAR = {PLURAL[kind]: kind for kind in KINDS}
_COUNT_WORDS = {"a": 1, "an": 1} | {word: number for number, word in NUMBERS.items()}
_BACKGROUND = {where: name for name, where in WHERE.items()}
_BACKGROUND |= {f"the background is {ground}": name for name, ground in GROUND.items()}


def _any(words) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


# The units of a caption. Each is read by a method of `_Reader`; the first that fits is taken.
_UNITS = {
    "background": rf"(?:{_any(_BACKGROUND)})\b",
    "opening": r"a picture of\b",
    "relation": rf"(?:(?:is|are) )?(?:{_any(RELATIONS)})\b",
    "predicate": rf"(?:is|are) (?:{_any(SIZES)})\b",
    "joint": r"(?:,|(?:and|there is|there are|the)\b)(?! *\.)",
    "number": rf"(?:{_any(_COUNT_WORDS)})\b",
    "size": rf"(?:{_any(SIZES)})\b",
    "noun": rf"(?:{_any((*KINDS, *_SINGULAR))})\b",
    "end": r"\.",
    "unknown": r"[^\s.]+",
}
_UNIT = re.compile("|".join(f"(?P<{name}>{pattern})" for name, pattern in _UNITS.items()))


@dataclass
class Mention:
    """What a caption says about one group; None where it is silent."""

    kind: str
    plural: bool
    size: str | None = None
    count: int | None = None

    def agrees(self, group: Group) -> bool:
        said = ((self.size, group.size), (self.count, group.count))
        return self.plural == (group.count > 1) and all(claim in (None, truth) for claim, truth in said)


@dataclass
class Claims:
    """What a caption says: about groups, relations as (kind, relation, kind), and the background."""

    mentions: list[Mention] = field(default_factory=list)
    relations: list[tuple[str, str, str]] = field(default_factory=list)
    background: str | None = None


def caption_is_true(text: str, scene: Scene) -> bool:
    """Whether a caption introduces every group of the scene once and says nothing false or unreadable."""
    try:
        claims = read_caption(text)
    except ValueError:
        return False
    groups = {group.kind: group for group in scene.groups}
    introduced = [mention.kind for mention in claims.mentions if mention.count is not None]
    return (
        sorted(introduced) == sorted(groups)
        and all(mention.kind in groups and mention.agrees(groups[mention.kind]) for mention in claims.mentions)
        and all(a != b and relation(groups[a], groups[b]) == said for a, said, b in claims.relations)
        and claims.background in (None, scene.background)
    )


def read_caption(text: str) -> Claims:
    """The claims of a caption.

    Raises:
        ValueError: at a word that is not of this world, or in a phrase that is cut short or contradicts itself.
    """
    reader = _Reader(text)
    for unit in _UNIT.finditer(" ".join(text.split()) + "."):
        getattr(reader, f"read_{unit.lastgroup}")(unit.group())
    return reader.claims


class _Reader:
    """Reads a caption unit by unit; `claims` is what it has understood."""

    def __init__(self, text: str):
        self.text = text
        self.claims = Claims()
        self.subject: str | None = None  # the sentence's last noun
        self.plural = False  # whether it was plural
        self.relation: str | None = None  # of the subject to a noun that is still to come
        self.traits: dict[str, str | int] = {}  # of a noun that is still to come

    def read_background(self, phrase: str) -> None:
        self._check_complete()
        if self.claims.background not in (None, _BACKGROUND[phrase]):
            raise self._error("two backgrounds")
        self.claims.background = _BACKGROUND[phrase]

    def read_opening(self, phrase: str) -> None:
        if self.claims.mentions or self.traits:
            raise self._error("an opening after the beginning")

    def read_relation(self, phrase: str) -> None:
        self._check_complete()
        if self.subject is None:
            raise self._error("a relation without a subject")
        self.relation = phrase.removeprefix("is ").removeprefix("are ")

    def read_predicate(self, phrase: str) -> None:
        """'are small' describes the last noun of the sentence."""
        self._check_complete()
        if self.subject is None:
            raise self._error("a size without a subject")
        self.claims.mentions.append(Mention(self.subject, self.plural, size=phrase.split()[1]))

    def read_joint(self, phrase: str) -> None:
        if self.traits or (self.relation and phrase != "the"):
            raise self._error("a phrase that is cut short")

    def read_number(self, word: str) -> None:
        self._add_trait("count", _COUNT_WORDS[word])

    def read_size(self, word: str) -> None:
        self._add_trait("size", word)

    def read_noun(self, word: str) -> None:
        mention = Mention(_SINGULAR.get(word, word), plural=word in _SINGULAR, **self.traits)
        if mention.count is not None and mention.plural != (mention.count > 1):
            raise self._error("a number that disagrees with its noun")
        self.claims.mentions.append(mention)
        if self.relation:
            self.claims.relations.append((self.subject, self.relation, mention.kind))
        self.subject, self.plural, self.relation, self.traits = mention.kind, mention.plural, None, {}

    def read_end(self, stop: str) -> None:
        self._check_complete()
        self.subject = None

    def read_unknown(self, word: str) -> None:
        raise self._error(f"the unknown word {word!r}")

    def _add_trait(self, name: str, value: str | int) -> None:
        if name in self.traits:
            raise self._error(f"a noun with two {name}s")
        self.traits[name] = value

    def _check_complete(self) -> None:
        if self.relation or self.traits:
            raise self._error("a phrase that is cut short")

    def _error(self, what: str) -> ValueError:
        return ValueError(f"The caption {self.text!r} holds {what}.")
