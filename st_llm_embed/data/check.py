"""Checks of a recipe's data section that need no large library."""

from __future__ import annotations

from collections import Counter

from st_llm_embed.data.dataset import check_rows
from st_llm_embed.data.rows import rows_file
from st_llm_embed.data.sources import check_source
from st_llm_embed.data.split import Split
from st_llm_embed.errors import InputError, Problems, explained, shown
from st_llm_embed.modules.layout import has_file
from st_llm_embed.recipe import BASE, SYNTHESIS, Data, Mining

MINING_ADVICE = (
    f"Allowed are {BASE!r}, the recipe's base before training, and the Hub id or folder of a sentence-transformers "
    "model. Set it with --set data.mining.model=..."
)


def check_data_section(data: Data) -> Counter[tuple[str, Split]] | None:
    """Check rows, sources and the mining model.

    Returns:
        The rows by (configuration, split); None where an LLM writes them.

    Raises:
        InputError: something cannot be used; all of it is named.
    """
    problems, rows = Problems(), None
    if data.rows != SYNTHESIS:
        with problems.collected():
            rows = check_rows(rows_file(data.rows), data)
    for name, source in data.sources.items():
        with problems.collected():
            check_source(name, source)
    if data.mining is not None:
        with problems.collected():
            check_mining(data.mining)
    problems.report()
    return rows


def check_mining(mining: Mining) -> None:
    """Check that there is a mining model, without loading it.

    Raises:
        InputError: there is none.
    """
    if mining.model == BASE:
        return
    files = ("modules.json", "config.json")
    with explained(f"The mining model {shown(mining.model)} cannot be loaded", MINING_ADVICE):
        if not has_file(mining.model, files, revision=mining.revision):
            raise InputError(
                f"data.mining.model is {shown(mining.model)}, and there is no such model: neither "
                f"{' nor '.join(files)} is found there. {MINING_ADVICE}"
            )
