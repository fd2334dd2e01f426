"""The EOS contract: the last attended token of every text is its end token, exactly once, also after truncation.

The end token is what the post-processor puts after a text, EOS by default, whatever its name.

The embedding is the hidden state of that token (paper, section 2.2), so a text without it gets a
meaningless vector, and nothing warns. Flags such as ``add_eos_token`` do not hold the contract: transformers 5 ignores
them where a tokenizer.json exists, and setting them at run time drops BOS. A post-processor does.
"""

from __future__ import annotations

from sentence_transformers import SentenceTransformer
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerBase

from st_llm_embed.errors import InputError

SHORT_TEXT = "a probe"

CUT_AT = 64
"""Tokens. A text need not fill thousands of them to be cut off like one that does."""


def append_eos(tokenizer: PreTrainedTokenizerBase) -> None:
    """Make the tokenizer end every text with one end token, and keep what it puts in front.

    That is the special token that it puts last already, since an embedder was trained to be read there; else EOS.

    Raises:
        InputError: the tokenizer has no EOS token, is not a fast one, or changes the text itself for special tokens.
    """
    if not tokenizer.is_fast:
        raise InputError(
            f"The base model's tokenizer is a {type(tokenizer).__name__}, not a fast one that keeps EOS. Convert it "
            "to a fast tokenizer, or choose another base."
        )
    before, after = map(tokenizer.convert_ids_to_tokens, _tokens_around(tokenizer))
    end = after[-1] if after else tokenizer.eos_token
    if end is None:
        raise InputError(
            "The base model's tokenizer has no EOS token, and the embedding is read at it. "
            "Set eos_token in its tokenizer_config.json, or choose another base."
        )
    first = [*before, "$A", end]
    second = [*(f"{token}:1" for token in before), "$B:1", f"{end}:1"]
    tokenizer.backend_tokenizer.post_processor = TemplateProcessing(
        single=first,
        pair=[*first, *second],
        special_tokens=[(t, tokenizer.convert_tokens_to_ids(t)) for t in {*before, end}],
    )


def end_token_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """Return the special token that the tokenizer puts after a text; None if it puts none.

    That is EOS, but some models end texts in another token: Qwen3-Embedding in <|endoftext|>, its EOS is <|im_end|>.
    """
    after = _tokens_around(tokenizer)[1]
    return after[-1] if after else None


def _tokens_around(tokenizer: PreTrainedTokenizerBase) -> tuple[list[int], list[int]]:
    """Return the special tokens that the tokenizer puts before and after a text."""
    bare = tokenizer(SHORT_TEXT, add_special_tokens=False)["input_ids"]
    whole = tokenizer(SHORT_TEXT)["input_ids"]
    for start in range(len(whole) - len(bare) + 1):
        if whole[start : start + len(bare)] == bare:
            return whole[:start], whole[start + len(bare) :]
    raise InputError(
        f"The tokenizer reads {SHORT_TEXT!r} as {tokenizer.convert_ids_to_tokens(whole)} with special tokens and as "
        f"{tokenizer.convert_ids_to_tokens(bare)} without, so it is unknown what it puts around a text. Choose a base "
        "whose post-processor only adds tokens before and after."
    )


def check_eos(model: SentenceTransformer) -> None:
    """Check the contract on an empty, a short, a padded and an over-long text.

    Raises:
        InputError: a text does not end in exactly one EOS token.
    """
    tokenizer = model.tokenizer
    longest = min(tokenizer.model_max_length, CUT_AT)
    end = end_token_id(tokenizer)
    special = tokenizer("")["input_ids"]
    # GPT-2 and NeoX have one token for BOS and EOS.
    times = 1 + (len(special) > 1 and special[0] == end)
    texts = ["", SHORT_TEXT, f"{SHORT_TEXT} " * 8, "word " * (2 * longest)]
    batch = model.preprocess(texts, processing_kwargs={"text": {"max_length": longest}})
    for text, ids, mask in zip(texts, batch["input_ids"].tolist(), batch["attention_mask"].tolist(), strict=True):
        attended = [token for token, attend in zip(ids, mask, strict=True) if attend]
        if end is None or attended[-1] != end or attended.count(end) != times:
            ends = tokenizer.convert_ids_to_tokens(attended)[-4:]
            raise InputError(
                f"The text {text[:20]!r} ends in the tokens {ends}; it has to end in one "
                f"{tokenizer.eos_token if end is None else tokenizer.convert_ids_to_tokens(end)!r}. "
                "Build the embedder again with LLMSentenceTransformer.from_base."
            )
        if len(attended) > longest:
            raise InputError(f"A text is encoded as {len(attended)} tokens although it is cut off at {longest}.")
