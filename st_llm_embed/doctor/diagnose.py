"""All checks in order, static ones first; live ones where the weights lie here."""

from __future__ import annotations

from collections.abc import Callable

from st_llm_embed.doctor.checks import adapter, layout, prompts, special_tokens, tokenizer, training
from st_llm_embed.doctor.finding import Check, Diagnosis, Finding, NotCheckedError, Reading
from st_llm_embed.doctor.readers import read_all
from st_llm_embed.doctor.repository import WRONG_FILES, Repository
from st_llm_embed.errors import explained

StaticCheck = Callable[[Repository, list[Reading]], list[Finding]]

STATIC_CHECKS: tuple[tuple[int | str, str, StaticCheck], ...] = (
    ("layout", "every library can read the files", layout.refused),
    (1, "each reader ends a text in EOS", special_tokens.eos_missing),
    (2, "special tokens stand once", special_tokens.specials_doubled),
    (3, "EOS stays where a text is cut off", special_tokens.eos_cut),
    (4, "padding has a mask, a side and a token", layout.padding),
    (5, "each reader understands the same pooling", layout.pooling),
    (6, "prompts stand on queries, once, in one spelling", prompts.prompts),
    (6, "prompts are those of the training", prompts.prompts_as_trained),
    (7, "the adapter's keys fit its base", adapter.applies),
    (7, "the adapter's weights are numbers and not zero", adapter.trained),
    (8, "the adapter's base is a Hub id and a commit", adapter.pinned),
    (10, "similarities in the loss were float32", training.similarity_in_16_bits),
    (11, "equal texts were kept out of a batch", training.duplicates_in_batch),
    (12, "vectors have length 1, at each Matryoshka dimension", layout.normalisation),
    (13, "texts are read as they are", tokenizer.texts_changed),
    (14, "tokenizer.json, tokenizer.model and config.json agree", tokenizer.rebuilt),
    (14, "the texts of probe.json have the tokens they had", tokenizer.probe_tokens),
    (15, "each reader cuts texts off at the same length", layout.lengths),
    ("rope", "transformers 4 and 5 take the same rotary base", layout.rope),
)


def diagnose(
    model: str, *, live: bool | None = None, revision: str | None = None, device: str | None = None
) -> Diagnosis:
    """Look for every known trap in a decoder embedding repository.

    Args:
        model: a folder, or a Hub id.
        live: also encode texts with stock sentence-transformers, which takes the weights; None: where the weights lie
            in the folder.
        revision: branch, tag or commit of a Hub repository.
        device: where texts are encoded; None for the best there is.

    Returns:
        What each library would read, the checks that were and were not made, and what they found.

    Raises:
        InputError: there is no such repository, or it is no decoder embedding model.
    """
    wrong_files = f"The files of {model} cannot be understood", WRONG_FILES
    with explained(*wrong_files):
        repository = Repository(model, revision=revision)
        diagnosis = Diagnosis(model, read_all(repository))
    for trap, what, check in STATIC_CHECKS:
        reason = None
        with explained(*wrong_files):
            try:
                diagnosis.findings += check(repository, diagnosis.readings)
            except NotCheckedError as error:
                reason = str(error)
        diagnosis.checks.append(Check(trap, what, live=False, not_checked=reason))
    if live or (live is None and _weights_lie_here(repository)):
        from st_llm_embed.doctor.live import check_live

        check_live(repository, diagnosis, device=device)
    else:
        diagnosis.checks.append(Check("weights", "live checks", live=True, not_checked="not asked for, or no weights"))
    return diagnosis


def doctor(model: str, *, live: bool | None = None) -> list[Finding]:
    """Give the findings of `diagnose`; an empty list is a healthy repository.

    Raises:
        InputError: there is no such repository, or it is no decoder embedding model.
    """
    return diagnose(model, live=live).findings


def _weights_lie_here(repository: Repository) -> bool:
    if not repository.local:
        return False
    if repository.adapter:
        return "adapter_model.safetensors" in repository.files and repository.base is not None
    return bool({"model.safetensors", "model.safetensors.index.json"} & repository.files)
