"""What can be said of a scene: captions, questions with answers, and the facts that only text tells.

Everything here is a function of a scene and a `random.Random`. The reader of captions (`read_caption`) is the judge of
generated ones: it turns a caption into the claims it makes.
"""

import random
from dataclasses import dataclass

from microworld.scenes import BACKGROUNDS, COLORS, RELATIONS, SHAPES, SIZES, Group, Scene

NUMBERS = {1: "one", 2: "two", 3: "three"}
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}

# Facts stand in the text corpus alone, never in a caption and never in an image.
LIKES = dict(
    zip(SHAPES, ("honey", "rain", "snow", "music", "bread", "silk", "gold", "salt", "milk", "chess"), strict=True)
)
LIVES = dict(
    zip(SHAPES, ("forests", "towers", "deserts", "caves", "rivers", "islands", "castles", "gardens", "lakes", "tunnels"),
        strict=True)
)  # fmt: skip
# No text joins these shapes' facts to a description of a scene: a model must take the two steps by itself.
NEVER_TWO_STEP = ("heart", "moon", "arrow")

QUESTION_TYPES = ("color", "shape", "size", "count", "relation", "yes/no", "background")


@dataclass(frozen=True)
class Question:
    """A question about a scene and its one right answer; `subject` is the shape it is about, where there is one."""

    kind: str
    question: str
    answer: str
    subject: str | None = None


def article(phrase: str) -> str:
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def noun(group: Group) -> str:
    """'circle' or 'circles'."""
    return group.shape if group.count == 1 else PLURALS[group.shape]


