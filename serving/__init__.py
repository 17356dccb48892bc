"""A published release answers requests; nothing here may import torch, transformers or pandas."""
