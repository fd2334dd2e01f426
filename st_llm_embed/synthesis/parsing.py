# ruff: noqa: RUF001
"""From a chat completion's body to the fields that were asked for, or the reason why there are none.

Nothing in an answer is ever evaluated: JSON anywhere in the answer first, json-repair's grammar last.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import json_repair

from st_llm_embed.api.exchange import CONTENT_FILTER_CODES

MOST_BRACES = 50
"""Places in an answer at which JSON may begin; the words around it have few."""
MOST_CHARACTERS_REPAIRED = 200_000

_THOUGHTS_END = re.compile(r".*</think(?:ing)?>", re.DOTALL)
_END_OF_OBJECT = re.compile(r"\}\s*(?:```.*)?$", re.DOTALL)
_SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Rejection:
    """Why an answer or a row is not used."""

    reason: str
    """A few words, counted in the statistics: `refusal`, `truncated`, `not JSON`, ..."""
    detail: str = ""


def content_of(completion: dict[str, Any]) -> str | Rejection:
    """Return the text that the model wrote, or why there is none."""
    if error := completion.get("error"):
        code = error.get("code") if isinstance(error, dict) else None
        reason = "content filter" if isinstance(code, str) and code in CONTENT_FILTER_CODES else "request refused"
        return Rejection(reason, str(error)[:200])
    try:
        choice = completion["choices"][0]
        message, finish_reason = choice["message"], choice.get("finish_reason")
        content, refusal = message.get("content"), message.get("refusal")
    except (LookupError, TypeError, AttributeError):
        return Rejection("no completion", str(completion)[:200])
    text = _text_of(content)
    if refusal:
        return Rejection("refusal", str(refusal)[:200])
    if finish_reason in ("content_filter", "length"):
        return Rejection("truncated" if finish_reason == "length" else "content filter", text[-200:])
    return text if text.strip() else Rejection("empty answer")


def parse_completion(completion: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any] | Rejection:
    """Read the JSON object that the schema asks for out of a completion; see `content_of` and `parse_answer`."""
    content = content_of(completion)
    return content if isinstance(content, Rejection) else parse_answer(content, schema)


def parse_answer(content: str, schema: dict[str, Any]) -> dict[str, Any] | Rejection:
    """Read the JSON object that the schema asks for out of an answer.

    Args:
        content: what the model wrote.
        schema: an object schema whose properties are strings, integers of an enumeration or arrays of strings, all
            required.

    Returns:
        The properties; keys that were not asked for are omitted.
    """
    properties = schema["properties"]
    text = _without_thoughts(content.strip().removeprefix("\ufeff")).strip()
    try:
        answer = next((found for found in _objects(text) if properties.keys() <= found.keys()), None)
        if answer is None:
            answer = _only_list(text, properties) or _repaired(text, properties)
        if answer is None or not properties.keys() <= answer.keys():
            found = answer or next(_objects(text), None)
            return _without_object(text) if found is None else Rejection("missing key", _missing(found, properties))
    except _DuplicateKeyError as error:
        return Rejection("duplicate key", str(error))
    fields = {name: answer[name] for name in properties}
    for name, kind in properties.items():
        if not _has_type(fields[name], kind):
            return Rejection("wrong type", f"{name} is {type(fields[name]).__name__}: {str(fields[name])[:100]}")
        if any(_SURROGATE.search(text) for text in _texts(fields[name])):
            return Rejection("broken characters", name)
    return fields


def _text_of(content: Any) -> str:
    """Return the text of a message's content, which some servers send as a list of parts."""
    if isinstance(content, list):
        parts = [part.get("text") for part in content if isinstance(part, dict)]
        return "".join(text for text in parts if isinstance(text, str))
    return content if isinstance(content, str) else ""


def _without_thoughts(text: str) -> str:
    """Remove what a reasoning model thought aloud; the tag that begins it may be part of the prompt."""
    if text.startswith(("{", "[", "`", '"')):
        return text
    if text.startswith(("<think>", "<thinking>")) and not _THOUGHTS_END.match(text):
        return ""
    return _THOUGHTS_END.sub("", text)


