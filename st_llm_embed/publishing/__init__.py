"""What leaves the machine: cards, the released folder, and the way to the Hub."""

from st_llm_embed.publishing.cards import dataset_card, model_card
from st_llm_embed.publishing.release import write_release

__all__ = ["dataset_card", "model_card", "write_release"]
