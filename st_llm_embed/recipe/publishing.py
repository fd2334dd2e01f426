"""What the released folder and its cards say."""

from __future__ import annotations

from st_llm_embed.recipe.section import Section


class Publishing(Section):
    """What the released folder and its cards say."""

    repo_id: str | None = None
    """Hub name in the card's examples, such as `org/e5-mistral`; None: the folder's path."""
    license: str
    """Licence of the released weights, as the Hub spells it (`apache-2.0`, `cc-by-nc-4.0`, ...)."""
    limitations: tuple[str, ...] = ()
    """What users have to know before relying on the model; printed in the card and the report."""
    dataset_repo_id: str | None = None
    """Hub name in the dataset card's example."""
    dataset_license: str | None = None
    """Licence of the rows, needed to push them; check the terms of the LLM that wrote them."""
