"""Scores before, during and after training, and the report on them."""
