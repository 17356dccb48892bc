"""A synthetic invoice export of a gift shop, with the columns and data errors of a real export."""

from __future__ import annotations

import csv
import gzip
from datetime import datetime, timedelta
from pathlib import Path

import numpy as np

HEADER = ["Invoice", "StockCode", "Description", "Quantity", "InvoiceDate", "Price", "Customer ID", "Country"]
_NOUNS = ("MUG", "LAMP", "BOWL", "CLOCK", "FRAME", "BASKET", "BUNTING", "DOORMAT", "CANDLE", "TEA TOWEL")
_LOOKS = ("RED RETROSPOT", "PINK CHERRY", "VINTAGE BLUE", "WOODEN", "IVORY HEART", "ENAMEL")

_FIXED_CODES = {(0, 0): "85123A", (0, 1): "22423", (0, 2): "85048"}
"""Item codes used in the guide. Its customer, 13089, likes these products."""


def write(path: Path, customers: int = 80, baskets: int = 700, seed: int = 1) -> None:
    """Write a gzipped CSV of invoice lines. Each customer prefers one look; a fifth of the baskets have no customer ID.

    The data errors are postage and manual entries, cancellations with negative quantities, prices of 0, duplicate
    lines, codes with several descriptions, and quotes and extra spaces in texts.
    """
    rng = np.random.default_rng(seed)
    products = [
        (_FIXED_CODES.get((k, j), f"{20000 + 10 * k + j}"), f"{look} {t}", 1.25 + k)
        for k, look in enumerate(_LOOKS)
        for j, t in enumerate(_NOUNS)
    ]
    at = datetime(2009, 12, 1, 7, 45)
    rows: list[list[object]] = []
    for basket in range(baskets):
        at += timedelta(minutes=int(rng.integers(30, 600)))
        customer = int(rng.integers(customers))
        look = customer % len(_LOOKS)
        anonymous, cancelled = rng.random() < 0.2, rng.random() < 0.03
        invoice = f"{'C' if cancelled else ''}{489434 + basket}"
        for _ in range(int(rng.integers(2, 6))):
            k = look if rng.random() < 0.75 else int(rng.integers(len(_LOOKS)))
            code, title, price = products[k * len(_NOUNS) + int(rng.integers(len(_NOUNS)))]
            description = title if rng.random() < 0.95 else rng.choice([f" {title} ", f'{title} "BOXED"', "damaged?"])
            quantity = int(rng.integers(1, 13)) * (-1 if cancelled else 1)
            paid = 0 if rng.random() < 0.01 else round(price, 2)
            rows.append(
                [
                    invoice,
                    code,
                    description,
                    quantity,
                    at,
                    paid,
                    "" if anonymous else f"{13089 + customer}.0",
                    "United Kingdom",
                ]
            )
            if rng.random() < 0.02:
                rows.append(rows[-1])
        if rng.random() < 0.1:
            rows.append([invoice, "POST", "POSTAGE", 1, at, 18, f"{13089 + customer}.0", "France"])
        if rng.random() < 0.02:
            rows.append([invoice, "M", "Manual", 1, at, 5, f"{13089 + customer}.0", "United Kingdom"])
    with gzip.open(path, "wt", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([HEADER, *rows])