def _objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield each JSON object in a text, outer ones before those within them."""
    decoder = json.JSONDecoder(object_pairs_hook=_unique_keys, strict=False)
    if text.startswith(('"', '{\\"')):  # JSON within a JSON string
        quoted = text if text.startswith('"') else f'"{text}"'
        try:
            text = str(decoder.decode(quoted))
        except (ValueError, RecursionError):
            return
    starts = [match.start() for match, _ in zip(re.finditer(r"\{", text), range(MOST_BRACES), strict=False)]
    for start in starts:
        try:
            yield decoder.raw_decode(text, start)[0]
        except _DuplicateKeyError:
            raise
        except (ValueError, RecursionError):
            continue


def _only_list(text: str, properties: dict[str, Any]) -> dict[str, Any] | None:
    """Take a bare list for the one list that was asked for."""
    start, end = text.find("["), text.rfind("]")
    if [kind["type"] for kind in properties.values()] != ["array"] or not 0 <= start < end:
        return None
    try:
        found = json.loads(text[start : end + 1], strict=False)
    except (ValueError, RecursionError):
        return None
    return dict.fromkeys(properties, found)


def _repaired(text: str, properties: dict[str, Any]) -> dict[str, Any] | None:
    """Read an object with a comma too many, single quotes or quotes within quotes.

    Nothing is guessed: the object is whole, has the keys asked for and no other, and every text in it is quoted.
    """
    start, end = text.find("{"), text.rfind("}") + 1
    if not 0 <= start < end <= start + MOST_CHARACTERS_REPAIRED or not _END_OF_OBJECT.match(text, end - 1):
        return None
    try:
        found = json_repair.loads(text[start:end], skip_json_loads=True)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or found.keys() != properties.keys():
        return None
    for name in properties:
        if len(re.findall(rf"""["']{name}["']\s*:""", text)) > 1:
            raise _DuplicateKeyError(name)
    quoted = all(_is_quoted(value, text) for part in found.values() for value in _texts(part))
    return found if quoted else None


def _is_quoted(value: str, text: str) -> bool:
    beginning = re.match(r"[\w ]*", value.strip(), re.ASCII)
    return beginning is None or re.search(rf"""["'\u201c\u2018]\s*{beginning[0][:40]}""", text) is not None


def _without_object(text: str) -> Rejection:
    return Rejection("refusal" if is_refusal(text) else "not JSON", text[:200])


def _missing(found: dict[str, Any], properties: dict[str, Any]) -> str:
    return ", ".join(name for name in properties if name not in found)


def _has_type(value: Any, kind: dict[str, Any]) -> bool:
    if kind["type"] == "array":
        return isinstance(value, list) and all(isinstance(item, str) for item in value)
    if kind["type"] == "integer":
        return isinstance(value, int) and not isinstance(value, bool) and value in kind["enum"]
    return isinstance(value, str)


def _texts(value: Any) -> list[str]:
    return [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]


class _DuplicateKeyError(ValueError):
    pass


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = dict(pairs)
    if len(keys) < len(pairs):
        raise _DuplicateKeyError(next(key for number, (key, _) in enumerate(pairs) if key in dict(pairs[:number])))
    return keys


def is_refusal(text: str) -> bool:
    """Return whether a text begins with the words of a model that declines."""
    return _REFUSAL.match(text[:_REFUSAL_CHARACTERS]) is not None


# Refusals in the words that models use. Only set phrases count: people, too, are sorry and cannot help, and rows are
# full of them.
_REFUSAL_PHRASES = (
    r"(i['\u2019]?m |i am )?(very |so |really )?(sorry|apologi[sz]e)?[\s,.]*(but )?"
    r"(i|we)( can ?not| can['\u2019]?t| won['\u2019]?t|['\u2019]m (unable|not able) to| am (unable|not able) to)"
    r" (assist|help( you)? with (that|this|your request)\b|comply\b|fulfil+ (that|this|your|the) request"
    r"|(create|generate|produce|provide|write)( (that|this|such|any|the requested|explicit|harmful|hateful))?"
    r"( (kind|type|sort)s? of)? (content|examples?|material|responses?|texts?)\b)",
    r"as an? (large )?(ai )?language model\b",
    r"as an (ai|artificial intelligence)( assistant| model)?, i\b",
    r"(tut mir|es tut mir) leid,? (aber )?(ich kann|dabei kann ich|das kann ich|diese anfrage).{0,40}nicht"
    r".{0,20}(helfen|weiterhelfen|erfüllen|nachkommen|erstellen|bearbeiten)",
    r"als (ki|ki-(sprach)?modell|künstliche intelligenz|sprachmodell)\b",
    r"(je suis )?désolée?,? (mais )?je ne (peux|suis) pas (en mesure de |vous |t['\u2019])?(aider"
    r"|répondre à (cette|votre) demande|(générer|fournir|créer|produire) (ce|du|de) )",
    r"en tant qu(e modèle|['\u2019](ia|intelligence artificielle|assistant ia))\b",
    r"lo siento,? (pero )?no puedo (ayudar(te|le)? con|asistir|cumplir con (esa|esta|tu|su)"
    r"|(generar|proporcionar|crear) (ese|este|contenido))",
    r"como (modelo de lenguaje|ia|inteligencia artificial),",
    r"mi dispiace,? (ma )?non posso (aiutart?[lv]?[aie]? con|soddisfare|assister"
    r"|(generare|fornire|creare) (quest|contenut))",
    r"(come modello linguistico|in quanto (ia|modello linguistico))\b",
    r"(sinto muito|desculpe|lamento),? (mas )?não posso (ajudar com|ajudá-l[oa] com|atender|cumprir"
    r"|(gerar|fornecer|criar) (ess|est|conteúdo))",
    r"como (um )?modelo de linguagem\b",
    r"(het )?spijt me,? (maar )?(ik kan|daar kan ik|hier kan ik|aan dit verzoek kan ik).{0,40}(niet|geen).{0,20}"
    r"(helpen|voldoen|genereren|verstrekken)",
    r"als (ai|ai-)?taalmodel\b",
    r"(przykro mi|przepraszam),? (ale )?nie mogę (pomóc w tym|spełnić|wygenerować|udzielić pomocy)",
    r"jako model językowy\b",
    r"(извините|простите|к сожалению),? (но )?я не могу (помочь с (этим|данн)|выполнить (этот|ваш|данный) запрос"
    r"|(создать|сгенерировать|предоставить) (так|эт|подобн))",
    r"(я (—|-) |как )(языковая модель|искусственный интеллект|ии-ассистент)\b",
    r"üzgünüm,? (ama |ancak |fakat )?(bu|size bu) (istek|isteği|talep|talebi|konuda)"
    r".{0,40}(yardımcı olamam|yerine getiremem)",
    r"maaf,? (tetapi |tapi |namun )?saya tidak (dapat|bisa) (membantu (dengan|permintaan)|memenuhi permintaan)",
    r"(rất tiếc|xin lỗi),? (nhưng )?tôi không thể (hỗ trợ|đáp ứng|thực hiện) yêu cầu",
    r"(很|非常)?(抱歉|对不起)[，,。]?\s*(但|但是)?我?(无法|不能)(满足|协助|完成|回应|处理|提供|生成|帮助)(你|您|该|这|此|相关|任何)",
    r"作为(一个|一名)?(人工智能|ai|大型?语言模型|语言模型)",
    r"申し訳(ありません|ございません|ない)(です)?が?[、,。]?\s*(その|この|ご)?(リクエスト|要望|依頼|要求|内容の生成)に?は?.{0,12}"
    r"(応じ|お応え|お答え|対応|できません)",
    r"(私は)?(ai|人工知能)(言語モデル|アシスタント)(として|なので|である)",
    r"죄송(합니다|하지만|하지만요).{0,6}(그|이|해당)? ?(요청|부탁).{0,15}(수 없습니다|드릴 수 없|어렵습니다)",
    r"(저는 )?(ai|인공지능) ?(언어 모델|어시스턴트)(로서|이기|입니다)",
    r"(عذرًا|عذراً|عذرا|آسف|أعتذر)[،,]? (ولكن |لكن )?(لا يمكنني|لا أستطيع) (المساعدة في|تلبية|تقديم هذا|إنشاء هذا)",
    r"(متأسفم|متاسفم)[،,]? (اما |ولی )?(من )?نمی\u200c?توانم (در این مورد|این درخواست|به این درخواست)",
    r"(क्षमा करें|माफ़ कीजिए|मुझे खेद है)[,،]? (लेकिन )?मैं (इस|यह|आपके) (अनुरोध|सामग्री|तरह).{0,30}(नहीं|असमर्थ)",
)

_REFUSAL = re.compile(rf"\W*({'|'.join(_REFUSAL_PHRASES)})", re.IGNORECASE)
_REFUSAL_CHARACTERS = 300
"""A phrase is at the beginning."""
