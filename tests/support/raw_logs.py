"""Raw logs with a planted structure, as a user has them: two CSV files and a description."""

import csv
from pathlib import Path

import numpy as np

START_S, HOUR_S = 1_600_000_000, 3_600
DESCRIPTION = """
name = "ring"
title = "label"
user_id_type = "string"
item_id_type = "string"

[[events]]
files = ["events.csv"]
format = "csv"
user_id = "customer"
item_id = "sku"
timestamp = "ordered_at"
timestamp_unit = "s"

[items]
files = ["items.csv"]
format = "csv"
id = "sku"

[items.features.label]
column = "label"
kind = "text"
"""


def write_raw_logs(folder: Path, num_users: int = 240, num_items: int = 120, seed: int = 0) -> Path:
    """Write logs whose users walk along a ring of items, and return the path of their description."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    with (folder / "items.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["sku", "label"])
        writer.writerows([f"item-{item}", f"Item {item}"] for item in range(num_items))
    with (folder / "events.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["customer", "sku", "ordered_at"])
        for user in range(num_users):
            start, length = int(rng.integers(num_items)), int(rng.integers(5, 21))
            begin_s = START_S + int(rng.integers(60 * 24)) * HOUR_S
            for step in range(length):
                sku = f"item-{(start + step) % num_items}"
                writer.writerow([f"customer-{user}", sku, begin_s + step * HOUR_S])
    description = folder / "logs.toml"
    description.write_text(DESCRIPTION, encoding="utf-8")
    return description
