"""Penn Treebank tokenization of captions without Java.

It matches the tokenizer of the COCO evaluation on captions (CoreNLP 3.4.1's PTBTokenizer with -preserveLines
-lowerCase, followed by removal of punctuation). The rules were found by running that program on probes. Known
differences, all rare in captions: HTML entities, tags with attributes, a single letter with a period before the first
word of a sentence ("plan B. The"), letters added to Unicode after 2012, and dialect spellings with an apostrophe that
no rule names.
"""

import re
import unicodedata

# What the COCO evaluation removes. Its list also has brackets in capitals, but their tokens are in lower case by then.
PUNCTUATION = {"''", "'", "``", "`", ".", "?", "!", ",", ":", "-", "--", "...", ";"}

# Abbreviations that keep their period; the second list only with a capital, the third only before a number.
ABBREVIATIONS = """
adj adm adv al ala alex apr ariz assn assoc asst atty attys aug ave bancorp bhd bldg blvd brig bros calif capt cf
cie cmdr co col colo comdr conn corp cos cpl ct dak dec dept det dr drs elec ens esq est etc ext feb fla fri ft ga
gen gov govs hon inc ind insp intl invt jan jos jr jul jun kan kans ky lieut lt ltd maj mar md messrs mfg mich minn
mlle mme mo mon mont mr mrs ms msgr mt mtg natl neb nev nov oct okla penn pfc ph plc ppte ppty pres prof profs pte
ptes pty ptys pvt rd rep reps rev rt sen sens sep sept seq sfc sgt spc sq sr st ste supt supts sys tel tenn thu
thurs tue tues univ va vs vt wed wis wisc wm wyo
""".split()
CAPITALIZED = "ark az del ill la mass miss ore pa tex wash".split()
BEFORE_NUMBER = "art ca fig figs no nos op pp prop".split()

SPLIT = {"cannot": "can not", "gonna": "gon na", "wanna": "wan na", "gotta": "got ta", "gimme": "gim me"}
SPLIT |= {"lemme": "lem me", "more'n": "more 'n", "'tis": "'t is", "'twas": "'t was"}
QUOTES_AND_DASHES = set("«»‹›‘’‛“”–—―…")
ALONE = {"[": "-lsb-", "]": "-rsb-", "{": "-lcb-", "}": "-rcb-", "¢": "cents", "£": "#", "¤": "$", "€": "$", "₠": "$"}
ALONE |= {"½": "1/2", "¼": "1/4", "¾": "3/4", "⅓": "1/3", "⅔": "2/3"}


def _letters() -> str:
    """The inside of a character class: letters and combining marks of the basic multilingual plane."""
    is_letter = [
        unicodedata.category(chr(code)) in ("Lu", "Ll", "Lt", "Lm", "Lo", "Mn", "Mc") and not 0xFE00 <= code < 0xFE10
        for code in range(0x10000)
    ]
    edges = [code for code in range(1, 0x10000) if is_letter[code] != is_letter[code - 1]]
    return "\u00ad" + "".join(f"{chr(a)}-{chr(b - 1)}" for a, b in zip(edges[::2], edges[1::2], strict=False))


