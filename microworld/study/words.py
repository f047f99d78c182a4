"""The study's answers in words. Every sentence is made from the figures: when they turn, it turns."""

from collections.abc import Sequence

from microworld.study.plots import NAMES
from microworld.study.results import Estimate, Results
from microworld.study.rows import BY_NAME

VQA, CAPTIONS, RETRIEVAL, TEXT = NAMES
SAID = {**NAMES, CAPTIONS: "the share of true captions"}
RATES = ("lr-1e-5", "paper", "lr-1e-4", "lr-3e-4", "lr-1e-3")


def number(value: float, sign: bool = False) -> str:
    """0.71, or with its sign: −0.41, +0.003, where two digits would say nothing."""
    text = f"{value:+.{3 if abs(value) < 0.01 else 2}f}" if sign else f"{value:.2f}"
    return "0" if text in ("+0.000", "-0.000") else text.replace("-", "−")


def interval(found: Estimate, sign: bool = False) -> str:
    return f"{number(found.low, sign)} to {number(found.high, sign)}"


def listed(parts: Sequence[str], word: str = "and") -> str:
    return parts[0] if len(parts) == 1 else f"{', '.join(parts[:-1])} {word} {parts[-1]}"


def sentence(text: str) -> str:
    return f"{text[0].upper()}{text[1:]}."


def changes(results: Results, names: Sequence[str], measure: str = VQA) -> str:
    """What becomes of a measure in each row, against what they are compared with, which is one for all."""
    against = BY_NAME[names[0]].against
    before = number(results.of(against, measure).value)
    found = {name: results.difference(name, against, measure) for name in names}
    rises = [name for name in names if found[name].low > 0]
    falls = [name for name in names if found[name].high < 0]
    alike = [name for name in names if not found[name].is_apart_from_zero]

    def to(name: str) -> str:
        return f"to {number(results.of(name, measure).value)} {BY_NAME[name].phrase} ({by(found[name])})"

    turns = [
        f"{verb} {listed([to(name) for name in group])}"
        for verb, group in (("rises", rises), ("falls", falls))
        if group
    ]
    said = []
    if len(rises + falls) == 1:
        name, verb = (rises + falls)[0], "rises" if rises else "falls"
        after = number(results.of(name, measure).value)
        said.append(f"{BY_NAME[name].phrase}, {SAID[measure]} {verb} from {before} to {after} ({by(found[name])})")
    elif turns:
        said.append(f"from {before} {BY_NAME[against].phrase}, {SAID[measure]} {' and '.join(turns)}")
    if alike:
        each = [f"{BY_NAME[name].phrase} ({by(found[name])})" for name in alike]
        said.append(f"no difference in {SAID[measure]} is detected {listed(each, 'or')}")
    return " ".join(map(sentence, said))


def by(difference: Estimate) -> str:
    return f"{number(difference.value, True)}, {interval(difference, True)}"


def above_blind(results: Results, name: str) -> str:
    """How far a row's VQA lies above that of the same models without the image."""
    found, gap = results.of(name, VQA), results.above_blind(name)
    reached = f"{BY_NAME[name].phrase}, VQA reaches {number(found.value)} ({interval(found)})"
    if not gap.is_apart_from_zero:
        return sentence(f"{reached}, which cannot be told from the same models' answers without the image")
    where = "above" if gap.value > 0 else "below"
    return sentence(f"{reached}, {number(abs(gap.value))} {where} the same models' answers without the image")


def forgetting(results: Results, names: Sequence[str]) -> str:
    """What the language model has lost or won in each row, against what it was before any training."""
    lost, kept = [], []
    for name in names:
        found = results.difference(name, "untrained", TEXT)
        (lost if found.high < 0 else kept).append(f"{rate_of(results, name)} ({by(found)})")
    said = []
    if kept:
        said.append(f"no loss in text QA is detected at a learning rate of {listed(kept, 'or')}")
    if lost:
        said.append(f"BART forgets how to answer questions about a text at {listed(lost)}")
    return " ".join(sentence(text) for text in said)


def rate_of(results: Results, name: str) -> str:
    rate = next(iter(results.runs[name].values()))["settings"]["options"]["learning_rate"]
    return f"{rate:.0e}".replace("e-0", "e\N{NON-BREAKING HYPHEN}")


def chosen(results: Results, names: Sequence[str]) -> str:
    """What validation chooses, and what the test split then says of it."""
    best = results.best(names)
    on_validation, on_test = results.of(best, VQA, "validation"), results.of(best, VQA)
    return (
        f"Validation chooses: {BY_NAME[best].label} ({number(on_validation.value)} there, "
        f"{number(on_test.value)}, {interval(on_test)}, on test)."
    )


def answer_types(results: Results, names: Sequence[str]) -> list[str]:
    said = [above_blind(results, "paper")] if "paper" in names else []
    return [*said, changes(results, ["ours"])] if results.has("paper", "ours") else said


def answer(
    results: Results, names: Sequence[str], measures: Sequence[str] = (VQA,), choose: bool = False
) -> list[str]:
    said = [changes(results, names[1:], measure) for measure in measures]
    return [*said, chosen(results, names)] if choose else said


def answer_rates(results: Results, names: Sequence[str]) -> list[str]:
    rates = [name for name in RATES if name in names]
    best = results.best(rates)
    found = results.of(best, VQA)
    said = [
        f"Of these learning rates (the recipe's own is {rate_of(results, 'paper')}) validation chooses "
        f"{rate_of(results, best)}, with which VQA is {number(found.value)} ({interval(found)}) on test."
    ]
    if results.has("untrained"):
        said.append(forgetting(results, rates))
    return said


def summary(results: Results) -> list[str]:
    """What a reader in a hurry should know, most important first."""
    points = []
    if results.has("paper"):
        points.append(above_blind(results, "paper"))
        for names, measure in (
            (("ours",), VQA),
            (("without-icti",), VQA),
            (("without-itcl", "without-ttdm"), RETRIEVAL),
            (("random-bart", "frozen-bart"), VQA),
            (("images-800", "images-80"), VQA),
        ):
            if there := [name for name in names if results.has(name)]:
                points.append(changes(results, there, measure))
    if results.has("untrained") and (rates := [name for name in RATES if results.has(name)]):
        points.append(forgetting(results, rates))
    return points