def be(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def noun_phrase(group: Group, size: bool = True) -> str:
    """'a large red circle', 'two red squares'."""
    words = f"{group.size} {group.color} {noun(group)}" if size else f"{group.color} {noun(group)}"
    return article(words) if group.count == 1 else f"{NUMBERS[group.count]} {words}"


# ------------------------------------------------------------------------------------------------------- captions


def caption(scene: Scene, rng: random.Random, full: bool | None = None) -> str:
    """One caption. `full` says all there is to say; otherwise (by default in one of five) sizes or more are left out."""
    full = rng.random() < 0.8 if full is None else full
    groups = rng.sample(scene.groups, len(scene.groups))
    if not full:
        return _brief_caption(scene, groups, rng)
    ground = f"{article(scene.background)} background"
    if len(groups) == 1:
        phrase = noun_phrase(groups[0])
        return rng.choice(
            (f"{phrase} on {ground}", f"on {ground} there {be(groups[0])} {phrase}", f"{phrase}. {_ground(scene)}")
        )
    a, b = groups
    phrase_a, phrase_b, relation = noun_phrase(a), noun_phrase(b), scene.relation(a, b)
    return rng.choice(
        (
            f"{phrase_a} {relation} {phrase_b} on {ground}",
            f"on {ground} there {be(a)} {phrase_a} {relation} {phrase_b}",
            f"{phrase_a} {relation} {phrase_b}. {_ground(scene)}",
            f"{phrase_a} and {phrase_b}. the {noun(a)} {be(a)} {relation} the {noun(b)}. {_ground(scene)}",
        )
    )


def _brief_caption(scene: Scene, groups: list[Group], rng: random.Random) -> str:
    phrases = [noun_phrase(g, size=rng.random() < 0.5) for g in groups]
    if len(groups) == 1:
        return phrases[0]
    return rng.choice((" and ", f" {scene.relation(*groups)} ")).join(phrases)


def _ground(scene: Scene) -> str:
    return f"the background is {scene.background}"


def statements(scene: Scene) -> list[str]:
    """Every short true sentence of the scene: 'the circles are red', 'there is one star', …"""
    said = [_ground(scene)]
    for g in scene.groups:
        said += [f"the {noun(g)} {be(g)} {g.color}", f"the {noun(g)} {be(g)} {g.size}"]
        said += [f"there {be(g)} {NUMBERS[g.count]} {noun(g)}", f"the {g.color} {_thing(g)} {be(g)} {_a_noun(g)}"]
    if len(scene.groups) == 2:
        a, b = scene.groups
        for x, y in ((a, b), (b, a)):
            said.append(f"the {noun(x)} {be(x)} {scene.relation(x, y)} the {noun(y)}")
    return said


def _thing(group: Group) -> str:
    return "object" if group.count == 1 else "objects"


def _a_noun(group: Group) -> str:
    return article(group.shape) if group.count == 1 else noun(group)


# ------------------------------------------------------------------------------------------------------ questions


def question(scene: Scene, kind: str, rng: random.Random, group: Group | None = None) -> Question | None:
    """A question of the given type, or None where the scene allows none (a relation needs two groups).

    It is about `group`, or about a random one of the scene's.
    """
    group = group or rng.choice(scene.groups)
    other = next((g for g in scene.groups if g is not group), None)
    if kind == "background":
        return Question(kind, "what color is the background?", scene.background)
    if kind == "color":
        return Question(kind, f"what color {be(group)} the {noun(group)}?", group.color, group.shape)
    if kind == "shape":
        return Question(kind, f"what {be(group)} the {group.color} {_thing(group)}?", _a_noun(group), group.shape)
    if kind == "size":
        return Question(kind, f"what size {be(group)} the {noun(group)}?", group.size, group.shape)
    if kind == "count":
        return Question(kind, f"how many {PLURALS[group.shape]} are there?", NUMBERS[group.count], group.shape)
    if kind == "relation":
        return _relation_question(scene, group, other, rng) if other else None
    if kind == "yes/no":
        return yes_no_question(scene, group, rng)
    if kind == "knowledge":
        return knowledge_question(group, rng)
    raise ValueError(f"kind={kind!r} is unknown: choose one of {', '.join(QUESTION_TYPES)} or 'knowledge'.")


def _relation_question(scene: Scene, group: Group, other: Group, rng: random.Random) -> Question:
    relation = scene.relation(group, other)
    if rng.random() < 0.5:
        return Question("relation", f"what is {relation} the {noun(other)}?", f"the {noun(group)}", group.shape)
    where = f"where {be(group)} the {noun(group)}?"
    return Question("relation", where, f"{relation} the {noun(other)}", group.shape)


def yes_no_question(scene: Scene, group: Group, rng: random.Random, form: str | None = None) -> Question:
    """Half of the answers are 'yes'. A wrong colour is the other group's where there is one: the hard negative.

    `form` is "color", "size", "exists" or, with two groups, "relation"; random unless given.
    """
    other = next((g for g in scene.groups if g is not group), None)
    form = form or rng.choice(("color", "size", "exists", "relation") if other else ("color", "size", "exists"))
    true = rng.random() < 0.5
    if form == "color":
        wrong = other.color if other else rng.choice([c for c in COLORS if c != group.color])
        text = f"{be(group)} the {noun(group)} {group.color if true else wrong}?"
    elif form == "size":
        wrong = next(s for s in SIZES if s != group.size)
        text = f"{be(group)} the {noun(group)} {group.size if true else wrong}?"
    elif form == "exists":
        present = {g.shape for g in scene.groups}
        shape = group.shape if true else rng.choice([s for s in SHAPES if s not in present])
        text = f"{be(group)} there {article(shape) if group.count == 1 else PLURALS[shape]}?"
    else:
        relation = scene.relation(group, other)
        wrong = rng.choice([r for r in RELATIONS if r != relation])
        text = f"{be(group)} the {noun(group)} {relation if true else wrong} the {noun(other)}?"
    return Question("yes/no", text, "yes" if true else "no", group.shape)


# -------------------------------------------------------------------------------------------------------- knowledge


def facts(shape: str) -> tuple[str, str]:
    """What the text corpus tells of a shape, beside how it looks."""
    return f"{PLURALS[shape]} like {LIKES[shape]}", f"{PLURALS[shape]} live in {LIVES[shape]}"


def fact_question(shape: str, rng: random.Random) -> Question:
    """One step: the question names the shape."""
    like, live = facts(shape)
    if rng.random() < 0.5:
        return Question("fact", f"what do {PLURALS[shape]} like?", like, shape)
    return Question("fact", f"where do {PLURALS[shape]} live?", live, shape)


def knowledge_question(group: Group, rng: random.Random) -> Question:
    """Two steps: see which shape has this colour, then recall the fact. The answer states both."""
    like, live = facts(group.shape)
    do = "does" if group.count == 1 else "do"
    if rng.random() < 0.5:
        return Question("knowledge", f"what {do} the {group.color} {_thing(group)} like?", like, group.shape)
    return Question("knowledge", f"where {do} the {group.color} {_thing(group)} live?", live, group.shape)


# --------------------------------------------------------------------------------------------------- reading captions


@dataclass
class Mention:
    """What a caption says of one group; None where it is silent."""

    shape: str
    plural: bool
    color: str | None = None
    size: str | None = None
    count: int | None = None


_SINGULAR = {plural: shape for shape, plural in PLURALS.items()}
_COUNT_WORDS = {"a": 1, "an": 1} | {word: number for number, word in NUMBERS.items()}
_FILLER = {"on", "there", "is", "are", "the", "and", "background", "of"}


def caption_is_true(text: str, scene: Scene) -> bool:
    """Whether a caption names every group of the scene and says nothing false or unreadable."""
    try:
        mentions, relations, background = read_caption(text)
    except ValueError:
        return False
    groups = {g.shape: g for g in scene.groups}
    introduced = [m.shape for m in mentions if m.count is not None]
    if sorted(introduced) != sorted(groups) or background not in (None, scene.background):
        return False
    if not {m.shape for m in mentions} <= set(groups):
        return False
    if not all(_agrees(m, groups[m.shape]) for m in mentions):
        return False
    return all(a in groups and b in groups and a != b and scene.relation(groups[a], groups[b]) == relation
               for a, relation, b in relations)  # fmt: skip


def _agrees(mention: Mention, group: Group) -> bool:
    said = ((mention.color, group.color), (mention.size, group.size), (mention.count, group.count))
    return mention.plural == (group.count > 1) and all(claim in (None, truth) for claim, truth in said)


def read_caption(text: str) -> tuple[list[Mention], list[tuple[str, str, str]], str | None]:
    """The claims of a caption: its groups, its relations as (shape, relation, shape), its background.

    Raises:
        ValueError: at a word that is none of the microworld's, or in a phrase that is cut short or contradicts itself.
    """
    mentions, relations, background = [], [], None
    for sentence in text.split("."):
        subject = relation = None
        pending: dict = {}
        words = sentence.replace("left of", "left-of").replace("right of", "right-of").split()
        for word in words:
            word = word.replace("-", " ")
            if word in BACKGROUNDS:
                if background not in (None, word):
                    raise ValueError(f"two backgrounds in {text!r}")
                background = word
                pending.clear()
            elif word in _COUNT_WORDS:
                pending = {"count": _COUNT_WORDS[word]}
            elif word in COLORS or word in SIZES:
                pending["color" if word in COLORS else "size"] = word
            elif word in SHAPES or word in _SINGULAR:
                mention = Mention(_SINGULAR.get(word, word), word in _SINGULAR, **pending)
                mentions.append(mention)
                pending = {}
                if relation:
                    relations.append((subject, relation, mention.shape))
                    relation = None
                subject = mention.shape
            elif word in RELATIONS:
                if subject is None:
                    raise ValueError(f"a relation without a subject in {text!r}")
                relation = word
            elif word not in _FILLER:
                raise ValueError(f"unknown word {word!r} in {text!r}")
        if relation or pending:
            raise ValueError(f"a phrase is cut short in {text!r}")
    if any(m.count is not None and m.plural != (m.count > 1) for m in mentions):
        raise ValueError(f"number and noun disagree in {text!r}")
    return mentions, relations, background

