"""Baselines: recommenders that are fitted in seconds and ranked by the same code as the model.

Each is a class whose constructor takes its hyper-parameters and whose `fit(dataset, split)` learns from the
training events of the split alone; the fitted object is a `Scorer`.
Dacrema, Cremonesi and Jannach, "Are we really making much progress?", RecSys 2019, give the reason for them.
"""

from collections.abc import Callable
from dataclasses import replace

from passerelle.errors import UserError
from training.evaluation.baselines.base import Baseline
from training.evaluation.baselines.ease import Ease
from training.evaluation.baselines.ials import ImplicitAls
from training.evaluation.baselines.item_knn import ItemKnn
from training.evaluation.baselines.markov import Markov
from training.evaluation.baselines.popularity import Popularity, RecentPopularity

BASELINES: dict[str, Callable[[], Baseline]] = {
    "popularity": Popularity,
    "recent_popularity": RecentPopularity,
    "markov": Markov,
    "item_knn": ItemKnn,
    "ease": Ease,
    "ials": ImplicitAls,
}
"""Name -> a baseline with its default hyper-parameters, cheapest first."""


RECENT_DAYS = RecentPopularity.days


def make_baselines(names: tuple[str, ...], recent_days: int = RECENT_DAYS) -> dict[str, Baseline]:
    """Returns baselines by name, not yet fitted, in the given order; `all` stands for every one.

    Args:
        recent_days: how far `recent_popularity` looks back.

    Raises:
        UserError: a name is not known, or `recent_days` is given without `recent_popularity`.
    """
    if unknown := [name for name in names if name not in (*BASELINES, "all")]:
        raise UserError(f"baseline {unknown[0]!r}: not one of {', '.join(BASELINES)}, nor all")
    chosen = tuple(BASELINES) if "all" in names else names
    if recent_days != RECENT_DAYS and "recent_popularity" not in chosen:
        raise UserError(f"--recent-days {recent_days} has no effect without the baseline recent_popularity")
    made = {name: BASELINES[name]() for name in chosen}
    return {
        name: replace(baseline, days=recent_days) if isinstance(baseline, RecentPopularity) else baseline
        for name, baseline in made.items()
    }
