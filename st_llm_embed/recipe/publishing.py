"""What the released folder says about itself."""

from __future__ import annotations

from st_llm_embed.recipe.section import Section


class Publishing(Section):
    """What the released folder says about itself."""

    repo_id: str | None = None
    """The Hub name that the card's examples load, such as `org/e5-mistral`; None: the folder's path."""
    license: str
    """Licence of the released weights, as the Hub spells it (`apache-2.0`, `cc-by-nc-4.0`, ...)."""
    limitations: tuple[str, ...] = ()
    """What a user has to know before relying on the model; goes into the card and the report."""
    dataset_repo_id: str | None = None
    """The Hub name that the dataset card's example loads."""
    dataset_license: str | None = None
    """Licence of the rows, needed to push them: ask what the terms of the LLM that wrote them allow."""
