"""Contrastive fine-tuning with the stock trainer."""
