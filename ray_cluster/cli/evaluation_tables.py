"""Tables of an evaluation, for people."""

from typing import TYPE_CHECKING

from ray_cluster.cli.console import print_table

if TYPE_CHECKING:
    from training.evaluation.evaluate import Evaluation


def print_evaluation(title: str, evaluation: "Evaluation") -> None:
    """Print the metrics with their intervals, and the comparisons that were evaluated."""
    model, *baselines = evaluation.metrics
    details = evaluation.details
    ends = {metric: _ends(ends) for metric, ends in details[model]["intervals"].items()}
    others = [evaluation.metrics[name] for name in baselines]
    rows = [
        (metric, value, ends.get(metric, ""), *(values[metric] for values in others))
        for metric, value in evaluation.metrics[model].items()
    ]
    print_table(title, ("metric", model, "95 % interval", *baselines), rows)
    shown = [metric for metric in ends if metric.startswith("ndcg@")]
    if baselines:
        gains = {name: details[name]["model_minus_this"] for name in baselines}
        rows = [
            (name, *(f"{gain[metric]['mean']:+.4f} {_ends(gain[metric])}" for metric in shown))
            for name, gain in gains.items()
        ]
        print_table("Model minus baseline, with 95 % intervals", ("baseline", *shown), rows)
    if groups := details[model].get("segments"):
        rows = [
            (
                group,
                groups[group]["users"],
                *(values["segments"][group][shown[0]] for values in details.values()),
            )
            for group in groups
        ]
        print_table(f"{shown[0]} by length of history", ("history", "users", model, *baselines), rows)
    if "with_seen" in details[model]:
        rows = [
            (metric, *(values["with_seen"][metric] for values in details.values()))
            for metric in details[model]["with_seen"]
        ]
        print_table("The same with seen items left in the ranking", ("metric", model, *baselines), rows)


def _ends(interval: dict[str, float]) -> str:
    return f"[{interval['low']:.4f}, {interval['high']:.4f}]"
