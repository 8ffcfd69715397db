"""The time of an epoch of BERT4Rec, compared with RecTools.

The same events, shape and threads, in turns on the same machine.

    make bench-peers                                                           (an hour on 2 quiet cores)
    .venv/bin/python -m benchmarks.peers --peer-python .venv-peers/bin/python --cases ml-1m-sampled --rounds 1

Histories are cut to the newest `length` events first, so that both sides see the same tokens in an epoch.
Timed is the first epoch of a fresh process, set-up and validation left out.
A step has the same number of positions on both sides, padding included.
The result of some cases alone does not take the place of that of all.
"""

import json
import subprocess
import sys
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np

from benchmarks.datasets import quality_dataset, with_events
from benchmarks.harness import environment, write_result
from passerelle.dataset import Dataset
from passerelle.ragged import gather_ragged
from training.runs.callbacks import read_history

PEER = Path(__file__).with_name("peer_rectools.py")


@dataclass(frozen=True)
class Case:
    """A model that both sides train."""

    data: str
    loss: str
    length: int
    dim: int = 64
    num_blocks: int = 2
    num_heads: int = 2
    dropout: float = 0.2
    mask_probability: float = 0.15
    num_negatives: int = 256
    batch_size: int = 128
    """RecTools' default; a step here has as many positions as one of those histories of full length."""


CASES = {
    "ml-1m-full": Case("ml-1m_sasrec", "full", 200),
    "ml-1m-sampled": Case("ml-1m_sasrec", "sampled", 200),
    "beauty-full": Case("beauty", "full", 50),
}


def newest_events(dataset: Dataset, length: int, path: Path) -> Dataset:
    """The dataset with the newest `length` events of each user."""
    start_U, end_U = dataset.offsets_U1[:-1], dataset.offsets_U1[1:]
    positions_E, offsets_U1 = gather_ragged(np.maximum(start_U, end_U - length), end_U)
    return with_events(dataset, positions_E, offsets_U1, path)


def our_epoch_s(case: Case, dataset: Path, threads: int, folder: Path) -> float:
    """Seconds of the first epoch here, in a process of its own."""
    settings = {
        "model.max_history": case.length,
        "model.dim": case.dim,
        "model.num_blocks": case.num_blocks,
        "model.num_heads": case.num_heads,
        "model.distance_slopes": [0.5, 0.03],
        "model.head_directions": [],
        "model.dropout": case.dropout,
        "objective.mask_probability": case.mask_probability,
        "objective.last_only_probability": 0.0,
        "loss.kind": case.loss,
        "batches.token_budget": case.batch_size * case.length,
        "training.threads": threads,
        "training.max_epochs": 1,
        "training.include_validation": "true",
        **({"loss.num_negatives": case.num_negatives} if case.loss == "sampled" else {}),
    }
    sets = [part for name, value in settings.items() for part in ("--set", f"{name}={value}")]
    passerelle = Path(sys.executable).with_name("passerelle")
    _run(
        [
            str(passerelle),
            "train",
            "bert4rec",
            "--no-ray",
            "--dataset",
            str(dataset),
            "--out",
            str(folder),
            *sets,
        ]
    )
    return float(read_history(folder)[0]["seconds"])


def peer_epoch_s(case: Case, events: Path, threads: int, python: Path) -> float:
    """Seconds of the first epoch with RecTools, in a process of its own."""
    report = _run([str(python), str(PEER), str(events), json.dumps({**asdict(case), "threads": threads})])
    return float(json.loads(report.splitlines()[-1])["seconds"])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise click.ClickException(
            f"{command[0]} ended with status {done.returncode}: {done.stderr.strip()[-500:]}"
        )
    return done.stdout


def _prepared(case: Case, folder: Path) -> tuple[Path, Path, int]:
    """The data for us and for the peer, and how many events of it are trained on: all but each user's last,
    kept for the test.
    """
    dataset = newest_events(quality_dataset(case.data), case.length + 1, folder / "dataset")
    positions_E, offsets_U1 = gather_ragged(dataset.offsets_U1[:-1], dataset.offsets_U1[1:] - 1)
    user_E = np.repeat(np.arange(dataset.num_users), np.diff(offsets_U1))
    events = folder / "events.npz"
    np.savez(
        events,
        user=user_E,
        item=dataset.item_rows_E[positions_E],
        timestamp_ms=dataset.timestamps_ms_E[positions_E],
    )
    return dataset.path, events, len(positions_E)


def _case(case: Case, rounds: int, threads: int, peer_python: Path) -> dict[str, Any]:
    ours_s: list[float] = []
    peers_s: list[float] = []
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        dataset, events, num_events = _prepared(case, folder)
        for number in range(rounds):
            ours_s.append(our_epoch_s(case, dataset, threads, folder / f"run{number}"))
            peers_s.append(peer_epoch_s(case, events, threads, peer_python))
            click.echo(f"ours {ours_s[-1]:.1f} s, RecTools {peers_s[-1]:.1f} s", err=True)
    ratios = [theirs / ours for ours, theirs in zip(ours_s, peers_s, strict=True)]
    return {
        **asdict(case),
        "events": num_events,
        "ours_epoch_s": ours_s,
        "rectools_epoch_s": peers_s,
        "ratios": ratios,
        "ratio": float(np.median(ratios)),
        "ours_events_per_s": num_events / float(np.median(ours_s)),
    }


@click.command()
@click.option(
    "--peer-python",
    type=click.Path(path_type=Path, exists=True),
    required=True,
    help="Python of RecTools' environment.",
)
@click.option("--cases", default=",".join(CASES), show_default=True, help="Which, with commas between.")
@click.option("--rounds", default=3, show_default=True, help="Epochs of each side, in turns.")
@click.option("--threads", default=2, show_default=True, help="CPU threads of both sides.")
def main(peer_python: Path, cases: str, rounds: int, threads: int) -> None:
    """Time both sides in turns and store one result file."""
    started = environment()
    names = cases.split(",")
    if unknown := sorted(set(names) - set(CASES)):
        raise click.BadParameter(f"{', '.join(unknown)}: not among {', '.join(CASES)}")
    versions = (
        "import json, importlib.metadata as m; "
        "print(json.dumps({n: m.version(n) for n in ('rectools', 'torch', 'pytorch-lightning')}))"
    )
    peer = json.loads(_run([str(peer_python), "-c", versions]))
    found = {name: _case(CASES[name], rounds, threads, peer_python) for name in names}
    whole = set(names) == set(CASES)
    write_result(
        "peers" if whole else "peers-in-part", started, {"peer": peer, "threads": threads, "cases": found}
    )


if __name__ == "__main__":
    main()
