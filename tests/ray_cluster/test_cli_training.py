"""`passerelle train`, `train-ranker` and `export`: from a dataset to a bundle, and what mistakes get."""

import json
from pathlib import Path

import pytest

from passerelle.bundle import open_bundle
from passerelle.dataset import Dataset
from tests.ray_cluster.conftest import SHORT, SMALL, Cli, mistake, parsed
from tests.support.files import flip_byte


def test_from_dataset_to_bundle(cli: Cli, dataset: Dataset, tmp_path: Path) -> None:
    run, bundle = tmp_path / "run", tmp_path / "bundle"
    train = cli("train", "bert4rec", "--dataset", dataset.path, "--out", run, "--no-ray", "--json", *SMALL)
    summary = parsed(train)
    assert (summary["run"], summary["epochs"]) == (str(run), 20)
    assert summary["validation"]["validation_ndcg@10"] > 0.3
    epochs = [line for line in train[2].splitlines() if line.startswith("epoch ")]
    assert [line.split(":")[0] for line in epochs] == [f"epoch {number}" for number in range(1, 21)]

    evaluated = parsed(cli("evaluate", run, "--k", "20,10,10", "--json"))
    assert (evaluated["split"], evaluated["users"], list(evaluated["model"])[:4:4]) == (
        "test",
        240,
        ["recall@10"],
    )
    assert evaluated["model"]["ndcg@10"] > 4 * evaluated["popularity"]["ndcg@10"]
    assert {name.partition("@")[2] for name in evaluated["model"]} == {"10", "20", ""}
    assert evaluated["details"]["model"]["intervals"]["ndcg@10"]["low"] < evaluated["model"]["ndcg@10"]

    ranked = parsed(cli("train-ranker", run, "--json"))
    assert (
        ranked["ranker"]["ndcg@10"]
        > 0.9 * ranked["model"]["ndcg@10"]
        == pytest.approx(0.9 * evaluated["model"]["ndcg@10"])
    )

    exported = parsed(cli("export", run, "--out", bundle, "--json"))
    assert exported["parity"]["users"] == exported["parity"]["identical_top_10"] == 64
    opened = open_bundle(bundle)
    assert opened.manifest.bundle_id == exported["bundle_id"]
    assert opened.manifest.offline_metrics["popularity"]["ndcg@10"] == evaluated["popularity"]["ndcg@10"]


