"""Encoding at scale: texts to parquet shards of vectors, by processes or Ray, and exact search over them."""
