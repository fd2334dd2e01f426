from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from st_llm_embed.data.rows import read_rows, rows_file
from st_llm_embed.languages import LANGUAGE_CODES
from st_llm_embed.synthesis.language_id import CLOSE_LANGUAGES, LANGUAGE_SCRIPTS, confidence_in, contradicts

TEXTS = {
    "de": "Der alte Zug hielt am Abend noch einmal kurz vor der Brücke.",
    "en": "The old train stopped once more before the bridge in the evening.",
    "sw": "Treni la zamani lilisimama tena jioni kabla ya kufika kwenye daraja.",
    "ru": "Старый поезд вечером ещё раз остановился перед мостом.",
    "mn": "Хуучин галт тэрэг орой гүүрний өмнө дахин нэг удаа зогслоо.",
    "ar": "توقف القطار القديم مرة أخرى قبل الجسر في المساء.",
    "fa": "قطار قدیمی عصر یک بار دیگر پیش از پل توقف کرد.",
    "hi": "पुरानी रेलगाड़ी शाम को पुल से पहले एक बार फिर रुकी।",
    "th": "รถไฟขบวนเก่าหยุดอีกครั้งก่อนถึงสะพานในตอนเย็น",
    "km": "រថភ្លើងចាស់បានឈប់ម្តងទៀតមុនស្ពាននៅពេលល្ងាច។",
    "zh": "傍晚时分，那列旧火车在桥前又停了一次。",  # noqa: RUF001
    "ja": "古い列車は夕方、橋の手前でもう一度止まりました。",
    "ko": "낡은 기차가 저녁에 다리 앞에서 한 번 더 멈췄다.",
}


@pytest.mark.parametrize("language", TEXTS)
def test_a_text_contradicts_every_language_but_its_own(language: str) -> None:
    assert contradicts(TEXTS[language], language) is None
    for other in TEXTS:
        if other != language:
            verdict = contradicts(TEXTS[language], other)
            assert verdict is not None and verdict.confidence > 0.8, other  # noqa: PT018


def test_what_is_found_is_named_with_its_probability() -> None:
    found = [contradicts(TEXTS["en"], asked) for asked in ("km", "de")]
    assert [verdict and verdict.found for verdict in found] == ["Latin", "en"]
    assert confidence_in(TEXTS["de"], "de") == pytest.approx(1, abs=0.01)
    assert confidence_in(TEXTS["de"], "en") == pytest.approx(0, abs=0.01)
    assert confidence_in("kurz", "de") is confidence_in(TEXTS["km"], "und") is None


def test_most_texts_in_a_wrong_language_are_caught() -> None:
    rows = [row for row in read_rows(rows_file("embedded")) if len(row.anchor) >= 60]
    generator = random.Random(0)  # noqa: S311
    verdicts = [
        contradicts(row.anchor, asked) is not None
        for row in rows
        if (asked := generator.choice(sorted(LANGUAGE_CODES.values()))) != row.language
        and not any({asked, row.language} <= group for group in CLOSE_LANGUAGES)
    ]
    assert len(verdicts) > 500
    assert sum(verdicts) >= 0.95 * len(verdicts)


@pytest.mark.parametrize(
    ("text", "asked"),
    [
        ("", "en"),
        ("1 234 567,89 % (2024)", "th"),
        ("MacBook Pro 16", "ja"),
        ("https://example.org/a/very/long/path/to/some/document.html", "am"),
        ("นโยบาย", "en"),
        # technical words of another language among those of the one asked for
        ("React का useEffect hook component render होने के बाद चलता है, dependency array खाली हो तो एक बार", "hi"),
        ("Docker の docker compose up -d コマンドで container を background で起動する方法", "ja"),
        # languages that are close to the one asked for
        ("Jeg vet ikke hvorfor toget alltid er forsinket om morgenen.", "da"),
        ("Ne znam zašto vlak uvijek kasni ujutro, ali navikao sam se.", "sr"),
        ("Saya tidak tahu mengapa kereta selalu terlambat di pagi hari.", "ms"),
        # the detector does not know Sundanese, Sindhi and Yiddish
        ("Kuring henteu terang naha karéta api sok telat isuk-isuk.", "su"),
        ("איך ווייס נישט פארוואס די באן איז שטענדיק שפעט אין דער פרי.", "yi"),  # noqa: RUF001
        # more than one script
        ("Ne znam zašto voz uvek kasni ujutru, ali navikao sam se.", "sr"),
        ("Не знам зашто воз увек касни ујутру, али навикао сам се.", "sr"),  # noqa: RUF001
        (TEXTS["en"], "und"),
    ],
)
def test_not_knowing_is_not_held_against_a_text(text: str, asked: str) -> None:
    assert contradicts(text, asked) is None


def test_every_language_has_scripts_whose_letters_are_known() -> None:
    assert set(LANGUAGE_SCRIPTS) <= set(LANGUAGE_CODES.values())
    for language in ("am", "bn", "el", "gu", "he", "hy", "ka", "kn", "lo", "ml", "my", "or", "pa", "si", "ta", "te"):
        assert contradicts(TEXTS["en"], language) is not None


@given(st.text(alphabet=st.characters(), max_size=200), st.sampled_from(sorted(LANGUAGE_CODES.values())))
@settings(deadline=None, max_examples=300)
def test_any_text_has_a_verdict(text: str, code: str) -> None:
    verdict = contradicts(text, code)
    assert verdict is None or 0 < verdict.confidence <= 1 + 1e-6
