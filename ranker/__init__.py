"""Ranker: training, scoring and ranking metrics."""
