"""What can be said about a scene: captions, statements, and questions with their accepted answers.

Everything here is a function of a scene and a `random.Random`. `caption_reader.py` reads captions back.
"""

import random
from dataclasses import dataclass, replace
from itertools import combinations

from microworld.world.kinds import CATEGORIES, CATEGORY, FACTS, KINDS, PLURAL, WHERE, Fact, article, category_sentence
from microworld.world.scenes import BACKGROUNDS, COUNTS, RELATIONS, SIZES, Group, Scene, relation

NUMBERS = {1: "one", 2: "two", 3: "three"}
GROUND = {name: where.split(" ", 1)[1] for name, where in WHERE.items()}
QUESTION_TYPES = ("kind", "category", "count", "size", "relation", "yes/no", "background")


@dataclass(frozen=True)
class Question:
    """A question about a scene.

    Args:
        type: one of `QUESTION_TYPES`, "knowledge" or "fact".
        text: the question.
        answer: how the text corpus answers it.
        accepted: the answers that are right, without their leading article.
        subject: the kind that it is about, if it is about one.
    """

    type: str
    text: str
    answer: str
    accepted: tuple[str, ...]
    subject: str | None = None


def is_right(answer: str, accepted: tuple[str, ...]) -> bool:
    """Whether an answer, up to its case and a leading article, is an accepted one."""
    return without_article(answer.strip().lower()) in accepted


def without_article(phrase: str) -> str:
    first, _, rest = phrase.partition(" ")
    return rest if first in ("a", "an", "the") and rest else phrase


def noun(group: Group) -> str:
    """'camel' or 'camels'."""
    return group.kind if group.count == 1 else PLURAL[group.kind]


def be(group: Group) -> str:
    return "is" if group.count == 1 else "are"


def _indefinite(word: str, group: Group) -> str:
    """'an apple' or 'apples'."""
    return article(word) if group.count == 1 else PLURAL[word]


def phrase(group: Group, size: bool, numeral: bool) -> str:
    """'a large camel' (with `numeral` 'one large camel'), 'two camels'."""
    words = f"{group.size} {noun(group)}" if size else noun(group)
    return article(words) if group.count == 1 and not numeral else f"{NUMBERS[group.count]} {words}"


def _list(phrases: list[str]) -> str:
    """'a', 'a and b', 'a, b and c'."""
    *others, last = phrases
    return f"{', '.join(others)} and {last}" if others else last


# ------------------------------------------------------------------------------------------------------- captions
def caption(scene: Scene, rng: random.Random, detail: str | None = None) -> str:
    """One caption, which names every group with its number.

    Args:
        detail: "full" also tells every size and relation, and the background; "some" tells sizes and background;
            "brief" tells no size. By default 35% of the captions are full, 20% tell some and 45% are brief.
    """
    detail = detail or rng.choices(("full", "some", "brief"), (0.35, 0.2, 0.45))[0]
    groups, numeral = rng.sample(scene.groups, len(scene.groups)), rng.random() < 1 / 3
    where, sentences = WHERE[scene.background], []
    plain, sized = (_list([phrase(group, size, numeral) for group in groups]) for size in (False, True))
    if detail == "brief":
        if len(groups) == 2 and rng.random() < 0.3:
            plain = plain.replace(" and ", f" {relation(*groups)} ")
        return rng.choice((plain, f"{plain} {where}"))
    if detail == "full" and rng.random() < 0.3:  # every noun comes before its size
        sizes = [_size_sentence(group) for group in groups]
        return ". ".join([f"{plain} {where}", *sizes, *_relation_sentences(groups, rng)])
    if detail == "full" and len(groups) == 2 and rng.random() < 0.6:
        sized = sized.replace(" and ", f" {relation(*groups)} ")
    elif detail == "full":
        sentences = _relation_sentences(groups, rng)
    there = f"{where} there {be(groups[0])} {sized}"
    first = rng.choice((f"{sized} {where}", there, f"a picture of {sized} {where}"))
    return ". ".join([first, *sentences])


def _size_sentence(group: Group) -> str:
    return f"the {noun(group)} {be(group)} {group.size}"


