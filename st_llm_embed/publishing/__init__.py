"""What leaves the machine: cards and the released folder."""

from st_llm_embed.publishing.cards import dataset_card, model_card
from st_llm_embed.publishing.release import write_release
from st_llm_embed.publishing.student_release import write_query_release, write_student_release

__all__ = ["dataset_card", "model_card", "write_query_release", "write_release", "write_student_release"]
