"""Text features: item vectors, the vocabulary of queries, inverted lists, and tags implied by words."""