def test_text_output(cli: Cli, dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    status, out, err = cli("train", "bert4rec", "--dataset", dataset.path, "--out", run, "--no-ray", *SHORT)
    assert status == 0
    assert out.startswith(f"{run}: 3 epochs, best is epoch ")
    assert [line.split(", ")[1].split()[:2] for line in err.splitlines() if line.startswith("epoch")] == [
        ["validation", "ndcg@10"]
    ] * 3
    status, out, _ = cli("evaluate", run, "--split", "validation")
    assert status == 0
    assert "full catalogue of 120 items" in " ".join(out.split())
    assert [
        line.split()[0] for line in out.splitlines() if line.split()[:1] and "@100" in line.split()[0]
    ] == [
        *(f"{name}@100" for name in ("recall", "precision", "hit_rate", "ndcg", "mrr", "map")),
        *(f"{name}@100" for name in ("coverage", "novelty", "popularity_lift", "diversity")),
    ]
    assert "popularity" in out
    assert "95 % interval" in out
    assert "history" not in out
    status, out, _ = cli("train-ranker", run)
    assert status == 0
    assert "40 candidates a user" in " ".join(out.split())
    status, out, _ = cli("export", run, "--out", tmp_path / "bundle")
    assert status == 0
    assert "scores agree to" in out


def test_own_recipe_and_resuming(cli: Cli, dataset: Dataset, tmp_path: Path) -> None:
    recipe = tmp_path / "mine.toml"
    recipe.write_text(
        "[model]\ndim = 16\nmax_history = 10\n[training]\nmax_epochs = 1\nthreads = 1\nlog_every_steps = 1\n"
    )
    arguments = ("train", recipe, "--dataset", dataset.path, "--out", tmp_path / "run", "--no-ray", "--json")
    assert parsed(cli(*arguments))["epochs"] == 1
    resumed = cli(*arguments, "--resume", "--set", "training.max_epochs=3")
    assert parsed(resumed)["epochs"] == 3
    assert [line.split(":")[0] for line in resumed[2].splitlines() if line.startswith("epoch")] == [
        "epoch 2",
        "epoch 3",
    ]
    manifest = json.loads((tmp_path / "run" / "manifest.json").read_text())
    assert (
        manifest["recipe"],
        manifest["config"]["model"]["dim"],
        manifest["config"]["training"]["max_epochs"],
    ) == ("mine", 16, 3)


@pytest.mark.parametrize(
    ("recipe", "arguments", "message"),
    [
        ("sasrecc", (), "recipe 'sasrecc': not one of bert4rec, sasrec, two_tower, nor a .toml file"),
        ("nowhere.toml", (), "nowhere.toml: no such file"),
        ("bert4rec", ("--set", "model.dimm=3"), "model.dimm: unknown key; did you mean dim?"),
        ("bert4rec", ("--set", "modell.dim=3"), "modell: unknown key; did you mean model?"),
        ("bert4rec", ("--set", "model.dim=wide"), "model.dim: Input should be a valid integer"),
        ("bert4rec", ("--set", "model.dim"), "--set model.dim: write it as section.key=value"),
        (
            "bert4rec",
            ("--set", "training.validate_every_epochs=999"),
            "validate_every_epochs = 999 is above the",
        ),
        (
            "bert4rec",
            (
                "--set",
                "split.rule=global_time",
                "--set",
                "split.test_start=1990-01-01",
                "--set",
                "split.validation_start=1980-01-01",
            ),
            "no user of the 240",
        ),
    ],
)
def test_train_refuses_and_leaves_nothing(
    cli: Cli, dataset: Dataset, tmp_path: Path, recipe: str, arguments: tuple[str, ...], message: str
) -> None:
    answer = cli(
        "train", recipe, "--dataset", dataset.path, "--out", tmp_path / "run", "--no-ray", *arguments
    )
    assert message in mistake(answer)
    assert list(tmp_path.iterdir()) == []


def test_train_refuses_what_is_no_dataset(cli: Cli, trained: Path, tmp_path: Path) -> None:
    for path, message in ((tmp_path / "gone", "gone: no such dataset"), (trained, "is a run, not a dataset")):
        assert message in mistake(
            cli("train", "bert4rec", "--dataset", path, "--out", tmp_path / "run", "--no-ray")
        )
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("arguments", [("--workers", "2"), ("--ray-address", "auto")])
def test_no_ray_refuses_options_of_ray(
    cli: Cli, dataset: Dataset, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    answer = cli(
        "train", "bert4rec", "--dataset", dataset.path, "--out", tmp_path / "run", "--no-ray", *arguments
    )
    assert "--no-ray trains in this process: leave out --workers and --ray-address" in mistake(
        answer, status=2
    )


def test_train_refuses_an_existing_run(cli: Cli, dataset: Dataset, trained: Path) -> None:
    answer = cli("train", "bert4rec", "--dataset", dataset.path, "--out", trained, "--no-ray", *SHORT)
    assert "already holds a run: pass --resume to continue it" in mistake(answer)
    answer = cli(
        "train",
        "bert4rec",
        "--dataset",
        dataset.path,
        "--out",
        trained,
        "--no-ray",
        "--resume",
        *SHORT,
        "--set",
        "model.dim=16",
    )
    assert "model.dim was 32 and is now 16" in mistake(answer)


def test_validation_events_may_be_trained_on(cli: Cli, dataset: Dataset, tmp_path: Path) -> None:
    run = tmp_path / "run"
    more = (*SHORT, "--set", "training.include_validation=true")
    status, out, err = cli("train", "bert4rec", "--dataset", dataset.path, "--out", run, "--no-ray", *more)
    assert (status, out) == (0, f"{run}: trained on train and validation, 3 epochs\n"), err
    answer = cli("train", "--refit", run, "--out", tmp_path / "refit", "--no-ray")
    assert (
        "--refit: this run was trained on validation events already; give the run that it was made from"
        in mistake(answer)
    )
    assert not (tmp_path / "refit").exists()


def test_a_refit(cli: Cli, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Trained again for the epochs that were chosen; its ranker finds the run that chose
    them, also from another folder.
    """
    best_epoch = json.loads((trained / "manifest.json").read_text())["best_epoch"]
    monkeypatch.chdir(trained.parent)
    status, out, err = cli("train", "--refit", trained.name, "--out", tmp_path / "refit", "--no-ray")
    assert status == 0, err
    trained_on = f"train and validation, {best_epoch} epochs as chosen by {trained}"
    assert out == f"{tmp_path / 'refit'}: trained on {trained_on}\n"
    monkeypatch.chdir(tmp_path)
    summary = parsed(cli("train", "--refit", trained, "--out", "again", "--no-ray", "--json"))
    said = f"train and validation, {best_epoch} epochs as chosen by {trained}"
    assert summary == {
        "run": "again",
        "epochs": best_epoch,
        "best_epoch": best_epoch,
        "validation": {},
        "trained_on": said,
    }
    ranked = parsed(cli("train-ranker", "refit", "--json"))
    assert set(ranked) == {"model", "ranker", "run", "trained_on"}
    assert ranked["trained_on"] == said


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ("bert4rec", "--refit", "run"),
            "--refit takes recipe and settings from its run: leave out RECIPE and --set",
        ),
        (
            ("--refit", "run", "--set", "model.dim=16"),
            "--refit takes recipe and settings from its run: leave out RECIPE and --set",
        ),
        (("bert4rec",), "say what to train and on what: RECIPE and --dataset, or --refit RUN"),
        (("--dataset", "dataset"), "say what to train and on what: RECIPE and --dataset, or --refit RUN"),
    ],
)
def test_train_needs_recipe_and_dataset_or_refit(
    cli: Cli, tmp_path: Path, arguments: tuple[str, ...], message: str
) -> None:
    answer = cli("train", *arguments, "--out", tmp_path / "out", "--no-ray")
    assert message in " ".join(mistake(answer, status=2).split())
    assert not (tmp_path / "out").exists()


def test_a_dataset_that_has_moved(cli: Cli, own_run: Path, dataset: Dataset, tmp_path: Path) -> None:
    manifest = json.loads((own_run / "manifest.json").read_text())
    (own_run / "manifest.json").write_text(json.dumps({**manifest, "dataset": str(tmp_path / "gone")}))
    assert "gone: no such dataset" in mistake(cli("evaluate", own_run))
    assert parsed(cli("evaluate", own_run, "--dataset", dataset.path, "--k", "5", "--json"))["users"] == 240


def test_verbs_in_the_wrong_order(cli: Cli, own_run: Path, tmp_path: Path) -> None:
    for verb, more in (("evaluate", ()), ("train-ranker", ()), ("export", ("--out", tmp_path / "bundle"))):
        assert "nowhere: no such run" in mistake(cli(verb, tmp_path / "nowhere", *more))
    assert "has no ranker: run `passerelle train-ranker" in mistake(
        cli("export", own_run, "--out", tmp_path / "bundle")
    )
    assert not (tmp_path / "bundle").exists()
    assert cli("train-ranker", own_run)[0] == 0
    assert "already exists: pass --overwrite to train the ranker again" in mistake(
        cli("train-ranker", own_run)
    )
    assert cli("train-ranker", own_run, "--overwrite")[0] == 0
    (tmp_path / "bundle").mkdir()
    assert "already exists: choose another --out, or pass --overwrite" in mistake(
        cli("export", own_run, "--out", tmp_path / "bundle")
    )
    assert list((tmp_path / "bundle").iterdir()) == []


def test_an_altered_checkpoint(cli: Cli, own_run: Path) -> None:
    checkpoint = own_run / "checkpoints" / "best.ckpt"
    flip_byte(checkpoint, checkpoint.stat().st_size // 2)
    assert "best.ckpt: altered since it was written" in mistake(cli("evaluate", own_run))