def _rules() -> re.Pattern:
    """One alternative for each kind of token. The first match wins, so the order matters."""
    L, A = f"[{_letters()}]", "['’]"  # letter, apostrophe
    N = rf"[{_letters()}0-9]"  # letter or digit
    clitic = rf"{A}(?:[msd]|re|ve|ll)(?![a-z])"
    prefix = rf"(?:[dol]{A}(?=[a-z][a-z]))?"  # o'clock, d'Angelo
    hyphen = "[-‐‑_]"
    split = "|".join(SPLIT).replace("'", A)
    alternatives = [
        r"</?[a-z][^<>\s]*>",
        r"https?://[^\s\"<>|(){}]*[^\s\"<>|(){}.,!?:;]|www\.[^\s\"<>|(){}]*[^\s\"<>|(){}.,!?:;]",
        r"[a-z0-9][\w.-]*@[\w-]+(?:\.[\w-]+)*",
        rf"{N}*?{L}(?=n{A}t(?![a-z]))|n{A}t(?![a-z])",  # do n't
        rf"(?P<split>{split})(?!{hyphen}?{N}|{clitic})",
        rf"(?:ed|ph)\.d\.|(?:(?:[a-z]\.)+[a-z]?|(?:{'|'.join(ABBREVIATIONS)})\.)(?:-{N}+)+",
        rf"(?:[a-z]\.){{2,}}(?!{L})|(?:{'|'.join(ABBREVIATIONS)}|[a-z])\.(?!{L})",
        rf"(?=(?-i:[A-Z]))(?:{'|'.join(CAPITALIZED)})\.(?!{L})|(?:{'|'.join(BEFORE_NUMBER)})\.(?=\s*[0-9])",
        r"[<>]?[:;=][-o*']?[()dpo\\{@|\]](?![a-z])|\^_\^|-_-",  # smileys
        r"[0-9]{1,4}[- ][0-9]{1,4}/[0-9]{1,4}",  # 5 1/2
        r"(?:\([0-9]{2,3}\) ?|[0-9]{2,4}[- ])?[0-9]{2,4}[- ][0-9]{3,4}[- ]?[0-9]{3,5}",  # a telephone number
        r"[a-z0-9]+(?:-[a-z]+){0,2}(?:/[a-z0-9]+(?:-[a-z]+){0,2}){1,2}",  # and/or
        rf"{prefix}{N}+(?:{hyphen}{prefix}{N}+)*(?:-(?:[a-z]\.){{2,}})|[0-9]+(?:[.,][0-9]+)+(?:-{N}+)+",
        r"(?<!-)[-+]?[0-9]*(?:[.:,][0-9]+)+",
        r"(?<!-)[-+][0-9]+(?![-0-9a-z])",
        r"(?-i:[A-Z]+(?:[+&][A-Z]+)+)|c\+\+|[cf]#",  # AT&T
        rf"{prefix}{N}+(?:{hyphen}{prefix}{N}+)+|[dol]{A}[a-z][a-z]{N}*",
        r"(?-i:[A-Z]*)\$",
        rf"{A}n{A}|{A}n(?![a-z])|{A}[0-9]0s|{A}[0-9][0-9](?![0-9\"])|{A}(?:em|till?|cause)(?![a-z])",
        rf"(?:c{A}mon|s{A}mores|li{A}l|ev{A}ry|[no]{A}er|e{A}er|na?t{A}l|cap{A}n|nor{A}easter)(?![a-z])",
        rf"(?:ol|somethin){A}(?![a-z])|cont{A}d\.",
        rf"[a-z]+[aeiouy](?!{clitic}){A}(?:[aeiou]|(?-i:[A-Z]))[a-z]*",  # ma'am
        rf"(?!.{clitic})(?-i:[A-HJ-XZn]){A}[a-z]{{2,}}",  # M'Gregor
        rf"[y]{A}(?=[a-z])",  # y'all
        clitic,
        rf"{L}{N}*(?:[.!?]{L}{N}*)*(?:-{N}+)*|{N}+",
        r"\#[a-z]+|@[a-z_][a-z0-9_]*",
        r"[?!]+|_+|\*+|\#+|@+|<<|>>",
        r"-{5,}",
        r"[]\[(){}=+\\/><`%^&|~¡-¿×÷‖-⁄⁰-₎₠-₤€℀-⅞←-⯿、。〒・！-￦]",
    ]
    return re.compile("|".join(alternatives), re.IGNORECASE)


_TOKEN = _rules()


def tokenize(caption: str) -> str:
    """The tokens of a caption, in lower case and without punctuation, joined by spaces.

    Characters that no rule matches are removed, such as most emoji, as the Java program does.
    """
    tokens: list[str] = []
    for match in _TOKEN.finditer(caption):
        token = match.group().lower()
        if match.group("split"):
            tokens += SPLIT[token.replace("’", "'")].split()
        elif token not in PUNCTUATION and token not in QUOTES_AND_DASHES:
            tokens.append(_written(token))
    return " ".join(tokens)


def _written(token: str) -> str:
    """A token as the Java program writes it: currency and brackets by name, a straight apostrophe in n't and 's."""
    if token in ALONE:
        return ALONE[token]
    if re.fullmatch(r"’(?:[msd]|re|ve|ll)|n’t", token):
        return token.replace("’", "'")
    token = token.replace("(", "-lrb-").replace(")", "-rrb-").replace("\u00ad", "")
    # "5 1/2" is one token, so its space must not separate tokens.
    return token.replace(" ", "\u00a0")
