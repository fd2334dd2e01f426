"""Texts that are in another language than the one asked for.

Only confident findings count: by the script, and by py3langid (Naive Bayes over byte n-grams; it knows 90 of our 93
languages). scripts/measure_language_id.py prints what is rejected and what is caught.
"""

from __future__ import annotations

import re
from functools import cache, lru_cache
from importlib.resources import files
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import yaml

from st_llm_embed.languages import LANGUAGE_CODES

if TYPE_CHECKING:
    from py3langid.langid import LanguageIdentifier

LEAST_BYTES = 24
"""Least length of a text's letters in UTF-8, hence 24 Latin, 12 Cyrillic or 8 Chinese ones; names are shorter."""
LEAST_SHARE = 0.1
"""Least share of letters in a script of the language; the others may be names and technical words."""
LEAST_CONFIDENCE = 0.9
"""Least probability of the language that is found, together with those close to it."""
MOST_DOUBT = 0.001
"""Greatest probability of the language asked for, together with those close to it."""
MOST_CHARACTERS = 300
"""The rest is not read."""

# The detector mixes up members of each in Tatoeba or NTREX, or they share most of their words. Codes that are not ours
# are languages of the detector that it finds in texts of their neighbours.
_CLOSE = (
    "da nn no sv, is no, af fy nl, cs sk, bs hr sl sr, bg mk sr, be ru uk, an ca es ext gl oc pt, ga gd, "
    "ace id jv ms su, az tr, kk ky uz, ug uz, gom hi mr ne sa, as bn, he yi, sd ur, wuu yue zh, ar ary "
    "arz, en pcm, bcl tl, xh zu, ku sdh, lt ltg lv"
)
CLOSE_LANGUAGES = tuple(frozenset(codes.split()) for codes in _CLOSE.split(", "))
"""Groups of languages that are not distinguished."""

_TABLE: dict[str, dict[str, str]] = yaml.safe_load(
    (files("st_llm_embed") / "synthesis" / "scripts.yaml").read_text(encoding="utf-8")
)
LANGUAGE_SCRIPTS = {
    code: {script for script, entry in _TABLE.items() if code in entry["languages"].split()}
    for entry in _TABLE.values()
    for code in entry["languages"].split()
}
"""Scripts of the languages that have another one than Latin."""

_LETTERS = sorted(
    (int(first, 16), int(last, 16), script)
    for script, entry in _TABLE.items()
    for first, last in (bounds.split("-") for bounds in entry["letters"].split())
)
_SCRIPTS = sorted({script for *_, script in _LETTERS})
_FIRSTS = np.array([first for first, *_ in _LETTERS])
_LASTS = np.array([last for _, last, _ in _LETTERS])
_SCRIPT_NUMBERS = np.array([_SCRIPTS.index(script) for *_, script in _LETTERS])

_ADDRESS = re.compile(r"\S*(?:://|@|www\.)\S*")
_LATIN_WORDS = re.compile(r"[A-Za-z]+")


class Contradiction(NamedTuple):
    """What a text is in instead of the language asked for."""

    found: str
    """Name of the script that most letters are of, or BCP-47 code of the language."""
    confidence: float
    """Share of the letters that are not of the language's scripts, or probability of the language found."""


def contradicts(text: str, code: str) -> Contradiction | None:
    """Return what a text is in, if it is surely not in a language.

    Short texts, languages that the detector does not know and languages that are close to the one asked for contradict
    nothing, nor does any text contradict a code that is not in LANGUAGE_CODES. A wrong script does in any language.
    Only the first MOST_CHARACTERS are read.
    """
    if code not in LANGUAGE_CODES.values():
        return None
    lengths = _bytes_by_script(_ADDRESS.sub(" ", text[:MOST_CHARACTERS]))
    scripts = LANGUAGE_SCRIPTS.get(code, {"Latin"})
    total = sum(lengths.values())
    own = sum(lengths[script] for script in scripts)
    if total - own >= LEAST_BYTES and own < LEAST_SHARE * total:
        return Contradiction(max(lengths, key=lengths.__getitem__), (total - own) / total)
    probabilities = _probabilities(text, code)
    if probabilities is None:
        return None
    found = max(probabilities, key=probabilities.__getitem__)
    confidence, doubt = (_with_close(probabilities, language) for language in (found, code))
    if found not in LANGUAGE_CODES.values() or confidence < LEAST_CONFIDENCE or doubt > MOST_DOUBT:
        return None
    return Contradiction(found, confidence)


def confidence_in(text: str, code: str) -> float | None:
    """Return the probability of a language and those close to it; None where only the script is looked at."""
    probabilities = _probabilities(text, code)
    return None if probabilities is None else _with_close(probabilities, code)


def language_of(text: str) -> str:
    """Return the code of the most probable language, one of the detector's, of however short a text."""
    return _identifier().classify(text[:MOST_CHARACTERS])[0]


@lru_cache(maxsize=8)
def _probabilities(text: str, code: str) -> dict[str, float] | None:
    """Return the detector's probability of each language; None for a short text or a language it does not know."""
    identifier = _identifier()
    if code not in identifier.nb_classes:
        return None
    text = _ADDRESS.sub(" ", text[:MOST_CHARACTERS])
    scripts = LANGUAGE_SCRIPTS.get(code, {"Latin"})
    lengths = _bytes_by_script(text)
    if sum(lengths[script] for script in scripts) < LEAST_BYTES:
        return None
    return dict(identifier.rank(text if "Latin" in scripts else _LATIN_WORDS.sub(" ", text)))


def _with_close(probabilities: dict[str, float], code: str) -> float:
    close = {code}.union(*(group for group in CLOSE_LANGUAGES if code in group))
    return sum(probabilities.get(near, 0.0) for near in close)


def _bytes_by_script(text: str) -> dict[str, int]:
    """Count the UTF-8 bytes of the letters of each script; what is not a letter of our languages is not counted."""
    codes = np.frombuffer(text.encode("utf-32-le", "surrogatepass"), dtype="<u4")
    places = np.searchsorted(_FIRSTS, codes, side="right") - 1
    letters = (places >= 0) & (codes <= _LASTS[places])
    lengths = 1 + (codes >= 0x80).astype(np.int64) + (codes >= 0x800)
    sums = np.bincount(_SCRIPT_NUMBERS[places[letters]], lengths[letters], minlength=len(_SCRIPTS))
    return dict(zip(_SCRIPTS, sums.astype(int).tolist(), strict=True))


@cache
def _identifier() -> LanguageIdentifier:
    # Reading the model takes most of a second.
    from py3langid.langid import MODEL_FILE, LanguageIdentifier

    return LanguageIdentifier.from_model_file(MODEL_FILE, norm_probs=True)
