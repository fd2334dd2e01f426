# ruff: noqa: RUF001
"""Every reason for which a row is rejected, and what comes close to it and passes."""

from __future__ import annotations

import pytest

from st_llm_embed.data.rows import Row, read_rows, rows_file
from st_llm_embed.synthesis.filters import check_language, check_texts
from st_llm_embed.synthesis.flaws import flaw_of
from st_llm_embed.synthesis.parsing import is_refusal

LONG = "Water boils sooner in the mountains, because less air weighs on it there than at the coast. "
NUMBERS = " ".join(map(str, range(7_000)))
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
    "long query": ("short-long", (NUMBERS[:2_100], LONG, LONG + "Not so."), "too long"),
    "long document": ("short-long", (QUERY, NUMBERS, LONG), "too long"),
    "rather long document": ("short-long", (QUERY, NUMBERS[:28_000], LONG), None),
    "long text of long-short": ("long-short", (NUMBERS[:28_000], "physics", "chemistry"), None),
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


FLAWED = {
    "broken characters": ["a \ufffd", "a\x00b", "a\x1bb", "a\x0crac{1}{2}", "a\x92s", "FÃ¼r groÃŸe BÃ¤ume."],
    "double escapes": [
        r"a caf\u00e9",
        r"\u0440\u0430\u0437",
        r"First this.\nThen that.",
        r"One\n\nTwo",
        r"He said \"no\" and left.",
        "It&#39;s late.",
        "caf&eacute;",
    ],
    "joined strings": ['Rain fell" + "all night.', 'Rain fell " +\n "all night.', "Rain fell'+'all night."],
    "placeholder": [
        "[Insert document here]",
        "Dear [Your Name], it rained.",
        "It is <your text>.",
        "<insert a query>",
        "{some sentence in German}",
        "Lorem ipsum dolor sit amet.",
        "[Name einfügen]",
        "[Insérer le texte]",
        "【请在此处填写内容】",
        "<positive document>",
        "[a short German query]",
    ],
    "repetition": [
        "It rained." + " the oil" * 900,
        "no " * 60,
        "下雨了。" * 40,
        "It rained all night, and nobody came to the old bridge by the mill. " * 6,
        "1. Turn the valve.\n2. Wait.\n" * 9,
        f"{LONG * 2}\n" * 4,
        "ha" * 400 + "!",
    ],
}


@pytest.mark.parametrize(("flaw", "text"), [(flaw, text) for flaw, texts in FLAWED.items() for text in texts])
def test_flawed_texts(flaw: str, text: str) -> None:
    assert flaw_of(text) == flaw
    problem = check_texts({"anchor": QUERY, "positive": f"{LONG}{text}", "negative": LONG}, "short-long")
    assert (problem and problem.reason) == flaw or text[0] in "<[{【"


@pytest.mark.parametrize(
    "text",
    [
        r'print("\u00e9".encode())',
        r"The class [\u4e00-\u9fff] matches Chinese characters.",
        r'printf("Done.\nBye.\n\n"); puts(\'a.\nb\');',
        r"%s is the place of the string. \n is a new line, \t a tab.",
        r"G\"odel wrote it as \"Uber formal unentscheidbare S\"atze in LaTeX, with $\neq$ and \nabla.",
        'greeting = "Hello, " + "world" + name + "!"',
        "Strings can be joined with '+', or with \"+\" in other languages.",
        '<insert id="add">INSERT INTO t VALUES (1)</insert> { insert into t values (2) }',
        "git clone https://example.org/<your-name>/repo.git && export KEY=<token>",
        r"\emph{the text} and \textbf{some answer}; see [your blog](https://example.org) and press [Insert]",
        'He said that "[my brother] was late" [sic]. List<String> a = [1, 2, 3];',
        "It prints cafÃ© for café.",
        "Ça coûte 5 € à l’hôtel « Zoë ».",
        "Row, row, row your boat\nGently down the stream\n" * 3,
        "na na na na na na na na, hey hey, goodbye",
        "CH3-CH2-CH2-CH2-CH2-CH2-CH2-CH2-CH2-CH2-CH2-COOH",
        "| a | b |\n" + "|---|---|\n" + "-" * 300,
        "Chapter 1 " + "." * 300,
        "0.1, 0.2, 0.3\n- one\n- two\n- three\n- four\n- five\n- six",
        "Line one\tof two\r\nline two\u2028\u200b\u00ad\ue000",
        "AT&T and Q&A; a < b && c > d; &lt;p&gt;",
    ],
)
def test_texts_without_a_flaw(text: str) -> None:
    assert flaw_of(text) is None


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
