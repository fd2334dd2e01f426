"""Rows, their files, and the split into what is trained on and what is held out.

Names are imported lazily, so that rows can be read and written without the libraries of datasets and training.
"""
