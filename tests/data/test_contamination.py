from __future__ import annotations

import gzip
import json
import random
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from st_llm_embed import InputError
from st_llm_embed.data.contamination import EvaluationTexts
from st_llm_embed.data.rows import read_rows, rows_file

SENTENCES = {
    "English": "The old bridge over the river was closed after heavy rain last week.",
    "Hindi": "पुराने पुल को पिछले हफ्ते भारी बारिश के बाद बंद कर दिया गया।",
    "Arabic": "أغلق الجسر القديم فوق النهر بعد الأمطار الغزيرة الأسبوع الماضي.",
    "Chinese": "上周大雨过后、河上的旧桥被关闭了。",
    "Japanese": "先週の大雨のあと、川にかかる古い橋は閉鎖されました。",
    "Thai": "สะพานเก่าข้ามแม่น้ำถูกปิดหลังฝนตกหนักเมื่อสัปดาห์ที่แล้ว",
    "Korean": "지난주 폭우가 내린 뒤 강 위의 오래된 다리가 폐쇄되었다.",
}


def index(tmp_path: Path, *texts: str) -> EvaluationTexts:
    path = tmp_path / "evaluation.txt"
    path.write_text("".join(text + "\n" for text in texts), encoding="utf-8")
    return EvaluationTexts.read([path])


def sample_texts() -> list[str]:
    rows = list(read_rows(rows_file("embedded")))
    return [text for row in rows for text in (row.anchor, row.positive) if len(text.split()) > 6]


def edited(text: str, generator: random.Random) -> str:
    words = text.split()
    position = generator.randrange(len(words))
    edit = generator.choice(("replace", "insert", "leave out"))
    words[position : position + (edit != "insert")] = [] if edit == "leave out" else ["quizzaciously"]
    return " ".join(words)


def test_planted_sentences_are_found_and_clean_ones_are_not(tmp_path: Path) -> None:
    texts = sample_texts()
    planted, clean = texts[::2], set(texts[1::2]) - set(texts[::2])
    evaluation = index(tmp_path, *(text.replace("\n", " ") for text in planted))
    generator = random.Random(0)  # noqa: S311
    for text in planted:
        changed = "  ".join(text.swapcase().split()) + " !"
        for same in (text, changed, text.replace(" ", ""), text.replace(",", " \u2013")):
            match = evaluation.match(same)
            assert match is not None, same
            assert match.kind == "exact"
    found = [evaluation.match(edited(text, generator)) for text in planted]
    assert sum(match is not None and match.kind == "one-word edit" for match in found) >= 0.99 * len(planted)
    hits = [text for text in clean if (match := evaluation.match(text)) and not match.low_entropy]
    assert len(hits) <= 0.001 * len(clean)


@pytest.mark.parametrize("language", SENTENCES)
def test_one_edit_is_found_and_two_are_not(language: str, tmp_path: Path) -> None:
    sentence = SENTENCES[language]
    evaluation = index(tmp_path, "Something else entirely, to begin with.", sentence)
    unspaced = " " not in sentence
    words = list(sentence) if unspaced else sentence.split()
    separator = "" if unspaced else " "
    other = "鳥" if unspaced else "birds"
    letters = [number for number, word in enumerate(words) if word not in ",.。、ำ"]  # NFKC makes two of the last
    for position in letters:
        for edit in ([other], [other, words[position]], []):
            text = separator.join([*words[:position], *edit, *words[position + 1 :]])
            match = evaluation.match(text)
            assert match is not None, text
            assert match.kind == ("exact" if text == sentence else "one-word edit")
            assert not match.low_entropy
    for first, second in ((letters[0], letters[-1]), (letters[1], letters[4])):
        twice = [other if number in (first, second) else word for number, word in enumerate(words)]
        assert evaluation.match(separator.join(twice)) is None


@pytest.mark.parametrize(
    ("evaluation_text", "text", "kind"),
    [
        ("one two three four five six seven eight", "two three four one five six seven eight", None),
        # The two differ in a combining vowel.
        ("कि किताब मेज पर रखी हुई थी", "की किताब मेज पर रखी हुई थी", "one-word edit"),
    ],
)
def test_order_and_combining_vowels_count(evaluation_text: str, text: str, kind: str | None, tmp_path: Path) -> None:
    match = index(tmp_path, evaluation_text).match(text)
    assert (match and match.kind) == kind


