"""Recall of new items, which are found by their declared features.

A tenth of MovieLens-1M's films is removed from training, and then to be recommended.
It takes about an hour on one core.

    .venv/bin/python -m benchmarks.cold_items
    .venv/bin/python -m benchmarks.cold_items --seeds 0 --set items.text_encoder=wordllama

The target is each user's newest event of such a film, after the events of other films before it; all films
but those of the history are ranked, the known ones too.
The candidate tower is compared with methods that have the same data of a new film: the popularity of its
genres, also as far as the user likes them, and the distance of its raw features from those of the history.

Shape legend: U users, E events, R item rows, B users of a batch, C width of a content vector.
"""

import tempfile
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.datasets import quality_dataset, with_events
from benchmarks.harness import environment, write_result
from passerelle.dataset import Dataset
from passerelle.ids import FIRST_ITEM_ROW
from passerelle.splits import EvaluationUsers
from training.config import Recipe, load_recipe
from training.data.evaluation_batches import EvaluationBatch
from training.data.statistics import num_events
from training.evaluation.evaluate import rank_users, ranking_metrics
from training.model.factory import encode_item_features
from training.runs.fit import train_in_process
from training.runs.open_run import OpenRun, load_run

SHARE, K = 0.1, 100


def kept(dataset: Dataset, keep_E: np.ndarray[Any, np.dtype[np.bool_]], path: Path) -> Dataset:
    """The dataset with the events marked."""
    kept_before = np.concatenate([[0], np.cumsum(keep_E)])
    return with_events(dataset, np.flatnonzero(keep_E), kept_before[dataset.offsets_U1], path)


def cold_targets(
    dataset: Dataset, cold_R: np.ndarray[Any, np.dtype[np.bool_]], path: Path
) -> tuple[Dataset, EvaluationUsers]:
    """Histories of known films, each before the user's newest event of a cold one, which is the target."""
    cold_E = cold_R[dataset.item_rows_E]
    places_E = np.arange(len(cold_E))
    user_E = np.repeat(np.arange(dataset.num_users), np.diff(dataset.offsets_U1))
    newest_U = np.full(dataset.num_users, -1)
    np.maximum.at(newest_U, user_E[cold_E], places_E[cold_E])
    asked = kept(dataset, (places_E == newest_U[user_E]) | (~cold_E & (places_E < newest_U[user_E])), path)
    users_Q = np.flatnonzero(np.diff(asked.offsets_U1) > 1)
    start_Q, end_Q = asked.offsets_U1[users_Q], asked.offsets_U1[users_Q + 1]
    return asked, EvaluationUsers(users_Q, start_Q, end_Q - 1, end_Q)


class ByContent:
    """Scores of whoever knows a film's raw features alone."""

    def __init__(self, run: OpenRun) -> None:
        content = encode_item_features(run.dataset, run.split, run.manifest.config.items)
        slots = content.encoding.slots()["genres"]
        genres_RC = F.one_hot(content.codes_RS[:, slots], content.encoding.num_codes).amax(1)[:, 1:].float()
        self._genres_RC = genres_RC / genres_RC.sum(1, keepdim=True).clamp_min(1)
        films_C = self._genres_RC[FIRST_ITEM_ROW:][content.known_R[FIRST_ITEM_ROW:]].sum(0)
        events_R = torch.from_numpy(num_events(run.dataset, run.split)).float()
        self._popularity_R = self._genres_RC @ (self._genres_RC.T @ events_R / films_C.clamp_min(1))
        self._content_RC = F.normalize(
            torch.cat([F.normalize(genres_RC, dim=1), content.numbers_RF[:, 1:]], dim=1), dim=1
        )

    def popularity(self, batch: EvaluationBatch) -> Tensor:
        """Events of a film of the same genres, on average."""
        return self._popularity_R.repeat(len(batch.positions_B), 1)

    def liked_popularity(self, batch: EvaluationBatch) -> Tensor:
        """The same, times the share of the history that has the film's genres."""
        return self._popularity_R * (self._history(batch, self._genres_RC) @ self._genres_RC.T)

    def neighbours(self, batch: EvaluationBatch) -> Tensor:
        """Cosine of the film's raw features and their mean over the history."""
        return self._history(batch, self._content_RC) @ self._content_RC.T

    def _history(self, batch: EvaluationBatch, values_RC: Tensor) -> Tensor:
        sums_BC = torch.zeros(len(batch.positions_B), values_RC.shape[1])
        return sums_BC.index_add_(0, batch.seen_row_S, values_RC[batch.seen_item_S])


def measure(dataset: Dataset, config: Recipe, seed: int) -> dict[str, Any]:
    """The figures of one draw of films, and of the model that was trained without them."""
    cold_R = np.zeros(dataset.num_rows, dtype=bool)
    cold_R[
        np.random.default_rng(seed).choice(dataset.num_items, round(SHARE * dataset.num_items), replace=False)
        + FIRST_ITEM_ROW
    ] = True
    with tempfile.TemporaryDirectory() as folder:
        warm = kept(dataset, ~cold_R[dataset.item_rows_E], Path(folder) / "warm")
        manifest = train_in_process("two_tower", warm, config, Path(folder) / "run")
        run = load_run(Path(folder) / "run")
        asked, users = cold_targets(dataset, cold_R, Path(folder) / "asked")
        raw = ByContent(run)
        scorers = {
            "two_tower": run.model.scores,
            "genre_popularity": raw.popularity,
            "liked_genre_popularity": raw.liked_popularity,
            "content_neighbours": raw.neighbours,
        }
        found = {}
        for name, scorer in scorers.items():
            rows_QK, _ = rank_users(asked, users, scorer, K, max_history=config.model.max_history)
            found[name] = {
                **ranking_metrics(asked, users, rows_QK, (10, K)),
                "cold_share_of_top": float(cold_R[rows_QK].mean()),
            }
            click.echo(f"seed {seed}, {name}: recall@{K} {found[name][f'recall@{K}']:.4f}", err=True)
    values = {"seed": seed, "cold_items": int(cold_R.sum()), "targets": len(users), "found": found}
    return {
        **values,
        "epochs": manifest.epochs,
        "best_epoch": manifest.best_epoch,
        "validation": manifest.validation,
    }


@click.command()
@click.option(
    "--set", "overrides", multiple=True, metavar="SECTION.KEY=VALUE", help="Change a setting of the recipe."
)
@click.option(
    "--seeds",
    default="0,1,2",
    show_default=True,
    help="Of the films that are removed and of training, with commas between.",
)
def main(overrides: tuple[str, ...], seeds: str) -> None:
    """Train without the cold films, ask for them, and store one result file."""
    started = environment()
    dataset, runs = quality_dataset("ml-1m_sasrec"), []
    for seed in map(int, seeds.split(",")):
        config = load_recipe("two_tower", (*overrides, f"training.seed={seed}"))
        runs.append(measure(dataset, config, seed))
    scorers = runs[0]["found"]
    mean = {
        name: {
            metric: float(np.mean([run["found"][name][metric] for run in runs])) for metric in scorers[name]
        }
        for name in scorers
    }
    write_result(
        "cold_items",
        started,
        {"runs": runs, "mean": mean, "config": load_recipe("two_tower", overrides).model_dump(mode="json")},
    )


if __name__ == "__main__":
    main()
