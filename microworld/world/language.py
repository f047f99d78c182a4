"""What can be said of a scene: captions, questions with answers, and the facts that only text tells.

Everything here is a function of a scene and a `random.Random`. `read_caption` turns a caption into the claims it
makes, by which generated captions are judged.
"""

import random
from dataclasses import dataclass, replace

from microworld.world.scenes import COLORS, COUNTS, SHAPES, SIZES, Group, Scene

NUMBERS = {1: "one", 2: "two", 3: "three"}
PLURALS = {shape: "crosses" if shape == "cross" else f"{shape}s" for shape in SHAPES}
# Facts stand in the text corpus alone, never in a caption and never in an image.
_TASTES = ("honey", "rain", "snow", "music", "bread", "silk", "gold", "salt", "milk", "chess")
LIKES = dict(zip(SHAPES, _TASTES, strict=True))
_HOMES = ("forests", "towers", "deserts", "caves", "rivers", "islands", "castles", "gardens", "lakes", "tunnels")
LIVES = dict(zip(SHAPES, _HOMES, strict=True))
# No text joins these shapes' facts to a scene that holds them: a model must take the two steps by itself.
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


def noun_phrase(group: Group, size: bool = True, numeral: bool = False) -> str:
    """'a large red circle' (with `numeral` 'one large red circle'), 'two red squares'."""
    words = f"{group.size} {group.color} {noun(group)}" if size else f"{group.color} {noun(group)}"
    return _counted(group, words, numeral)


def _counted(group: Group, words: str, numeral: bool) -> str:
    return article(words) if group.count == 1 and not numeral else f"{NUMBERS[group.count]} {words}"


# ------------------------------------------------------------------------------------------------------- captions
def caption(scene: Scene, rng: random.Random, full: bool | None = None) -> str:
    """One caption. `full` says all there is to say; else (by default one in five) sizes or more are left out.

    A single object is 'a circle' in two captions of three, 'one circle' in the third.
    """
    full = rng.random() < 0.8 if full is None else full
    numeral = rng.random() < 1 / 3
    groups = rng.sample(scene.groups, len(scene.groups))
    if not full:
        return _brief_caption(scene, groups, numeral, rng)
    ground = f"{article(scene.background)} background"
    if rng.random() < 0.4:
        return _noun_first_caption(scene, groups, numeral, rng)
    if len(groups) == 1:
        phrase = noun_phrase(groups[0], numeral=numeral)
        return rng.choice(
            (f"{phrase} on {ground}", f"on {ground} there {be(groups[0])} {phrase}", f"{phrase}. {_ground(scene)}")
        )
    a, b = groups
    phrase_a, phrase_b = (noun_phrase(g, numeral=numeral) for g in (a, b))
    relation = scene.relation(a, b)
    return rng.choice(
        (
            f"{phrase_a} {relation} {phrase_b} on {ground}",
            f"on {ground} there {be(a)} {phrase_a} {relation} {phrase_b}",
            f"{phrase_a} {relation} {phrase_b}. {_ground(scene)}",
            f"{phrase_a} and {phrase_b}. the {noun(a)} {be(a)} {relation} the {noun(b)}. {_ground(scene)}",
        )
    )


def _noun_first_caption(scene: Scene, groups: list[Group], numeral: bool, rng: random.Random) -> str:
    """'two circles and a square. the circles are red and small. …': a noun comes before what is said of it."""
    said = [" and ".join(_counted(g, noun(g), numeral) for g in groups)]
    for g in groups:
        said.append(f"the {noun(g)} {be(g)} {' and '.join(rng.sample((g.size, g.color), 2))}")
    if len(groups) == 2:
        a, b = groups
        said.append(f"the {noun(a)} {be(a)} {scene.relation(a, b)} the {noun(b)}")
    return ". ".join([*said, _ground(scene)])


def _brief_caption(scene: Scene, groups: list[Group], numeral: bool, rng: random.Random) -> str:
    phrases = [noun_phrase(g, rng.random() < 0.5, numeral) for g in groups]
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
        return _yes_no_question(scene, group, rng)
    if kind == "knowledge":
        return knowledge_question(group, rng)
    raise ValueError(f"kind={kind!r} is unknown: choose one of {', '.join(QUESTION_TYPES)} or 'knowledge'.")


def _relation_question(scene: Scene, group: Group, other: Group, rng: random.Random) -> Question:
    relation = scene.relation(group, other)
    if rng.random() < 0.5:
        return Question("relation", f"what is {relation} the {noun(other)}?", f"the {noun(group)}", group.shape)
    where = f"where {be(group)} the {noun(group)}?"
    return Question("relation", where, f"{relation} the {noun(other)}", group.shape)


def _yes_no_question(scene: Scene, group: Group, rng: random.Random) -> Question:
    """Half of the answers are 'yes'. A wrong colour is the other group's where there is one: the hard negative."""
    form = rng.choice(("color", "size", "count", "exists"))
    true = rng.random() < 0.5
    the = f"{be(group)} the {noun(group)}"
    if form == "color":
        others = [g.color for g in scene.groups if g is not group] or [c for c in COLORS if c != group.color]
        text = f"{the} {group.color if true else rng.choice(others)}?"
    elif form == "size":
        text = f"{the} {group.size if true else next(s for s in SIZES if s != group.size)}?"
    elif form == "count":
        number = group.count if true else rng.choice([c for c in COUNTS if c != group.count])
        asked = replace(group, count=number)
        text = f"{be(asked)} there {NUMBERS[number]} {noun(asked)}?"
    else:
        present = {g.shape for g in scene.groups}
        shape = group.shape if true else rng.choice([s for s in SHAPES if s not in present])
        text = f"is there any {shape}?"
    return Question("yes/no", text, "yes" if true else "no", group.shape)


# -------------------------------------------------------------------------------------------------------- knowledge
def facts(shape: str, plural: bool) -> tuple[str, str]:
    """What the text corpus tells of a shape beside its looks: 'a circle likes honey', 'a circle lives in forests'."""
    if plural:
        return f"{PLURALS[shape]} like {LIKES[shape]}", f"{PLURALS[shape]} live in {LIVES[shape]}"
    return f"{article(shape)} likes {LIKES[shape]}", f"{article(shape)} lives in {LIVES[shape]}"


def fact_question(shape: str, rng: random.Random) -> Question:
    """One step: the question names the shape."""
    plural = rng.random() < 0.5
    subject = f"do {PLURALS[shape]}" if plural else f"does {article(shape)}"
    return _fact_question("fact", subject, shape, plural, rng)


def knowledge_question(group: Group, rng: random.Random) -> Question:
    """Two steps: see which shape has this colour, then recall the fact. The answer states both."""
    plural = group.count > 1
    subject = f"{'do' if plural else 'does'} the {group.color} {_thing(group)}"
    return _fact_question("knowledge", subject, group.shape, plural, rng)


def _fact_question(kind: str, subject: str, shape: str, plural: bool, rng: random.Random) -> Question:
    like, live = facts(shape, plural)
    if rng.random() < 0.5:
        return Question(kind, f"what {subject} like?", like, shape)
    return Question(kind, f"where {subject} live?", live, shape)
