"""The quality of the recipes.

Leave-one-out, the whole catalogue ranked, seen items left out, by seeds, baselines in the same table.
Without options, everything is trained, which takes most of a day on 2 cores.
`--collect` writes the table of all runs that are complete.

    .venv/bin/python -m benchmarks.quality
    .venv/bin/python -m benchmarks.quality --cases sasrec_beauty --refit
    .venv/bin/python -m benchmarks.quality --cases sasrec --seeds 0
    .venv/bin/python -m benchmarks.quality --collect

Runs are kept in artifacts/quality, continued where they were interrupted, and not made twice.
Several processes may train different cases or seeds at once; none of them writes the result, so that a
part of it never takes its place.
Epochs are chosen on validation; the refit of a run (`--refit`) is trained on train and validation for as
many.
Both are measured on test, and the table says which is which.

The published figures are the best that a review of the literature found for each data set under this
protocol (2026-11): .1638 for BERT4Rec (RecTools states .1618 for its own) and .1902 for SASRec with full
softmax (Klenitskiy and Vasilev, RecSys 2023, have .1821, and .1857 with 3,000 negatives) on the file of
3,416 items; .2164 for HSTU-large as reproduced by RecTools with a stable sort on all 3,706; .0531 on
Beauty (eSASRec, RecSys 2025, has .0523).
For two towers with features there is none on these data.
"""

import itertools
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.datasets import quality_dataset
from benchmarks.harness import RESULTS, environment, write_result
from benchmarks.runs import check_settings, is_complete, recipe_with, train_once
from training.config import Recipe
from training.evaluation.evaluate import EvaluationSettings, evaluate_in_detail
from training.model.sequence_model import MONITOR
from training.runs.callbacks import read_history
from training.runs.open_run import load_run
from training.runs.run import open_run, refit_config

FOLDER = Path("artifacts/quality")
RECTOOLS_NDCG = 0.1618
KS = (10, 20, 50, 100)
MODEL_ALONE = EvaluationSettings(KS, baselines=())
BASELINES = EvaluationSettings(KS, ("all",), fit_baselines_on="before_targets")


@dataclass(frozen=True)
class Case:
    """A recipe on a data set."""

    data: str
    recipe: str
    overrides: tuple[str, ...] = ()
    published: float | None = None
    """Best NDCG@10 in print for this data and kind of model, where there is one."""

    def config(self, seed: int, threads: int | None = None) -> Recipe:
        """The resolved recipe of one run."""
        return recipe_with(self.recipe, (*self.overrides, f"training.seed={seed}"), threads)


SHORT_HISTORIES = (
    "model.max_history=50",
    "model.num_blocks=2",
    "model.dropout=0.5",
    "batches.token_budget=512",
    "optimizer.learning_rate=1e-3",
    "training.max_epochs=20",
)
"""For people with nine events each: small steps, much noise."""

SAMPLED = ("loss.kind=sampled",)

CASES = {
    "bert4rec": Case("ml-1m_sasrec", "bert4rec", published=0.1638),
    "sasrec": Case("ml-1m_sasrec", "sasrec", published=0.1902),
    "sasrec_sampled": Case(
        "ml-1m_sasrec",
        "sasrec",
        (*SAMPLED, "loss.sampler.kind=popularity", "loss.sampler.exponent=0.75"),
        0.1857,
    ),
    "sasrec_uniform": Case("ml-1m_sasrec", "sasrec", SAMPLED, 0.1857),
    "sasrec_mixed": Case("ml-1m_sasrec", "sasrec", (*SAMPLED, "loss.sampler=mixed"), 0.1857),
    "sasrec_time": Case("ml-1m", "sasrec", ("model.time_bias=true", "model.time_gap=true"), published=0.2164),
    "two_tower": Case("ml-1m_sasrec", "two_tower"),
    "two_tower_sparse": Case("ml-1m_sasrec", "two_tower", ("items.table=sparse",)),
    "two_tower_history": Case("ml-1m_sasrec", "two_tower", ("query.features=[]", "query.time_features=[]")),
    "sasrec_beauty": Case("beauty", "sasrec", SHORT_HISTORIES, published=0.0531),
}


@click.command()
@click.option(
    "--cases", default=",".join(CASES), show_default=True, help="Which to train, with commas between."
)
@click.option("--seeds", default="0,1,2", show_default=True, help="Seeds to train, with commas between.")
@click.option(
    "--threads",
    type=int,
    help="CPU threads of a run; two runs of one thread each are faster than one after the other of two.",
)
@click.option("--refit", is_flag=True, help="Train each once more, on train and validation.")
@click.option(
    "--collect",
    is_flag=True,
    help="Train nothing: measure all runs that are complete on test, and store one result file.",
)
def main(cases: str, seeds: str, threads: int | None, refit: bool, collect: bool) -> None:
    """Train what is missing, or write the table of what is there."""
    if collect:
        _collect()
        return
    names = cases.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        raise click.BadParameter(f"{', '.join(unknown)}: not among {', '.join(CASES)}")
    for seed in map(int, seeds.split(",")):
        for name in names:
            _train(CASES[name], FOLDER / name / f"seed{seed}", seed, threads, refit)


