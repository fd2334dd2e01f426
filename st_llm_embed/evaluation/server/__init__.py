"""Models behind an OpenAI-compatible embeddings API: asked within limits, every paid vector kept."""