def _relation_sentences(groups: list[Group], rng: random.Random) -> list[str]:
    """'the penguins are left of the camel', for each two groups."""
    pairs = list(combinations(groups, 2))
    turned = [pair if rng.random() < 0.5 else pair[::-1] for pair in rng.sample(pairs, len(pairs))]
    return [_relation_sentence(a, b) for a, b in turned]


def _relation_sentence(a: Group, b: Group) -> str:
    return f"the {noun(a)} {be(a)} {relation(a, b)} the {noun(b)}"


def statements(scene: Scene) -> list[str]:
    """Short true sentences: 'the penguins are small', 'there is one camel', 'the animals are penguins', …"""
    told = [f"the background is {GROUND[scene.background]}"]
    for group in scene.groups:
        told += [_size_sentence(group), f"there {be(group)} {NUMBERS[group.count]} {noun(group)}"]
        told += [f"{name} {be(group)} {_indefinite(group.kind, group)}" for name in references(scene, group)]
        told += [_relation_sentence(group, other) for other in scene.groups if other is not group]
    return told


def references(scene: Scene, group: Group, category: bool = True) -> list[str]:
    """How to refer to one group without its kind: 'the large animals', 'the thing at the top', …

    With `category` False, the references don't tell its category either.
    """
    others = [other for other in scene.groups if other is not group]
    rivals = [other for other in others if not category or CATEGORY[other.kind] == CATEGORY[group.kind]]
    word = CATEGORY[group.kind] if category else "thing"
    word = word if group.count == 1 else PLURAL[word]
    found = [] if rivals else [f"the {word}"]
    if place := scene.place(group):
        found.append(f"the {word} {place}")
    if others and all(other.size != group.size for other in rivals):
        found.append(f"the {group.size} {word}")
    return found


# ------------------------------------------------------------------------------------------------------- questions
def question(scene: Scene, type: str, rng: random.Random, group: Group | None = None) -> Question | None:
    """A question of the given type, or None if the scene allows none (a relation needs two groups).

    It is about `group`, or about a random group of the scene.

    Raises:
        ValueError: if `type` is neither one of `QUESTION_TYPES` nor "knowledge".
    """
    group = group or rng.choice(scene.groups)
    category = CATEGORY[group.kind]
    match type:
        case "kind":
            names = references(scene, group) + references(scene, group, category=False)
            texts = [f"what {be(group)} {name}?" for name in names]
            if len(scene.groups) == 1:
                texts += [f"what is {WHERE[scene.background]}?", "what is in the picture?"]
            return _name("kind", texts, group.kind, group, rng)
        case "category":
            texts = [f"what kind of thing {be(group)} {name}?" for name in references(scene, group, category=False)]
            texts += [f"what kind of thing is {words}?" for words in _sole_relations(scene, group)]
            asked = _name("category", texts, category, group, rng)
            sentences = (category_sentence(group.kind, plural) for plural in (False, True))  # "penguins are animals"
            return asked and replace(asked, accepted=(*asked.accepted, *map(without_article, sentences)))
        case "count":
            total = sum(other.count for other in scene.groups if CATEGORY[other.kind] == category)
            of_category = total in COUNTS and rng.random() < 0.25
            word, count = (category, total) if of_category else (group.kind, group.count)
            return _simple("count", f"how many {PLURAL[word]} are there?", NUMBERS[count], group.kind)
        case "size":
            text = rng.choice(("what size {} the {}?", "{} the {} large or small?")).format(be(group), noun(group))
            return _simple("size", text, group.size, group.kind)
        case "relation":
            return _ask_relation(scene, group, rng) if len(scene.groups) > 1 else None
        case "yes/no":
            return _ask_yes_no(scene, group, rng)
        case "background":
            text = rng.choice(("what is the background?", "where is this?"))
            return _simple("background", text, GROUND[scene.background])
        case "knowledge":  # two steps: see what is meant, then recall a fact about it
            if names := references(scene, group):
                fact = rng.choice(FACTS[group.kind])
                return _ask_fact("knowledge", fact, rng.choice(names), group.kind, group.count > 1)
            return None
    raise ValueError(f"type={type!r} is unknown: choose one of {', '.join(QUESTION_TYPES)}, knowledge.")


def _name(type: str, texts: list[str], word: str, group: Group, rng: random.Random) -> Question | None:
    """One of the questions that the word answers, if there are any."""
    if not texts:
        return None
    return Question(type, rng.choice(texts), _indefinite(word, group), (word, PLURAL[word]), group.kind)


