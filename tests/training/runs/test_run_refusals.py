"""What a run refuses: directories, datasets, spoilt files, too little data, and impossible configurations."""

import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from tests.support.datasets import dataset_of, planted_dataset, small_recipe
from tests.support.runs import train, with_split_file
from training.runs.open_run import OpenRun, load_run
from training.runs.run import BEST, LAST, open_run, plan_run, start_run


@pytest.mark.parametrize(
    ("overrides", "resume", "message"),
    [
        ((), False, "already holds a run: pass --resume to continue it, or choose another --out"),
        (("model.dim=16",), True, "model.dim was 32 and is now 16: a resumed run keeps its values"),
        (("training.seed=1",), True, "training.seed was 0 and is now 1"),
        (("split.rule=global_time",), True, "split.rule was 'leave_one_out' and is now 'global_time'"),
    ],
)
def test_an_existing_run_is_refused(
    dataset: Dataset, own_run: Path, overrides: tuple[str, ...], resume: bool, message: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in own_run.rglob("*")}
    with pytest.raises(UserError, match=message):
        train(dataset, own_run, *overrides, resume=resume)
    assert {path: path.stat().st_mtime_ns for path in own_run.rglob("*")} == before
    assert load_run(own_run).manifest.state == "complete"


def test_another_dataset_is_refused(own_run: Path, tmp_path: Path) -> None:
    other = planted_dataset(tmp_path / "other", seed=1)
    with pytest.raises(UserError, match="was trained on another dataset"):
        train(other, own_run, resume=True)
    with pytest.raises(UserError, match="is not the data this run was trained on"):
        load_run(own_run, other.path)


def test_the_dataset_may_have_moved_but_must_be_there(own_run: Path, run: OpenRun, tmp_path: Path) -> None:
    manifest = json.loads((own_run / "manifest.json").read_text())
    manifest["dataset"] = str(tmp_path / "gone")
    (own_run / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(UserError, match="gone: no such dataset"):
        load_run(own_run)
    shutil.copytree(run.dataset.path, tmp_path / "elsewhere")
    assert load_run(own_run, tmp_path / "elsewhere").dataset.num_items == run.dataset.num_items


def flip_last_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("name", "spoil", "message"),
    [
        (BEST, flip_last_byte, "best.ckpt: altered since it was written"),
        (LAST, Path.unlink, "last.ckpt: missing from this run"),
        (BEST, lambda path: path.write_bytes(b""), "best.ckpt: 0 bytes where the manifest says"),
        ("manifest.json", Path.unlink, "is not a run: it has no manifest.json"),
        ("manifest.json", lambda path: path.write_text("{"), "manifest.json: unreadable"),
    ],
)
def test_an_altered_run_is_refused(
    own_run: Path, name: str, spoil: Callable[[Path], None], message: str
) -> None:
    spoil(own_run / name)
    with pytest.raises(UserError, match=message):
        load_run(own_run)


def test_what_is_not_a_run_is_refused(dataset: Dataset, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="nowhere: no such run"):
        open_run(tmp_path / "nowhere")
    with pytest.raises(UserError, match="is a dataset, not a run"):
        open_run(dataset.path)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    for path in (tmp_path / "mine", tmp_path / "mine" / "letter.txt"):
        with pytest.raises(UserError, match="exists and is not a run"):
            train(dataset, path)
    assert (tmp_path / "mine" / "letter.txt").read_text() == "keep me"


