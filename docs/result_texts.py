"""The paragraphs of docs/results.md between its tables."""

INTRODUCTION = """\
# Results

Written by `make docs` from the files of `benchmarks/results/`.
All of it was measured on {cores} CPU cores, without a GPU; each section names its file.
"""
QUALITY = """
## Quality

NDCG@10 on test: leave-one-out, the whole catalogue ranked, seen items left out.
Mean and standard deviation over seeds.
A refit is trained once more on train and validation, for the epochs that validation chose.
`benchmarks/quality.py` says where the published figures are from.
{provenance}
"""
PROVENANCE = """\
The times of MovieLens-1M are partly reconstructed here: users, films and ratings are exact.
53 % of the times are exact, and 97 % are exact or within the hour.
The order of events, and so the file of 3,416 items, is not affected; models with time are."""
REACHING = """
Time of training until validation NDCG@10 is 0.1618, which RecTools publishes for its BERT4Rec on test:
"""
PEERS = """
## Speed of training

Median time of an epoch of BERT4Rec, two blocks, beside RecTools {version}.
Both were run alternately on the same machine (`make bench-peers`); the ratio is that of the runs of a pair.
"""
TOWERS = """
## Two towers and large catalogues
"""
SERVING = """
## Serving

The whole graph over HTTP, {items:,} items of MovieLens-1M.
The model is a BERT4Rec of two blocks with a history of 100, and its ranker.
The no-op deployment is a Ray Serve deployment behind its proxy that does nothing.
The hand-written service is one process with the same model, ranker and index (`benchmarks/handwritten.py`).
It has no filters, playlists, events, fallbacks, deadlines and versions.

Latency with one client:
"""
STAGES = """
Of it, by stage:
"""
LOAD = """
Under load, with the client on the same cores.
Goodput counts answers within {objective:.0f} ms.
The sustainable rate is the highest tried at which nearly all answers are (`benchmarks/serving_load.py`).
The last column is the goodput at twice the sustainable rate, as a share of the highest goodput.
"""
CURVE = """
Goodput by arrivals per second, each service at the rates that were tried of it.
The hand-written process answers more in time up to its limit, and hardly anything beyond it.
Passerelle refuses what would be late (429), so that its goodput stays.
With one process per stage no rate that was tried is sustainable: some requests are refused at each.
"""
SEARCHES = """
## Filtered retrieval

Searches among {vectors:,} vectors, k = {k}.
Filter selectivity is the share of the catalogue that a filter keeps.
At 54 % the public recommender's settings of LanceDB take {ratio:.0f} times as long.
"""
MEMORY = """
Memory of processes that search: {one:.0f} MiB for one, {two:.0f} MiB for two, which share the index.
"""
DEMO = """
## The demo

`make demo` with the small BERT4Rec that it trained until 2026-11-27, now a SASRec with the sampled loss.
From 1,000,209 ratings of MovieLens-1M to answers over HTTP:
"""
ABLATION = """
## What each choice of a recipe is worth

Validation NDCG@10 on MovieLens-1M (5-core), one change at a time.
All with {common}.
Settings are written without their section, and `kind` of the loss by its value.
What was concluded is in [decisions](decisions/recipes.md).
"""
