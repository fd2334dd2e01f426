"""The model: what turns a decoder-only language model into an embedder."""