def test_an_empty_directory_is_accepted(dataset: Dataset, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    assert train(dataset, tmp_path / "run", "training.max_epochs=1").epochs == 1


@pytest.mark.parametrize("written", ["nothing", "half a manifest", "the manifest alone"])
def test_a_run_killed_while_it_was_created_is_started_again(
    dataset: Dataset, tmp_path: Path, written: str
) -> None:
    config = with_split_file(dataset, tmp_path / "mine.csv", "1,1", "training.max_epochs=1")
    run = tmp_path / "run"
    run.mkdir()
    if written == "half a manifest":
        (run / ".manifest.json.0123abcd").write_text('{"kind"')
    elif written == "the manifest alone":
        start_run(run, plan_run(run, "bert4rec", dataset, config, resume=False))
        (run / "split.csv").unlink()
    assert train(dataset, run, config=config, resume=True).state == "complete"
    assert (run / "split.csv").read_text() == (tmp_path / "mine.csv").read_text()


def test_more_workers_than_users_to_validate_on_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    """One of them would have nothing to do, and the others wait for it."""
    config = with_split_file(dataset, tmp_path / "mine.csv", "1,1", num_users=2)
    with pytest.raises(UserError, match="2 users to validate on: too few for --workers 3"):
        plan_run(tmp_path / "run", "bert4rec", dataset, config, resume=False, num_workers=3)
    plan_run(tmp_path / "run", "bert4rec", dataset, config, resume=False, num_workers=2)


def test_too_little_data_leaves_nothing_behind(tmp_path: Path) -> None:
    short = dataset_of(tmp_path / "short", [[(2, 0), (3, 1)]] * 5, num_items=3)
    with pytest.raises(UserError, match="no user of the 5 has both history and a validation event"):
        train(short, tmp_path / "run")
    barely = dataset_of(tmp_path / "barely", [[(2, 0), (3, 1), (4, 2)]] * 5, num_items=3)
    with pytest.raises(UserError, match="0 windows of two or more training events: prepare longer histories"):
        train(barely, tmp_path / "run")
    enough = ("training.include_validation=true", "training.max_epochs=1", "training.log_every_steps=1")
    assert train(barely, tmp_path / "refit", *enough).epochs == 1
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("model.dimm=3", "model.dimm: unknown key; did you mean dim?"),
        ("model.num_heads=5", "num_heads = 5 does not divide dim = 32"),
        ("model.distance_slopes=[1.0]", "distance_slopes has 1 values for num_heads = 2"),
        ("model.head_directions=['past']", "head_directions has 1 values for num_heads = 2"),
        ("loss.kind=hinge", "loss.kind: Input should be 'full', 'sampled' or 'gbce', got 'hinge'"),
        ("training.validate_every_epochs=21", "validate_every_epochs = 21 is above the 20 epochs to train"),
        ("optimizer.learning_rate=nan", "optimizer.learning_rate"),
        ("batches.token_budget=0", "batches.token_budget"),
    ],
)
def test_impossible_configurations_are_refused(override: str, message: str) -> None:
    with pytest.raises(UserError) as error:
        small_recipe(override)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_head_directions_of_a_causal_encoder_are_refused() -> None:
    with pytest.raises(
        UserError, match=r"model\.head_directions has no effect with objective\.kind = 'causal'"
    ):
        small_recipe("objective.kind=causal", "model.head_directions=['both','past']")


def test_a_run_that_would_never_validate_is_refused() -> None:
    """It would have no best weights; one that is trained on validation events has no use for validations."""
    with pytest.raises(UserError, match="validate_every_epochs = 2 is above the 1 epochs to train"):
        small_recipe("training.stop_after_epochs=1", "training.validate_every_epochs=2")
    training = small_recipe("training.include_validation=true", "training.validate_every_epochs=21").training
    assert training.num_epochs == 20


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        (
            "split.test_start=2020-01-01",
            "test_start = '2020-01-01 00:00:00' has no effect without rule = 'global_time'",
        ),
        ("split.test_fraction=0.1", "test_fraction = 0.1 has no effect without rule = 'global_time'"),
        ("split.file_sha256=abc", "file_sha256 = 'abc' has no effect without file"),
    ],
)
def test_an_idle_option_of_the_split_is_refused(setting: str, message: str) -> None:
    with pytest.raises(UserError, match=re.escape(message)):
        small_recipe(setting)


def test_a_fraction_beside_a_date_is_refused() -> None:
    dated = ("split.rule=global_time", "split.validation_start=2020-01-01")
    assert small_recipe(*dated, "split.test_fraction=0.1").split.test_fraction == 0.1
    with pytest.raises(UserError, match=r"validation_fraction = 0\.1 has no effect"):
        small_recipe(*dated, "split.validation_fraction=0.1")
    with pytest.raises(UserError, match=r"test_fraction = 0\.1 has no effect"):
        small_recipe(*dated, "split.test_start=2021-01-01", "split.test_fraction=0.1")


@pytest.mark.parametrize("name", ["mask_probability", "last_only_probability"])
def test_masking_next_items_is_refused(name: str) -> None:
    with pytest.raises(
        UserError, match=re.escape(f"{name} = 0.7 has no effect without objective.kind = 'masked'")
    ):
        small_recipe("objective.kind=causal", f"objective.{name}=0.7")
