"""Client of OpenAI-compatible servers: requests, pacing, retries, and limits on what is spent."""
