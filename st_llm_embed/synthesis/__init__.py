"""An LLM writes training data; what it wrote is checked before it is kept."""
