"""Training data written by an LLM: requests, answers, rows."""
