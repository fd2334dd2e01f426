# ruff: noqa: RUF001
"""Every reason for which a row is rejected, and what comes close to it and passes."""

from __future__ import annotations

import pytest

from st_llm_embed.data.rows import Row, read_rows, rows_file
from st_llm_embed.synthesis.filters import check_language, check_texts
from st_llm_embed.synthesis.parsing import is_refusal

LONG = "Water boils sooner in the mountains, because less air weighs on it there than at the coast. "
QUERY = "why does water boil sooner in the mountains"
TEXTS = {
    "empty": ("sts", ("a cat", " \u200b\n", "a dog"), "empty text"),
    "a symbol": ("short-short", ("laughing face", "😂"), None),
    "refusal": ("short-long", (QUERY, "I'm sorry, but I can't assist with that request. " * 2, LONG), "refusal"),
    "regret": (
        "sts",
        ("I'm sorry I can't come to your party.", "Regrettably I won't be there.", "I'm glad to come."),
        None,
    ),
    "negative is the positive": ("sts", ("a cat sleeps", "A dog  barks", "a DOG barks"), "negative equals positive"),
    "anchor as positive": ("sts", ("A cat sleeps", "a cat  sleeps", "a dog barks"), "anchor repeated"),
    "anchor as negative": ("bitext", ("A cat sleeps", "Eine Katze schläft", "a cat sleeps"), "anchor repeated"),
    "query in the positive": (
        "short-long",
        (QUERY + "?", f"Why does  water boil sooner in the mountains? {LONG}", LONG),
        "query leaks into positive",
    ),
    "Chinese query in the positive": (
        "short-long",
        ("为什么山上的水更早沸腾？", "很多人问为什么山上的水更早沸腾。" + "气压低的地方沸点也低。" * 6, LONG),
        "query leaks into positive",
    ),
    "query in the positive in other words": ("short-long", (QUERY, LONG, LONG + "Not so."), None),
    "a name in the positive": (
        "short-long",
        ("boiling point of water", f"The boiling point of water: {LONG}", LONG),
        None,
    ),
    "text in its counterpart": ("long-long", (LONG, LONG + LONG), "query leaks into positive"),
    "short document": ("short-long", (QUERY, "Less air.", LONG), "too short"),
    "short hard negative": ("short-long", (QUERY, LONG, "No."), "too short"),
    "short text of long-long": ("long-long", ("Less air weighs on it.", LONG), "too short"),
    "short text of long-short": ("long-short", ("ok", "yes", "no"), None),
    "long query": ("short-long", ("why " * 501, LONG, LONG + "Not so."), "too long"),
    "long document": ("short-long", (QUERY, LONG * 400, LONG), "too long"),
    "rather long document": ("short-long", (QUERY, LONG * 300, LONG), None),
    "long text of long-short": ("long-short", (LONG * 300, "physics", "chemistry"), None),
    "a text as a label": ("long-short", (LONG, LONG * 3, "chemistry"), "too long"),
    "a sentence as a label": ("long-short", (LONG, LONG, "chemistry"), "anchor repeated"),
    "a long label": ("long-short", (LONG, "a question about the boiling point of water in the mountains", "no"), None),
    "labels alike": ("long-short", (LONG, "Physics", "physics "), "negative equals positive"),
    "label in the text": ("long-short", (LONG + "That is physics.", "physics", "chemistry"), None),
}


@pytest.mark.parametrize(("task_type", "texts", "reason"), TEXTS.values(), ids=TEXTS.keys())
def test_texts(task_type: str, texts: tuple[str, ...], reason: str | None) -> None:
    problem = check_texts(dict(zip(("anchor", "positive", "negative"), texts, strict=False)), task_type)
    assert (problem and problem.reason) == reason


