"""Text encoder: item texts to vectors, and its fine-tuning. Offline only; no other package imports torch."""
