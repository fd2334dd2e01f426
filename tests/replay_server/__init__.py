"""A server on 127.0.0.1 that speaks OpenAI's protocol: answers from a function, faults and bills on request."""

from replay_server.faults import Faults
from replay_server.made_up import made_up_answer
from replay_server.server import ReplayServer, Reply

__all__ = ["Faults", "ReplayServer", "Reply", "made_up_answer"]
