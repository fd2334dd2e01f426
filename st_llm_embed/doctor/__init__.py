"""Doctor: is a repository what it says it is, and does a runtime return its vectors?

`diagnose` finds the known traps in the files of a repository and, where its weights are here, by encoding texts.
`doctor.verify` compares a runtime with a model's probe.
"""

from __future__ import annotations

from collections.abc import Callable

from st_llm_embed.doctor.checks import adapter, layout, tokens
from st_llm_embed.doctor.readers import read_all
from st_llm_embed.doctor.repository import ADAPTER_WEIGHTS, WRONG_FILES, Repository
from st_llm_embed.doctor.traps import TRAPS, Check, Diagnosis, Finding, NotCheckedError, Reading
from st_llm_embed.errors import explained

__all__ = ["TRAPS", "Diagnosis", "Finding", "diagnose"]

STATIC_CHECKS: tuple[tuple[str, Callable[[Repository, list[Reading]], list[Finding]]], ...] = (
    ("every library can read the files", layout.refused),
    ("each reader ends a text in EOS", tokens.eos_missing),
    ("special tokens are there once", tokens.specials_doubled),
    ("EOS stays where a text is cut", tokens.eos_cut),
    ("padding has a mask, a side and a token", layout.padding),
    ("each reader understands the same pooling", layout.pooling),
    ("prompts are on queries, once, in one spelling", tokens.prompts),
    ("prompts are those of the training", tokens.prompts_as_trained),
    ("the adapter's keys fit its base", adapter.applies),
    ("the adapter's weights are numbers and not zero", adapter.trained),
    ("the adapter's base is a Hub id and a commit", adapter.pinned),
    ("vectors have length 1, at each Matryoshka dimension", layout.normalisation),
    ("texts are read as they are", tokens.texts_changed),
    ("tokenizer.json, tokenizer.model and config.json agree", tokens.rebuilt),
    ("the texts of probe.json have the tokens they had", tokens.probe_tokens),
    ("each reader cuts texts at the same length", layout.lengths),
    ("transformers 4 and 5 take the same rotary base", layout.rope),
)


def diagnose(
    model: str, *, live: bool | None = None, revision: str | None = None, device: str | None = None
) -> Diagnosis:
    """Look for every known trap in a decoder embedding repository.

    Args:
        model: a folder, or a Hub id.
        live: also encode texts with stock sentence-transformers, which takes the weights; None: where the weights are
            in the folder.
        revision: branch, tag or commit of a Hub repository.
        device: where texts are encoded; None for the best there is.

    Returns:
        What each library would read, the checks that were and were not made, and the findings: none for a healthy
        repository.

    Raises:
        InputError: there is no such repository, or it is not a decoder embedding model.
    """
    with explained(f"The files of {model} cannot be understood", WRONG_FILES):
        repository = Repository(model, revision=revision)
        repository.check_decoder()
        diagnosis = Diagnosis(model, read_all(repository))
        for what, check in STATIC_CHECKS:
            reason = None
            try:
                diagnosis.findings += check(repository, diagnosis.readings)
            except NotCheckedError as error:
                reason = str(error)
            diagnosis.checks.append(Check(what, live=False, not_checked=reason))
    if live or (live is None and _has_weights(repository)):
        from st_llm_embed.doctor.live import check_live

        check_live(repository, diagnosis, device=device)
    else:
        diagnosis.checks.append(Check("live checks", live=True, not_checked="not asked for, or no weights"))
    return diagnosis


def _has_weights(repository: Repository) -> bool:
    weights = {"model.safetensors", "model.safetensors.index.json"}
    if repository.adapter:
        weights = {ADAPTER_WEIGHTS} if repository.base is not None else set()
    return repository.local and bool(weights & repository.files)