@pytest.mark.parametrize(
    ("evaluation_text", "text", "low_entropy"),
    [
        ("sports", "Sports", True),
        ("lost_or_stolen_card", "lost or stolen card", True),
        ("how are you doing today", "How are you doing today?", False),
        ("how are you doing today", "How are we doing today?", True),
        ("how are you all doing today", "How are we all doing today?", False),
        ("体育新闻", "体育新闻", True),
        ("昨天下午我们去了公园", "昨天下午我们去了公园。", False),
        ("กีฬาฟุตบอล", "กีฬาฟุตบอล", True),
    ],
)
def test_short_texts_are_reported_apart(evaluation_text: str, text: str, low_entropy: bool, tmp_path: Path) -> None:
    match = index(tmp_path, evaluation_text).match(text)
    assert match is not None
    assert match.low_entropy is low_entropy


@pytest.mark.parametrize("text", ["", " ", "?!…", "sport", "a", "\ud800", "word " * 300_000])
def test_what_has_nothing_in_common_does_not_match(text: str, tmp_path: Path) -> None:
    assert index(tmp_path, "dog", "dog cat", "…", SENTENCES["English"]).match(text) is None


def test_every_string_of_every_format_is_read(tmp_path: Path) -> None:
    def text(name: str) -> str:
        return f"the text that can be found in {name}"

    folder = tmp_path / "sets" / "nested"
    folder.mkdir(parents=True)
    (folder / "a.txt").write_text(text("a") + "\r\n\n" + text("aa"), encoding="utf-8")
    (folder / "b.jsonl").write_text(json.dumps({"id": 3, "query": text("b")}) + "\n\n", encoding="utf-8")
    (folder / "c.jsonl.gz").write_bytes(gzip.compress(json.dumps({"texts": [text("c"), [text("cc")]]}).encode()))
    (folder / "d.json.gz").write_bytes(gzip.compress((json.dumps({"t": text("d")}) + "\n").encode() * 2))
    (folder / "e.json").write_text(json.dumps([{"answers": {"text": [text("e")]}}], indent=2), encoding="utf-8")
    table = pa.table({"one": [text("f"), None], "many": [[text("ff")], []], "in": [{"x": text("fff")}, None]})
    pq.write_table(table, folder / "f.parquet")
    (folder / "g.csv").write_text(f'name,body\n007,"{text("g")}"\n')
    (folder / "README.md").write_text(text("readme"))
    evaluation = EvaluationTexts.read([tmp_path / "sets"])
    for name in ("a", "aa", "b", "c", "cc", "d", "e", "f", "ff", "fff", "g"):
        match = evaluation.match(text(name).upper())
        assert match is not None, name
        assert match.kind == "exact"
        assert match.file.name[0] == name[0]
    # One word is another: any of the files could be meant, and the first one given is named.
    match = evaluation.match(text("readme"))
    assert match is not None
    assert (match.kind, match.file.name) == ("one-word edit", "a.txt")
    paths = [folder / "e.json", folder / "a.txt"]
    match = EvaluationTexts.read(paths).match(text("readme"))
    assert match is not None
    assert match.file == paths[0]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("missing.txt", None, "no file or folder"),
        ("texts.zip", "a,b", "is not a file or folder of evaluation texts that end in"),
        ("empty.txt", "\n \n", "holds no text"),
        ("numbers.jsonl", '{"id": 1}\n', "holds no text"),
        ("broken.jsonl", '{"a": "b"}\n{"a": \n', "line 2 is not JSON"),
        ("README.md/", "nothing", "is not a file or folder of evaluation texts that end in"),
    ],
)
def test_a_bad_file_is_one_message(name: str, content: str | None, message: str, tmp_path: Path) -> None:
    path = tmp_path / name
    if content is not None:
        path.write_text(content)
    with pytest.raises(InputError, match=message) as error:
        EvaluationTexts.read([tmp_path if name.endswith("/") else path])
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)
