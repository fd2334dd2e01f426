"""A server on 127.0.0.1 that speaks OpenAI's protocol: answers from a function, faults and bills on request."""

from st_llm_embed.synthesis.replay.faults import Faults
from st_llm_embed.synthesis.replay.ledger import messages_hash
from st_llm_embed.synthesis.replay.made_up import made_up_answer
from st_llm_embed.synthesis.replay.server import ReplayServer

__all__ = ["Faults", "ReplayServer", "made_up_answer", "messages_hash"]
