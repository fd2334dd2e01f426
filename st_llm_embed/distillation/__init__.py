"""Small students of a large embedder for production: their training, what they keep, and what they cost."""

from st_llm_embed.distillation.report import write_student_report
from st_llm_embed.distillation.train import check_distillation, distillation_of, teacher_instructions, train_student

__all__ = ["check_distillation", "distillation_of", "teacher_instructions", "train_student", "write_student_report"]
