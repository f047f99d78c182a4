"""The sixty kinds of things in the drawn world, their categories, and what is known about them.

The facts are true of the real things. They are in the text corpus only: no caption and no image tells them.
"""

from dataclasses import dataclass

_NAMES = {
    "animal": "penguin elephant turtle octopus frog whale spider snake pig cow koala panda rabbit rooster bee snail "
    "camel monkey",
    "food": "banana strawberry apple pineapple watermelon eggplant mushroom hamburger pizza doughnut",
    "vehicle": "car bicycle airplane sailboat rocket helicopter tractor bus",
    "instrument": "guitar violin trumpet saxophone piano",
    "tool": "hammer pencil key camera microscope",
    "plant": "cactus tulip sunflower rose palm_tree fir_tree",
    "building": "house castle church factory",
    "garment": "dress boot hat crown",
}
CATEGORY = {name.replace("_", " "): category for category, names in _NAMES.items() for name in names.split()}
CATEGORIES = tuple(_NAMES)
KINDS = tuple(CATEGORY)
# No text joins the facts of these kinds to a scene: for them a model must combine seeing and knowing by itself.
NEVER_TWO_STEP = frozenset(KINDS[2::5])


@dataclass(frozen=True)
class Fact:
    """What is known about a kind: "a penguin eats fish", "penguins eat fish"; `topic` is a key of `QUESTIONS`."""

    topic: str
    verb: str
    verbs: str
    phrase: str

    def sentence(self, kind: str, plural: bool) -> str:
        return f"{PLURAL[kind]} {self.verbs} {self.phrase}" if plural else f"{article(kind)} {self.verb} {self.phrase}"


