"""The ranking service. Nothing in this package may import torch, transformers or pandas."""