def _train(case: Case, path: Path, seed: int, threads: int | None, refit: bool) -> None:
    """The run of a seed, and its refit."""
    dataset = quality_dataset(case.data)
    train_once(case.recipe, dataset, case.config(seed, threads), path)
    if refit:
        train_once(
            case.recipe,
            dataset,
            refit_config(open_run(path)),
            path.with_name(f"{path.name}-refit"),
            refit_of=path,
        )


def _collect() -> None:
    """Store the result file of every complete run; what was stored before stays for cases whose runs are no
    longer here.
    """
    started = environment()
    files = sorted(RESULTS.glob("quality_*.json"), key=lambda path: path.stem[-10:])
    before = json.loads(files[-1].read_text(encoding="utf-8")) if files else {"cases": {}, "baselines": {}}
    here = {name: found for name in CASES if (found := _collected(name))}
    table = {name: found for name in CASES if (found := here.get(name) or before["cases"].get(name))}
    baselines = before["baselines"] | {
        data: _baselines(data) for data in sorted({CASES[name].data for name in here})
    }
    write_result("quality", started, {"ks": KS, "cases": table, "baselines": baselines})


def _runs(name: str) -> list[Path]:
    """The complete runs of a case."""
    return [path for path in sorted((FOLDER / name).glob("seed*")) if is_complete(path)]


def _collected(name: str) -> dict[str, Any]:
    """Figures of every complete run of a case, and their mean and standard deviation, apart for refits."""
    case, kinds = CASES[name], dict[str, list[dict[str, Any]]](train=[], refit=[])
    for path in _runs(name):
        run = load_run(path)
        manifest = run.manifest
        seed = manifest.config.training.seed
        expected = refit_config(open_run(Path(manifest.refit_of))) if manifest.refit_of else case.config(seed)
        check_settings(path, manifest.config, expected)
        test = evaluate_in_detail(run, "test", MODEL_ALONE).metrics["model"]
        found = {
            "seed": seed,
            "epochs": manifest.epochs,
            "best_epoch": manifest.best_epoch,
            "threads": manifest.config.training.threads,
            "git_commit": manifest.git_commit,
            "created_at": manifest.created_at,
            "validation": manifest.validation,
            "test": test,
            **_times(path),
        }
        kinds["refit" if manifest.refit_of else "train"].append(found)
    if not any(kinds.values()):
        return {}
    return {
        "data": case.data,
        "published_ndcg@10": case.published,
        "config": case.config(0).model_dump(mode="json"),
        **{
            kind: {"runs": runs, **_summary([run["test"] for run in runs])}
            for kind, runs in kinds.items()
            if runs
        },
    }


def _times(path: Path) -> dict[str, Any]:
    """Seconds of all epochs, validation included, and until one was as good on validation as RecTools'
    BERT4Rec is in print on test.
    """
    epochs = read_history(path)
    so_far_s = list(itertools.accumulate(epoch["seconds"] for epoch in epochs))
    reached_s = [
        until_s
        for until_s, epoch in zip(so_far_s, epochs, strict=True)
        if epoch.get(MONITOR, 0.0) >= RECTOOLS_NDCG
    ]
    return {"seconds": so_far_s[-1], "seconds_until_rectools_ndcg": reached_s[0] if reached_s else None}


def _summary(tests: list[dict[str, float]]) -> dict[str, dict[str, float]]:
    """Mean over seeds, and the standard deviation of one seed (absent with one seed alone)."""
    values = {metric: np.array([test[metric] for test in tests]) for metric in tests[0]}
    summary = {"mean": {metric: float(found.mean()) for metric, found in values.items()}}
    if len(tests) > 1:
        summary["standard_deviation"] = {metric: float(found.std(ddof=1)) for metric, found in values.items()}
    return summary


def _baselines(data: str) -> dict[str, Any]:
    """Baselines fitted on everything before the test events, through the evaluation of any run on the
    data.
    """
    run = load_run(next(path for name, case in CASES.items() if case.data == data for path in _runs(name)))
    return {
        name: values
        for name, values in evaluate_in_detail(run, "test", BASELINES).metrics.items()
        if name != "model"
    }


if __name__ == "__main__":
    main()