def _simple(type: str, text: str, answer: str, subject: str | None = None) -> Question:
    return Question(type, text, answer, (without_article(answer),), subject)


def _sole_relations(scene: Scene, group: Group) -> list[str]:
    """'left of the camel', for each relation to another group that this group alone has."""
    found = []
    for other in scene.groups:
        if other is not group:
            related = [relation(third, other) for third in scene.groups if third is not other]
            if related.count(relation(group, other)) == 1:
                found.append(f"{relation(group, other)} the {noun(other)}")
    return found


def _ask_relation(scene: Scene, group: Group, rng: random.Random) -> Question:
    if (sole := _sole_relations(scene, group)) and rng.random() < 0.5:
        accepted = (group.kind, PLURAL[group.kind])
        return Question("relation", f"what is {rng.choice(sole)}?", f"the {noun(group)}", accepted, group.kind)
    other = rng.choice([other for other in scene.groups if other is not group])
    text = f"where {be(group)} the {noun(group)} relative to the {noun(other)}?"
    answers = [f"{relation(group, other)} the {name}" for name in (noun(other), other.kind, PLURAL[other.kind])]
    return Question("relation", text, answers[0], tuple(dict.fromkeys(answers)), group.kind)


def _ask_yes_no(scene: Scene, group: Group, rng: random.Random) -> Question:
    """Half of the answers are 'yes'."""
    true = rng.random() < 0.5
    forms = ["kind", "category", "count", "size", "background", *["relation"] * 2 * (len(scene.groups) > 1)]
    text = _claim(rng.choice(forms), scene, group, true, rng)
    return _simple("yes/no", f"{text}?", "yes" if true else "no", group.kind)


def _claim(form: str, scene: Scene, group: Group, true: bool, rng: random.Random) -> str:
    """'is there any camel', true of the scene or false."""

    def choose(truth, values):
        return truth if true else rng.choice([value for value in values if value != truth])

    subject = f"{be(group)} the {noun(group)}"
    match form:
        case "kind":
            return f"is there any {choose(group.kind, absent_kinds(scene, group.kind, rng))}"
        case "category":
            present = {CATEGORY[each.kind] for each in scene.groups}
            absent = [category for category in CATEGORIES if category not in present]
            return f"is there {article(choose(CATEGORY[group.kind], absent))}"
        case "count":
            asked = replace(group, count=choose(group.count, COUNTS))
            return f"{be(asked)} there {NUMBERS[asked.count]} {noun(asked)}"
        case "size":
            return f"{subject} {group.size if true else next(size for size in SIZES if size != group.size)}"
        case "background":
            return f"{subject} {WHERE[choose(scene.background, BACKGROUNDS)]}"
        case "relation":
            other = rng.choice([other for other in scene.groups if other is not group])
            return f"{subject} {choose(relation(group, other), RELATIONS)} the {noun(other)}"


def absent_kinds(scene: Scene, kind: str, rng: random.Random) -> list[str]:
    """Kinds that are not in the scene, in half of the cases those of the same category as `kind`."""
    present, alike = {group.kind for group in scene.groups}, rng.random() < 0.5
    return [other for other in KINDS if other not in present and (not alike or CATEGORY[other] == CATEGORY[kind])]


def fact_question(kind: str, rng: random.Random) -> Question:
    """One step: the question names the kind. It is about a fact or the category."""
    plural = rng.random() < 0.5
    subject = PLURAL[kind] if plural else article(kind)
    if rng.random() < 1 / 3:
        text = f"what kind of thing {'are' if plural else 'is'} {subject}?"
        return _simple("fact", text, category_sentence(kind, plural), kind)
    return _ask_fact("fact", rng.choice(FACTS[kind]), subject, kind, plural)


def _ask_fact(type: str, fact: Fact, subject: str, kind: str, plural: bool) -> Question:
    """The answer names the kind and tells the fact."""
    sentences = [fact.sentence(kind, plural), fact.sentence(kind, not plural)]
    short = [fact.phrase, f"{fact.verb} {fact.phrase}", f"{fact.verbs} {fact.phrase}"]
    accepted = tuple(without_article(form) for form in (*sentences, *short))
    return Question(type, fact.question(subject, plural), sentences[0], accepted, kind)
