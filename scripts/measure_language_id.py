"""Measure st_llm_embed.synthesis.language_id on the rows that ship with the package.

    python scripts/measure_language_id.py

Prints what is rejected of texts that are said to be in their language, text by text (many of them are rightly: labels
in English, questions in one language about another); then, by language, the share of texts that is caught when another
language had been asked for, in three settings: another script, the same script, and a close language. Texts of
less than twice LEAST_BYTES are left out of the table.
"""

from __future__ import annotations

import random
import time
from collections import defaultdict

from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.synthesis.language_id import CLOSE_LANGUAGES, LANGUAGE_SCRIPTS, LEAST_BYTES, contradicts


def main() -> None:
    """Print rejected texts, the table of what is caught, and texts a second."""
    texts = sample_texts()
    contradicts("The model is read before the clock starts, which takes most of a second.", "en")
    start = time.process_time()
    verdicts = [contradicts(text, language) for language, text in texts]
    seconds = time.process_time() - start
    print("| asked for | found | confidence | text |\n|---|---|---|---|")
    for (language, text), verdict in zip(texts, verdicts, strict=True):
        if verdict is not None:
            print(f"| {language} | {verdict.found} | {verdict.confidence:.3f} | {text[:100]} |".replace("\n", " "))
    rejected = sum(verdict is not None for verdict in verdicts)
    print(f"\n{rejected} of {len(texts):,} texts rejected, {len(texts) / seconds:,.0f} texts per CPU second\n")
    print_caught(texts)


def print_caught(texts: list[tuple[str, str]]) -> None:
    """Ask for another language than a text is in, and count by the text's language how often that is noticed."""
    generator = random.Random(0)  # noqa: S311
    languages = sorted({language for language, _ in texts})
    counts: dict[str, dict[str, list[bool]]] = defaultdict(lambda: defaultdict(list))
    for language, text in texts:
        if len(text.encode()) < 2 * LEAST_BYTES or contradicts(text, language) is not None:
            continue
        asked = generator.choice([other for other in languages if other != language])
        setting = setting_of(language, asked)
        for row in (language, "all"):
            counts[row][setting].append(contradicts(text, asked) is not None)
    settings = ("another script", "same script", "close")
    print(f"| language | {' | '.join(f'{setting}, caught of' for setting in settings)} |\n|---|---|---|---|")
    for language in (*languages, "all"):
        cells = [counts[language][setting] for setting in settings]
        print(f"| {language} | {' | '.join(f'{sum(cell)} of {len(cell)}' for cell in cells)} |")


def setting_of(language: str, asked: str) -> str:
    """How far two languages are apart."""
    if any({language, asked} <= group for group in CLOSE_LANGUAGES):
        return "close"
    scripts = [LANGUAGE_SCRIPTS.get(code, {"Latin"}) for code in (language, asked)]
    return "same script" if scripts[0] & scripts[1] else "another script"


def sample_texts() -> list[tuple[str, str]]:
    """Language and text of all sides of the packaged rows."""
    texts = []
    for row in read_rows(rows_file("embedded")):
        texts.append((row.language, row.anchor))
        texts += [(row.target_language, text) for text in (row.positive, row.negative) if text is not None]
    return texts


if __name__ == "__main__":
    main()