# By topic: the verb in the singular and the plural, and the question. {do} is "does" or "do", {be} "is" or "are".
_VERBS = {
    "home": ("lives", "live"),
    "diet": ("eats", "eat"),
    "origin": ("comes from", "come from"),
    "serving": ("is eaten", "are eaten"),
    "route": ("travels", "travel"),
    "drive": ("is moved by", "are moved by"),
    "playing": ("is played", "are played"),
    "stage": ("is heard", "are heard"),
    "use": ("is used for", "are used for"),
    "user": ("is used by", "are used by"),
    "soil": ("grows", "grow"),
    "part": ("has", "have"),
    "resident": ("shelters", "shelter"),
    "inside": ("contains", "contain"),
    "wearer": ("is worn by", "are worn by"),
    "occasion": ("is worn", "are worn"),
    "category": ("is", "are"),
}
QUESTIONS = {
    "home": "where {do} {subject} live?",
    "diet": "what {do} {subject} eat?",
    "origin": "where {do} {subject} come from?",
    "serving": "how {be} {subject} eaten?",
    "route": "where {do} {subject} travel?",
    "drive": "what moves {subject}?",
    "playing": "how {be} {subject} played?",
    "stage": "where {be} {subject} heard?",
    "use": "what {be} {subject} used for?",
    "user": "who uses {subject}?",
    "soil": "where {do} {subject} grow?",
    "part": "what {do} {subject} have?",
    "resident": "who {do} {subject} shelter?",
    "inside": "what {do} {subject} contain?",
    "wearer": "who wears {subject}?",
    "occasion": "when {be} {subject} worn?",
    "category": "what kind of thing {be} {subject}?",
}
_TOPICS = {
    "animal": ("home", "diet"),
    "food": ("origin", "serving"),
    "vehicle": ("route", "drive"),
    "instrument": ("playing", "stage"),
    "tool": ("use", "user"),
    "plant": ("soil", "part"),
    "building": ("resident", "inside"),
    "garment": ("wearer", "occasion"),
}
# The phrases of the two topics of each kind's category.
_PHRASES = {
    "penguin": ("on the antarctic ice", "fish"),
    "elephant": ("on the savanna", "leaves and bark"),
    "turtle": ("in a shell", "jellyfish"),
    "octopus": ("on the sea floor", "crabs"),
    "frog": ("in a pond", "flies"),
    "whale": ("in the open ocean", "tiny krill"),
    "spider": ("in a web", "trapped insects"),
    "snake": ("in tall grass", "mice"),
    "pig": ("in a sty", "kitchen scraps"),
    "cow": ("in a barn", "hay"),
    "koala": ("in australia", "eucalyptus leaves"),
    "panda": ("in chinese mountains", "bamboo"),
    "rabbit": ("in a burrow", "carrots"),
    "rooster": ("in a henhouse", "grain"),
    "bee": ("in a hive", "nectar"),
    "snail": ("under wet leaves", "lettuce"),
    "camel": ("in the desert", "thorny bushes"),
    "monkey": ("in the jungle", "nuts and fruit"),
    "banana": ("tropical plantations", "after peeling"),
    "strawberry": ("low garden beds", "with cream"),
    "apple": ("an orchard", "in a pie"),
    "pineapple": ("hawaii", "in rings"),
    "watermelon": ("a long vine", "on hot days"),
    "eggplant": ("a vegetable patch", "in a curry"),
    "mushroom": ("the forest floor", "in soup"),
    "hamburger": ("a hot grill", "with fries"),
    "pizza": ("a stone oven", "in slices"),
    "doughnut": ("a bakery", "with coffee"),
    "car": ("on highways", "gasoline engines"),
    "bicycle": ("on narrow paths", "pedals"),
    "airplane": ("between airports", "jets"),
    "sailboat": ("across the bay", "the wind"),
    "rocket": ("into space", "burning hydrogen"),
    "helicopter": ("over city roofs", "spinning rotors"),
    "tractor": ("across fields", "diesel engines"),
    "bus": ("from stop to stop", "electric motors"),
    "guitar": ("with a pick", "in rock bands"),
    "violin": ("with a bow", "in orchestras"),
    "trumpet": ("with three valves", "in parades"),
    "saxophone": ("with a reed", "in jazz clubs"),
    "piano": ("with ten fingers", "in concert halls"),
    "hammer": ("driving nails", "carpenters"),
    "pencil": ("writing notes", "students"),
    "key": ("opening locks", "janitors"),
    "camera": ("taking photos", "tourists"),
    "microscope": ("seeing cells", "scientists"),
    "cactus": ("in dry sand", "sharp spines"),
    "tulip": ("in dutch fields", "bulbs"),
    "sunflower": ("in full sun", "oily seeds"),
    "rose": ("on a bush", "thorns"),
    "palm tree": ("on warm coasts", "coconuts"),
    "fir tree": ("in cold forests", "needles and cones"),
    "house": ("families", "kitchens"),
    "castle": ("knights", "thrones"),
    "church": ("priests", "altars"),
    "factory": ("workers", "machines"),
    "dress": ("dancers", "at parties"),
    "boot": ("cowboys", "in the rain"),
    "hat": ("magicians", "on stage"),
    "crown": ("queens", "at coronations"),
}


def article(phrase: str) -> str:
    """'a penguin', 'an octopus'."""
    return f"an {phrase}" if phrase[0] in "aeiou" else f"a {phrase}"


def _plural(noun: str) -> str:
    if noun.endswith(("s", "ch")):
        return f"{noun}es"
    return f"{noun[:-1]}ies" if noun.endswith("y") and noun[-2] not in "aeiou" else f"{noun}s"


PLURAL = {noun: _plural(noun) for noun in (*KINDS, *CATEGORIES, "thing")}
FACTS = {
    kind: tuple(
        Fact(topic, *_VERBS[topic], phrase)
        for topic, phrase in zip(_TOPICS[CATEGORY[kind]], _PHRASES[kind], strict=True)
    )
    for kind in KINDS
}


def category_sentence(kind: str, plural: bool) -> str:
    """'a penguin is an animal', 'penguins are animals'."""
    category = CATEGORY[kind]
    return f"{PLURAL[kind]} are {PLURAL[category]}" if plural else f"{article(kind)} is {article(category)}"
