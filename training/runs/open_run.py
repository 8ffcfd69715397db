"""A finished run, opened: its dataset, its split, its best weights, and what is derived from them."""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from passerelle.arrays import Float32Array
from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.features import RankingFeatures
from passerelle.splits import EvaluationUsers, Part, Split, evaluation_users, make_split
from training.data.statistics import ItemStatistics, item_statistics
from training.model.sequence_model import SequenceModel
from training.runs.run import RunManifest, load_model, open_run, open_run_dataset


@dataclass(frozen=True)
class OpenRun:
    """Everything evaluation, the ranker and export need of a run."""

    path: Path
    manifest: RunManifest
    dataset: Dataset
    split: Split
    model: SequenceModel
    """Not to be altered: values derived from it are cached."""

    @cached_property
    def vectors_RD(self) -> Float32Array:
        """Item vectors; those of the special rows are zero."""
        return self.model.item_vectors().numpy()

    @cached_property
    def history_vectors_RD(self) -> Float32Array:
        """Vectors of items in histories: the same for most models."""
        vectors_RD = self.model.history_vectors()
        return self.vectors_RD if vectors_RD is None else vectors_RD.numpy()

    @cached_property
    def statistics(self) -> ItemStatistics:
        """Counts over training events, validation left out for a refit too: the ranker learns there."""
        return item_statistics(self.dataset, self.split, self.manifest.config.ranker.recent_days)

    @cached_property
    def features(self) -> RankingFeatures:
        """The feature definitions of the ranker, over these vectors and counts."""
        counts, dataset = self.statistics, self.dataset
        return RankingFeatures(
            self.vectors_RD,
            counts.counts_R,
            counts.recent_counts_R,
            dataset.items,
            dataset.manifest.item_features,
        )

    def users(self, part: Part) -> EvaluationUsers:
        """Returns the users of a part with a target.

        Raises:
            UserError: the model was trained on that part.
        """
        if part == "validation" and self.manifest.config.training.include_validation:
            raise UserError(
                f"{self.path} was trained on {self.manifest.trained_on}: "
                "only --split test says something about it"
            )
        return evaluation_users(self.split, part)


def load_run(path: Path, dataset_path: Path | None = None) -> OpenRun:
    """Opens a finished run with its dataset and its best weights.

    Raises:
        UserError: the run is not finished or altered, or its dataset is gone or another.
    """
    manifest = open_run(path)
    dataset = open_run_dataset(manifest, dataset_path)
    split = make_split(dataset, manifest.config.split)
    return OpenRun(path, manifest, dataset, split, load_model(path, manifest, dataset, split))
