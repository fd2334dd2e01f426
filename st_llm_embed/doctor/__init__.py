"""Doctor: the known ways in which an embedding repository gives other vectors elsewhere, each found and named."""

from __future__ import annotations

from st_llm_embed.doctor.diagnose import diagnose, doctor
from st_llm_embed.doctor.finding import TRAPS, Diagnosis, Finding

__all__ = ["TRAPS", "Diagnosis", "Finding", "diagnose", "doctor"]
