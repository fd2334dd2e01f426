"""Cards, rendered from what lies on disk: a fact that is not there is left out."""

from st_llm_embed.publishing.cards.dataset import dataset_card
from st_llm_embed.publishing.cards.model import adapter_card, folder_card, model_card
from st_llm_embed.publishing.cards.renewed import Link, renewed_card, renewed_dataset_card

__all__ = ["Link", "adapter_card", "dataset_card", "folder_card", "model_card", "renewed_card", "renewed_dataset_card"]
