"""Encoding at scale: texts to parquet shards of vectors, by processes or Ray, and exact search over them.

Names are imported from their modules, so that a search does not load what only encoding needs.
"""
