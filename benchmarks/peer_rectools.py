"""One epoch of RecTools' BERT4Rec; run by `benchmarks/peers.py` in RecTools' own environment, so it imports
nothing of ours.

Usage: python peer_rectools.py EVENTS.npz '{"length": 200, "dim": 64, ...}'.
Prints one JSON line.
"""

import json
import sys
import time
import warnings

import numpy as np
import pandas as pd
import torch
from pytorch_lightning import Callback, Trainer
from rectools import Columns
from rectools.dataset import Dataset
from rectools.models import BERT4RecModel


class Stopwatch(Callback):
    """Prints the seconds of the epoch, set-up left out; RecTools trains with a copy of it, which cannot be
    asked afterwards.
    """

    begun_s = 0.0

    def on_train_epoch_start(self, trainer: Trainer, pl_module: object) -> None:
        self.begun_s = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: object) -> None:
        print(json.dumps({"seconds": time.perf_counter() - self.begun_s}))


def main() -> None:
    warnings.filterwarnings("ignore")
    events, settings = np.load(sys.argv[1]), json.loads(sys.argv[2])
    torch.set_num_threads(settings["threads"])
    columns = {
        Columns.User: events["user"],
        Columns.Item: events["item"],
        Columns.Datetime: pd.to_datetime(events["timestamp_ms"], unit="ms"),
    }
    dataset = Dataset.construct(pd.DataFrame({**columns, Columns.Weight: 1.0}))
    model = BERT4RecModel(
        n_blocks=settings["num_blocks"],
        n_heads=settings["num_heads"],
        n_factors=settings["dim"],
        dropout_rate=settings["dropout"],
        mask_prob=settings["mask_probability"],
        session_max_len=settings["length"],
        loss={"full": "softmax", "sampled": "sampled_softmax"}[settings["loss"]],
        n_negatives=settings["num_negatives"],
        batch_size=settings["batch_size"],
        get_trainer_func=lambda: Trainer(
            max_epochs=1,
            accelerator="cpu",
            callbacks=[Stopwatch()],
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        ),
    )
    model.fit(dataset)


if __name__ == "__main__":
    main()
