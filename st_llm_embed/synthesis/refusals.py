# ruff: noqa: RUF001
"""Answers in which a model declines, in the words that models use for it.

Only the set phrases count: people, too, are sorry and cannot help, and rows are full of them.
"""

from __future__ import annotations

import re

_PHRASES = (
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

_REFUSAL = re.compile(rf"\W*({'|'.join(_PHRASES)})", re.IGNORECASE)
_MOST_CHARACTERS = 300
"""A phrase stands at the beginning."""


def is_refusal(text: str) -> bool:
    """Whether a text begins with the words of a model that declines."""
    return _REFUSAL.match(text[:_MOST_CHARACTERS]) is not None
