"""Descriptions to vectors: offline only, the one room that may import torch."""
