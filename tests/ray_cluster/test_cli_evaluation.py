"""`passerelle evaluate`: figures, tables, and what mistakes get."""

import re
from pathlib import Path

import pytest

from ray_cluster.cli import console
from tests.ray_cluster.conftest import Cli, mistake, parsed


@pytest.mark.parametrize(
    ("ks", "status", "message"),
    [
        ("10,1000", 1, "--k 10,1000: each must lie between 1 and the 120 items of the catalogue"),
        ("0", 1, "--k 0: each must lie between 1 and the 120 items"),
        ("ten", 2, "'ten': write whole numbers with commas between, such as 10,50"),
        ("", 2, "write whole numbers"),
    ],
)
def test_evaluate_refuses_impossible_cut_offs(
    cli: Cli, trained: Path, ks: str, status: int, message: str
) -> None:
    assert message in mistake(cli("evaluate", trained, "--k", ks), status)


def test_all_comparisons(cli: Cli, own_run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fitted = ("--baselines", "all", "--fit-baselines-on", "before_targets", "--recent-days", "7")
    more = (*fitted, "--k", "10", "--segments", "8,14", "--with-seen")
    report = parsed(cli("evaluate", own_run, *more, "--json"))
    baselines = ["popularity", "recent_popularity", "markov", "item_knn", "ease", "ials"]
    assert list(report) == ["run", "split", "users", "model", *baselines, "details"]
    assert [report["details"][name]["fitted_on"] for name in baselines] == ["before_targets"] * 6
    assert report["details"]["recent_popularity"]["hyper_parameters"] == {"days": 7}
    assert report["details"]["ease"]["hyper_parameters"] == {"regularization": 500.0, "max_items": 30_000}
    monkeypatch.setattr(console.stdout, "width", 160)
    status, out, _ = cli("evaluate", own_run, *more)
    assert status == 0
    parts = [[line.split() for line in part.splitlines()] for part in re.split(r"\n *\n", out.strip())]
    numbers, gains, segments, with_seen = (
        part for part in parts if len(part) > 1
    )  # titles are lines of their own
    ends = report["details"]["model"]["intervals"]["ndcg@10"]
    (ndcg,) = (line for line in numbers if line[0] == "ndcg@10")
    assert ndcg[:4] == [
        "ndcg@10",
        f"{report['model']['ndcg@10']:.4f}",
        f"[{ends['low']:.4f},",
        f"{ends['high']:.4f}]",
    ]
    assert ndcg[4:] == [f"{report[name]['ndcg@10']:.4f}" for name in baselines]
    assert [line[0] for line in gains[-6:]] == baselines
    gain = report["details"]["ials"]["model_minus_this"]["ndcg@10"]
    assert gains[-1][1:] == [f"{gain['mean']:+.4f}", f"[{gain['low']:.4f},", f"{gain['high']:.4f}]"]
    groups = {name: report["details"][name]["segments"] for name in ("markov", "recent_popularity")}
    lines = segments[-3:]
    assert [line[:3] for line in lines] == [
        [*name.split(), str(group["users"])] for name, group in groups["markov"].items()
    ]
    assert [line[5] for line in lines] == [
        f"{group['ndcg@10']:.4f}" for group in groups["recent_popularity"].values()
    ]
    (ndcg,) = (line for line in with_seen if line[0] == "ndcg@10")
    assert ndcg[1:] == [
        f"{report['details'][name]['with_seen']['ndcg@10']:.4f}" for name in ("model", *baselines)
    ]


@pytest.mark.parametrize(
    ("arguments", "status", "message"),
    [
        (
            ("--baselines", "popularity,top"),
            1,
            "baseline 'top': not one of popularity, recent_popularity, markov, item_knn, ease, ials",
        ),
        (
            ("--segments", "0,10"),
            1,
            "segments 0,10: lengths of history must rise, from 1 or more, such as 20,100",
        ),
        (("--segments", "halves"), 2, "'halves': write whole numbers"),
        (("--fit-baselines-on", "test"), 2, "'test' is not one of 'train', 'before_targets'"),
    ],
)
def test_evaluate_refuses_impossible_comparisons(
    cli: Cli, trained: Path, arguments: tuple[str, ...], status: int, message: str
) -> None:
    assert message in mistake(cli("evaluate", trained, *arguments), status)
