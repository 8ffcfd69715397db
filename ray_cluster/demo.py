"""The whole way on MovieLens-1M, each step a command you could type: raw ratings to recommendations over
HTTP.

python -m ray_cluster.demo                  (what `make demo` runs)
python -m ray_cluster.demo --keep-serving   (what `make serve` runs)
"""

import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import click

from ray_cluster.cli.console import DEFAULT_REPOSITORY, print_table, stdout

ROOT = Path("artifacts/demo")
DATASET, RUN, BUNDLE = (str(ROOT / name) for name in ("dataset", "run", "bundle"))
REPOSITORY = DEFAULT_REPOSITORY
# Half the blocks and the history of the recipe, the sampled loss, and two epochs of larger steps.
SETTINGS = (
    "model.num_blocks=2",
    "model.max_history=100",
    "loss.kind=sampled",
    "optimizer.learning_rate=4e-3",
    "training.max_epochs=2",
    "training.validate_every_epochs=2",
)
SHOWN_METRICS = ("ndcg@10", "recall@10", "recall@50")
SHOWN_ITEMS = 10

STEPS: tuple[tuple[str, ...], ...] = (
    ("prepare", "movielens-1m", "--out", DATASET),
    (
        "train",
        "sasrec",
        "--dataset",
        DATASET,
        "--out",
        RUN,
        *(part for setting in SETTINGS for part in ("--set", setting)),
    ),
    ("evaluate", RUN, "--k", "10,50"),
    ("train-ranker", RUN),
    ("export", RUN, "--out", BUNDLE),
    ("publish", BUNDLE, "--repository", str(REPOSITORY)),
)


def passerelle(*arguments: str) -> None:
    """Run one command and wait for it; Ctrl-C or SIGTERM reaches it once, through us,
    and it cleans up before we end.
    """
    stdout.print(f"\n[bold]$ passerelle {' '.join(arguments)}[/bold]")
    command = [str(Path(sys.executable).with_name("passerelle")), *arguments]
    with subprocess.Popen(command, start_new_session=True) as process:
        try:
            status = process.wait()
        except KeyboardInterrupt:
            for number in (signal.SIGINT, signal.SIGTERM):
                signal.signal(
                    number, signal.SIG_IGN
                )  # an impatient second one would leave its processes without us
            process.send_signal(signal.SIGINT)
            process.wait()
            raise
    if status:
        sys.exit(status)


def ask() -> None:
    """Serve the bundle, ask for one user, and print what came back beside the offline figures."""
    from passerelle.bundle import open_bundle
    from ray_cluster.client import ServiceClient
    from ray_cluster.publishing import published_version
    from ray_cluster.service import Service

    bundle = open_bundle(Path(BUNDLE))
    manifest = bundle.manifest
    user_id = bundle.reference().user_ids()[0]
    started_s = time.monotonic()
    with (
        Service(Path(BUNDLE), REPOSITORY, published_version(bundle, REPOSITORY)) as service,
        ServiceClient(service.url) as client,
    ):
        ready_s = time.monotonic() - started_s
        request = {"user_id": user_id, "k": SHOWN_ITEMS}
        client.recommend(request)  # the first answer also opens connections
        answer = client.recommend(request)
        rows_L = bundle.history(bundle.user_ids.row(user_id)).item_rows_L
        history = bundle.item_ids.ids(rows_L[-SHOWN_ITEMS:])[::-1]
        seen = [str(client.item(item_id)["title"]) for item_id in history]
        offered = [(client.item(item["item_id"])["title"], item["score"]) for item in answer["items"]]
    rows = [
        (rank, seen_title, title, score)
        for rank, (seen_title, (title, score)) in enumerate(zip(seen, offered, strict=False), start=1)
    ]
    stdout.print(f"\nReady in {ready_s:.1f} s; everything is stopped again.\n")
    print_table(f"User {user_id}", ("", "last films, newest first", "recommended", "score"), rows)
    timings_ms = answer["timings_ms"]
    print_table(
        "One request, in milliseconds",
        tuple(timings_ms),
        [tuple(f"{value:.2f}" for value in timings_ms.values())],
    )
    offline = manifest.offline_metrics
    figures = [
        (metric, *(offline[scorer][metric] for scorer in ("popularity", "model", "ranker")))
        for metric in SHOWN_METRICS
    ]
    title = f"Offline: next film of {manifest.num_users} users, among all {manifest.num_items}"
    print_table(title, ("test", "popularity", "SASRec", "and ranker"), figures)


@click.command()
@click.option(
    "--keep-serving", is_flag=True, help="Leave the service running until Ctrl-C, instead of asking it once."
)
def main(keep_serving: bool) -> None:
    """Prepare MovieLens-1M, train SASRec on local Ray for about a minute, evaluate,
    export, publish, serve and ask.
    """
    started_s = time.monotonic()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    shutil.rmtree(ROOT, ignore_errors=True)
    try:
        for step in STEPS:
            passerelle(*step)
        if keep_serving:
            passerelle("serve", BUNDLE, "--repository", str(REPOSITORY))
        else:
            ask()
    except KeyboardInterrupt:
        stdout.print("\ninterrupted; everything is stopped")
        sys.exit(130)
    stdout.print(
        f"\nThe whole way took {time.monotonic() - started_s:.0f} s. `make serve` leaves it running."
    )


if __name__ == "__main__":
    main()
