"""Reads a caption: what it claims about a scene, and whether that is true."""

import re
from dataclasses import dataclass, field

from microworld.world.kinds import KINDS, PLURAL, WHERE
from microworld.world.language import GROUND, NUMBERS
from microworld.world.scenes import RELATIONS, SIZES, Group, Scene, relation

_SINGULAR = {PLURAL[kind]: kind for kind in KINDS}
_COUNT_WORDS = {"a": 1, "an": 1} | {word: number for number, word in NUMBERS.items()}
_BACKGROUND = {where: name for name, where in WHERE.items()}
_BACKGROUND |= {f"the background is {ground}": name for name, ground in GROUND.items()}


def _alternatives(words) -> str:
    return "|".join(sorted(words, key=len, reverse=True))


# The units of a caption; the first that fits is taken.
_UNITS = {
    "background": rf"(?:{_alternatives(_BACKGROUND)})\b",
    "opening": r"a picture of\b",
    "relation": rf"(?:(?:is|are) )?(?:{_alternatives(RELATIONS)})\b",
    "predicate": rf"(?:is|are) (?:{_alternatives(SIZES)})\b",
    "joint": r"(?:,|(?:and|there is|there are|the)\b)(?! *\.)",
    "count": rf"(?:{_alternatives(_COUNT_WORDS)})\b",
    "size": rf"(?:{_alternatives(SIZES)})\b",
    "noun": rf"(?:{_alternatives((*KINDS, *_SINGULAR))})\b",
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
    claims, subject, link, traits = Claims(), None, None, {}  # link and traits wait for the noun that they are about

    def require(condition: bool, problem: str) -> None:
        if not condition:
            raise ValueError(f"The caption {text!r} holds {problem}.")

    for unit in _UNIT.finditer(" ".join(text.split()) + "."):
        phrase = unit.group()
        require(unit.lastgroup != "unknown", f"the unknown word {phrase!r}")
        if unit.lastgroup in ("background", "relation", "predicate", "end"):
            require(not link and not traits, "a phrase that is cut short")
        match unit.lastgroup:
            case "background":
                require(claims.background in (None, _BACKGROUND[phrase]), "two backgrounds")
                claims.background = _BACKGROUND[phrase]
            case "opening":
                require(not claims.mentions and not traits, "an opening after the beginning")
            case "relation":
                require(subject is not None, "a relation without a subject")
                link = phrase.removeprefix("is ").removeprefix("are ")
            case "predicate":  # 'are small' describes the last noun of the sentence
                require(subject is not None, "a size without a subject")
                claims.mentions.append(Mention(subject.kind, subject.plural, size=phrase.split()[1]))
            case "joint":
                require(not traits and (not link or phrase == "the"), "a phrase that is cut short")
            case "count" | "size" as trait:
                require(trait not in traits, f"a noun with two {trait}s")
                traits[trait] = _COUNT_WORDS.get(phrase, phrase)
            case "noun":
                noun = Mention(_SINGULAR.get(phrase, phrase), plural=phrase in _SINGULAR, **traits)
                agrees = noun.count is None or noun.plural == (noun.count > 1)
                require(agrees, "a number that disagrees with its noun")
                claims.mentions.append(noun)
                if link:
                    claims.relations.append((subject.kind, link, noun.kind))
                subject, link, traits = noun, None, {}
            case "end":
                subject = None
    return claims
