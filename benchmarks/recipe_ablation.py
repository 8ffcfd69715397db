"""Ablation of the recipes: validation NDCG@10 on MovieLens-1M after a short schedule, one change at a time.

A recipe takes an hour and a half on 2 cores.
`--collect` writes the table of the runs that are complete.

    .venv/bin/python -m benchmarks.recipe_ablation --recipe sasrec
    .venv/bin/python -m benchmarks.recipe_ablation --recipe sasrec --only "rms norm;swiglu" --threads 1
    .venv/bin/python -m benchmarks.recipe_ablation --collect

One seed and few epochs, the learning rate falling over the last half of them, show what learns quickly.
Two more seeds of each recipe show the noise.
Blocks, losses and samplers are compared on `sasrec`; for `bert4rec`, only the options that it alone has.
Runs are kept in artifacts/ablation and not made twice; two processes may make different ones.
"""

from pathlib import Path
from typing import Any

import click

from benchmarks.datasets import quality_dataset
from benchmarks.harness import environment, write_result
from benchmarks.runs import check_settings, is_complete, recipe_with, train_once
from training.config import Recipe
from training.runs.run import open_run

FOLDER = Path("artifacts/ablation")
EPOCHS = 5
COMMON = (f"training.max_epochs={EPOCHS}", "optimizer.decay_fraction=0.5", "model.num_blocks=2")
BOTH_WAYS = "model.head_directions=[]"

BLOCKS: dict[str, tuple[str, ...]] = {
    "four blocks": ("model.num_blocks=4",),
    "width 128": ("model.dim=128",),
    "rotary positions": ("model.positions=rotary",),
    "post-norm": ("model.norm_first=false",),
    "rms norm": ("model.norm=rms",),
    "swiglu": ("model.feedforward=swiglu",),
    "gates": ("model.gated=true",),
    "gates, swiglu, rms norm": ("model.gated=true", "model.feedforward=swiglu", "model.norm=rms"),
    "separate output table": ("model.output_table=separate",),
    "time bias": ("model.time_bias=true",),
    "time gap": ("model.time_gap=true",),
    "time bias and gap": ("model.time_bias=true", "model.time_gap=true"),
}
LOSSES: dict[str, tuple[str, ...]] = {
    "sampled, 256 uniform": ("loss.kind=sampled",),
    "sampled, 256 uniform, target uncorrected": ("loss.kind=sampled", "loss.correct_target=false"),
    "sampled, 256 uniform, one draw a step": ("loss.kind=sampled", "loss.num_draws=1"),
    "sampled, 1024 uniform": ("loss.kind=sampled", "loss.num_negatives=1024"),
    "sampled, 256 log-uniform": ("loss.kind=sampled", "loss.sampler=log_uniform"),
    "sampled, 256 by popularity": ("loss.kind=sampled", "loss.sampler=popularity"),
    "sampled, 256 by popularity ^ 0.75": (
        "loss.kind=sampled",
        "loss.sampler.kind=popularity",
        "loss.sampler.exponent=0.75",
    ),
    "sampled, 256 by popularity, target uncorrected": (
        "loss.kind=sampled",
        "loss.sampler=popularity",
        "loss.correct_target=false",
    ),
    "sampled, 256 by popularity, uncorrected": (
        "loss.kind=sampled",
        "loss.sampler=popularity",
        "loss.log_q_correction=false",
    ),
    "sampled, 256 by streaming popularity": ("loss.kind=sampled", "loss.sampler=streaming"),
    "sampled, 256 in-batch": ("loss.kind=sampled", "loss.sampler=in_batch"),
    "sampled, 256 in-batch, uncorrected": (
        "loss.kind=sampled",
        "loss.sampler=in_batch",
        "loss.log_q_correction=false",
    ),
    "sampled, 256 mixed": ("loss.kind=sampled", "loss.sampler=mixed"),
    "gbce, 256": ("loss.kind=gbce",),
    "gbce, 256, temperature 0.3": ("loss.kind=gbce", "loss.temperature=0.3"),
    "full, temperature 0.5": ("loss.temperature=0.5",),
}
OBJECTIVE: dict[str, tuple[str, ...]] = {
    "mask 0.2": ("objective.mask_probability=0.2",),
    "mask 0.6": ("objective.mask_probability=0.6",),
    "never the last alone": ("objective.last_only_probability=0.0",),
    "the last alone in a third": ("objective.last_only_probability=0.33",),
}
SEEDS: dict[str, tuple[str, ...]] = {
    "recipe": (),
    "another seed": ("training.seed=1",),
    "a third seed": ("training.seed=2",),
}
VARIANTS = {
    "sasrec": {
        **SEEDS,
        "learned positions": ("model.positions=learned",),
        "dropout 0.1": ("model.dropout=0.1",),
        "history 100": ("model.max_history=100",),
        "four heads": ("model.num_heads=4", "model.distance_slopes=[1.0, 0.3, 0.1, 0.0]"),
        "no distance slopes": ("model.distance_slopes=[0.0, 0.0]",),
        **BLOCKS,
        **LOSSES,
    },
    "bert4rec": {
        **SEEDS,
        "no positions": ("model.positions=none",),
        "dropout 0.2": ("model.dropout=0.2",),
        "history 100": ("model.max_history=100",),
        "heads that look both ways": (BOTH_WAYS,),
        "two heads that look both ways": (
            "model.num_heads=2",
            "model.distance_slopes=[0.5, 0.03]",
            BOTH_WAYS,
        ),
        "no distance slopes": ("model.distance_slopes=[0.0, 0.0, 0.0, 0.0]",),
        "four blocks": BLOCKS["four blocks"],
        **OBJECTIVE,
    },
}


