"""An LLM writes the rows: plan, client, journal, parsing, filters."""