@pytest.mark.parametrize(
    ("row", "wrong"),
    [
        ({"language": "de", "anchor": "why does water boil sooner in the mountains?"}, True),
        ({"language": "de", "anchor": "Warum kocht Wasser in den Bergen früher als am Meer?"}, False),
        ({"language": "de", "anchor": "Why not?"}, False),
        ({"language": "de", "positive": LONG * 2}, True),
        ({"language": "de", "negative": LONG * 2}, True),
        (
            {"language": "de", "positive": LONG * 2, "instruction": "Given a German question, find English pages."},
            False,
        ),
        ({"language": "de", "positive": LONG * 2, "instruction": "Given a German question, find pages."}, True),
        ({"language": "de", "positive": LONG * 2, "instruction": "Polish the answer to a question."}, False),
        ({"language": "de", "positive": LONG * 2, "task_type": "long-short"}, False),
        ({"language": "de", "target_language": "en", "positive": LONG * 2, "task_type": "bitext"}, False),
        ({"language": "de", "target_language": "fr", "positive": LONG * 2, "task_type": "bitext"}, True),
        ({"language": "ru", "anchor": "почему вода в горах закипает раньше", "positive": "Воздух там легче."}, False),
        ({"language": "el", "anchor": "почему вода в горах закипает раньше", "positive": "!"}, True),
        ({"language": "br", "anchor": "perak e verv an dour abretoc'h er menezioù", "positive": "An aer."}, False),
    ],
)
def test_languages(row: dict[str, str], wrong: bool) -> None:
    german = {
        "anchor": "Warum kocht Wasser in den Bergen früher?",
        "positive": "Weil die Luft dort dünner ist als am Meer.",
    }
    problem = check_language(Row.model_validate({"instruction": "Find the answer."} | german | row))
    assert (problem and problem.reason) == ("wrong language" if wrong else None)


REFUSALS = [
    "I'm sorry, but I can't assist with that request.",
    "I\u2019m sorry, I cannot help with that.",
    "Sorry, but I can't comply.",
    "As an AI language model, I don't have opinions.",
    "**I can't generate content of that kind.**",
    "Es tut mir leid, aber ich kann bei dieser Anfrage nicht helfen.",
    "Je suis désolé, mais je ne peux pas répondre à cette demande.",
    "Lo siento, pero no puedo ayudarte con eso.",
    "Mi dispiace, ma non posso soddisfare questa richiesta.",
    "Desculpe, mas não posso atender a esse pedido.",
    "Het spijt me, maar ik kan je daar niet mee helpen.",
    "Przykro mi, ale nie mogę spełnić tej prośby.",
    "Извините, но я не могу помочь с этим запросом.",
    "Üzgünüm, ancak bu isteği yerine getiremem.",
    "Maaf, saya tidak dapat memenuhi permintaan itu.",
    "Xin lỗi, tôi không thể đáp ứng yêu cầu này.",
    "抱歉，我无法满足您的请求。",
    "申し訳ありませんが、そのリクエストにはお応えできません。",
    "죄송하지만 그 요청은 도와드릴 수 없습니다.",
    "عذرًا، لا يمكنني المساعدة في ذلك.",
    "متأسفم، نمی\u200cتوانم به این درخواست پاسخ دهم.",
    "क्षमा करें, मैं इस अनुरोध को पूरा नहीं कर सकता।",
]
NOT_REFUSALS = [
    "I'm sorry I can't come to your party.",
    "I can't create a new account on my phone.",
    "I cannot help my son with his homework, who can?",
    "As an AI researcher, she wrote three books.",
    "Why does the chatbot say: I can't assist with that?",
    "Es tut mir leid, ich kann heute nicht kommen.",
    "Als Kilometergeld gibt es 30 Cent.",
    "Como iaido se conoce un arte marcial.",
    "Извините, я не могу найти свой билет.",
    "申し訳ありませんが、返品はお受けできません。",
]


@pytest.mark.parametrize("text", [*REFUSALS, *NOT_REFUSALS])
def test_refusals_and_what_people_say(text: str) -> None:
    assert is_refusal(text) == (text in REFUSALS)


def test_nothing_in_the_sample_is_rejected() -> None:
    for row in read_rows(rows_file("embedded")):
        texts = {name: text for name in ("anchor", "positive", "negative") if (text := getattr(row, name)) is not None}
        assert (check_texts(texts, row.task_type) or check_language(row)) is None, row.key
