"""Rows to scores, and how good an order is."""
