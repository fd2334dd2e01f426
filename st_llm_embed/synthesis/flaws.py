"""Texts in which something went wrong when they were written, as far as that shows for certain.

Code, lists, poems with a refrain and formulas are not flawed.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable

LEAST_REPEATED_CHARACTERS = 100
LONG_PHRASE, MOST_SHORT, MOST_LONG = 100, 5, 3
"""Characters of a long phrase; how often a short and a long one may be repeated at a text's end, as refrains are."""
_ENDING = 20
MOST_MISREAD = 2

# Characters that were lost, that are not a text's, or that were read as single bytes.
_BROKEN = re.compile(r"[\ufffd-\uffff\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f]")
_QUOTED = re.compile(r"""\"[^"]*\"|`[^`]*`|(?<!\w)'[^']*'(?!\w)""")
_ESCAPED_LETTERS = re.compile(r"(?:\\u[0-9a-fA-F]{4})+")
_ESCAPED_QUOTES = re.compile(r'(?<![^\s(])\\"\w[^"]*\\"(?![^\s.,;:!?)])')
_ESCAPED_LINES = re.compile(r"[.!?:;,)。？！](?:\\n)+[^\s\\]|(?:\\n){2}")  # noqa: RUF001
_ESCAPED_ENTITIES = re.compile(
    r"[^\W\d_]&(?:#\d{2,5}|#x[0-9a-fA-F]{2,4}|quot|apos|[A-Za-z](?:acute|grave|uml|cedil));"
)
_JOIN = re.compile(r"""([\"'])(?:\s+\+\s+|(?<=\w.)\+(?=.\w))\1""")
_PLACEHOLDER = re.compile(
    r"""
    [\[<{]\s*(?:please\s)?(?:insert|insér|inserir|einfügen|вставьте|wstaw)\w*\s(?!into\b)[^\[\]<>{}=\n]+[\]>}](?!\()
    | \[\s*(?:your|ihre?|votre|su|tu|seu|uw|ваше)\s[^\[\]\n]{0,30}
      (?:name|nom|nombre|nome|naam|имя|company|address|e?-?mail|phone|title|position|signature|text|answer)
      \b[^\[\]\n]{0,20}\](?!\()
    | (?<!\w)[<{]\s*(?:your|some|the)\s[^<>{}\n]{0,60}
      (?:text|sentence|query|question|document|passage|answer|content|example|label|translation|phrase)
      \b[^<>{}\n]{0,30}[>}]
    | [\[【「<]\s*(?:请?在?此处|插入|填写|ここに|挿入|여기에)[^\]】」>\n]{0,40}[\]】」>]
    | \A\s*[<\[{]\s*[^\W\d]\w*(?:\s[\w'-]+)+\s*[>\]}]\s*\Z
    | \blorem\s+ipsum\s+dolor\b
    """,
    re.IGNORECASE | re.VERBOSE,
)


def flaw_of(text: str) -> str | None:
    """Return what is wrong with a text: `broken characters`, `double escapes`, ...; None if nothing shows."""
    return next((flaw for flaw, shows in _FLAWS if shows(text)), None)


def _is_broken(text: str) -> bool:
    """Return whether a text has broken characters, or is UTF-8 that was read as Windows-1252.

    One or two characters that were read so may be an example, in a text about encodings.
    """
    if _BROKEN.search(text):
        return True
    try:
        return sum(character > "\x7f" for character in text.encode("cp1252").decode()) > MOST_MISREAD
    except UnicodeError:
        return False


def _is_double_escaped(text: str) -> bool:
    """Return whether a text has escapes of JSON or HTML within its words or sentences, where code has none."""
    for found in _ESCAPED_LETTERS.finditer(text):
        letters, around = json.loads(f'"{found[0]}"'), text[: found.start()][-1:] + text[found.end() :][:1]
        if letters[0].isalpha() and (len(letters) > 1 or any(map(str.isalpha, around))):
            return True
    lines = "\n" not in text and _ESCAPED_LINES.search(_QUOTED.sub("", text))
    quotes = text.count('\\"') == text.count('"') and _ESCAPED_QUOTES.search(text)
    return bool(lines or quotes or _ESCAPED_ENTITIES.search(text))


def _is_joined(text: str) -> bool:
    """Return whether a text has ``" + "`` between its parts; in code, a string begins before it."""
    return any(
        len(re.findall(rf"(?<!\w){found[1]}|{found[1]}(?!\w)", text[: found.start()])) % 2 == 0
        for found in _JOIN.finditer(text)
    )


def _is_repeated(text: str) -> bool:
    """Return whether a text ends in one phrase over and over; a line of dashes is not a phrase."""
    text = text.rstrip(" .?!:;,…。？！\n")  # noqa: RUF001
    place = len(text) - _ENDING
    for _ in range(5):  # a phrase may hold its own ending more than once
        place = text.rfind(text[-_ENDING:], 0, place + _ENDING - 1)
        if place < 0:
            return False
        phrase = len(text) - _ENDING - place
        most = MOST_LONG if phrase >= LONG_PHRASE else MOST_SHORT
        length = max(LEAST_REPEATED_CHARACTERS, phrase * most + 1)
        if len(text) >= length and text[-length:-phrase] == text[-length + phrase :]:
            return any(map(str.isalnum, text[-phrase:]))
    return False


_FLAWS: tuple[tuple[str, Callable[[str], object]], ...] = (
    ("broken characters", _is_broken),
    ("double escapes", _is_double_escaped),
    ("joined strings", _is_joined),
    ("placeholder", _PLACEHOLDER.search),
    ("repetition", _is_repeated),
)