@click.command()
@click.option("--recipe", type=click.Choice(list(VARIANTS)), default="sasrec", show_default=True)
@click.option("--only", help="Names of variants, with semicolons between; all without it.")
@click.option("--threads", type=int, help="CPU threads of a run.")
@click.option("--collect", is_flag=True, help="Train nothing: store the result file of what is there.")
def main(recipe: str, only: str | None, threads: int | None, collect: bool) -> None:
    """Train what is missing, or write the table of what is there."""
    if collect:
        _collect()
        return
    variants = VARIANTS[recipe]
    names = list(variants) if only is None else only.split(";")
    if unknown := sorted(set(names) - set(variants)):
        raise click.BadParameter(f"{'; '.join(unknown)}: not among {'; '.join(variants)}")
    dataset = quality_dataset("ml-1m_sasrec")
    for name in names:
        train_once(recipe, dataset, _config(recipe, name, threads), _folder(recipe, name))


def _config(recipe: str, name: str, threads: int | None = None) -> Recipe:
    return recipe_with(recipe, (*COMMON, *VARIANTS[recipe][name]), threads)


def _folder(recipe: str, name: str) -> Path:
    return FOLDER / recipe / "".join(letter if letter.isalnum() else "_" for letter in name)


def _collect() -> None:
    started = environment()
    tables: dict[str, Any] = {}
    for recipe, variants in VARIANTS.items():
        tables[recipe] = {}
        for name in variants:
            path = _folder(recipe, name)
            if is_complete(path):
                manifest = open_run(path)
                check_settings(path, manifest.config, _config(recipe, name))
                reached = {
                    "git_commit": manifest.git_commit,
                    "best_epoch": manifest.best_epoch,
                    **manifest.validation,
                }
                tables[recipe][name] = {"overrides": variants[name], **reached}
    write_result(
        "recipe_ablation",
        started,
        {"dataset": "ml-1m_sasrec", "epochs": EPOCHS, "common": COMMON, "recipes": tables},
    )


if __name__ == "__main__":
    main()
