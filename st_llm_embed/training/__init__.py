"""Contrastive fine-tuning with the stock trainer."""

from st_llm_embed.training.adapter import load_adapter, starting_model
from st_llm_embed.training.arguments import SCORES, lora_config, training_arguments
from st_llm_embed.training.batches import TaskBatchSampler
from st_llm_embed.training.check import check_training
from st_llm_embed.training.collator import InstructionCollator
from st_llm_embed.training.loss import InfoNCELoss, build_losses
from st_llm_embed.training.train import train, training_set

__all__ = [
    "SCORES",
    "InfoNCELoss",
    "InstructionCollator",
    "TaskBatchSampler",
    "build_losses",
    "check_training",
    "load_adapter",
    "lora_config",
    "starting_model",
    "train",
    "training_arguments",
    "training_set",
]
