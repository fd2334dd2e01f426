"""Doctor: is a repository what it says it is, and does a runtime return its vectors?

`diagnose` finds the known traps in the files of a repository and, where its weights are here, by encoding texts.
`doctor.verify` compares a runtime with a model's probe.
"""

from __future__ import annotations

from collections.abc import Callable

from st_llm_embed.doctor.checks import adapter, layout, tokens, weights
from st_llm_embed.doctor.readers import read_all
from st_llm_embed.doctor.repository import WRONG_FILES, NoDecoderError, Repository
from st_llm_embed.doctor.traps import TRAPS, Check, Diagnosis, Finding, NotCheckedError, Reading
from st_llm_embed.errors import InputError, explained

__all__ = ["TRAPS", "Diagnosis", "Finding", "diagnose"]

STATIC_CHECKS: tuple[tuple[str, Callable[[Repository, list[Reading]], list[Finding]]], ...] = (
    ("the weights are there, each in its shape", weights.complete),
    ("weights have the data type of config.json", weights.data_types),
    ("every library can read the files", layout.refused),
    ("the modules are in their order, and other libraries have them", layout.modules),
    ("no code of the repository's own is needed", layout.own_code),
    ("each reader takes the same architecture", layout.architecture),
    ("tokens attend to the same others in each reader", layout.attention),
    ("each reader ends a text in EOS", tokens.eos_missing),
    ("each reader begins a text alike", tokens.bos_missing),
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
    ("settings of sentence-transformers change no model", layout.own_settings),
    ("tokenizer_config.json names tokens of tokenizer.json", tokens.named_tokens),
    ("tokenizer.json, tokenizer.model and config.json agree", tokens.rebuilt),
    ("the texts of probe.json have the tokens they had", tokens.probe_tokens),
    ("each reader cuts texts at the same length", layout.lengths),
    ("transformers 4 and 5 take the same rotary base", layout.rope),
)

DAMAGED = "files are damaged"

NEEDED = {"damaged file", "no weights", "weights missing", "weights of another shape"}
"""Traps without which there are no vectors of the model to be looked at."""


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
        repository. Damaged files are findings.

    Raises:
        InputError: there is no such repository, or it is not a decoder embedding model.
    """
    repository = Repository(model, revision=revision)
    diagnosis = Diagnosis(model)
    readable = _readable(repository, diagnosis)
    for what, check in STATIC_CHECKS:
        reason = None if readable else DAMAGED
        try:
            if readable:
                with explained(f"In the check that {what}", WRONG_FILES):
                    diagnosis.findings += check(repository, diagnosis.readings)
        except NotCheckedError as error:
            reason = str(error)
        except InputError as error:
            reason = DAMAGED
            if not any(finding.trap == "damaged file" for finding in diagnosis.findings):
                diagnosis.findings.append(Finding("damaged file", "*.json", str(error)))
        diagnosis.checks.append(Check(what, live=False, not_checked=reason))
    if not readable or NEEDED & {finding.trap for finding in diagnosis.findings}:
        diagnosis.checks.append(Check("live checks", live=True, not_checked="files or weights are missing or damaged"))
    elif live or (live is None and _has_weights(repository)):
        from st_llm_embed.doctor.live import check_live

        check_live(repository, diagnosis, device=device)
    else:
        diagnosis.checks.append(Check("live checks", live=True, not_checked="not asked for, or no weights"))
    return diagnosis


def _has_weights(repository: Repository) -> bool:
    return repository.local and bool(repository.weight_files) and not (repository.adapter and repository.base is None)


def _readable(repository: Repository, diagnosis: Diagnosis) -> bool:
    """Add the damaged files to a diagnosis, or else what each library reads; return whether there is no damage.

    Raises:
        NoDecoderError: the repository is not a decoder's.
    """
    damaged = repository.damaged()
    if not damaged:
        try:
            with explained("The libraries' readers", WRONG_FILES):
                repository.check_decoder()
                diagnosis.readings = read_all(repository)
        except NoDecoderError:
            raise
        except InputError as error:
            damaged["*.json"] = str(error)
    diagnosis.findings += [Finding("damaged file", file, why) for file, why in damaged.items()]
    return not damaged
