"""Tasks of our own for mteb: held-out rows of a dataset, and pass keys in long texts."""

from st_llm_embed.evaluation.tasks.held_out_tasks import HeldOutTask, held_out_tasks
from st_llm_embed.evaluation.tasks.passkey import PasskeyRetrieval
from st_llm_embed.evaluation.tasks.passkey_sweep import PasskeyLine, run_passkey, swept_settings

__all__ = ["HeldOutTask", "PasskeyLine", "PasskeyRetrieval", "held_out_tasks", "run_passkey", "swept_settings"]
