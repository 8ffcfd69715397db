"""Sparse tables: FBGEMM's optimizer, the losses of dense tables, and updates of requested rows only.

Shape legend: R rows, D width, U rows of a step.
"""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from passerelle.dataset import Dataset
from passerelle.errors import UserError
from passerelle.splits import make_split
from tests.support.datasets import small_recipe
from training.data.batches import EpochBatches
from training.data.windows import training_split
from training.evaluation.evaluate import evaluate
from training.model.factory import build_training_model
from training.model.sequence_model import SequenceModel
from training.runs.fit import train_in_process
from training.runs.open_run import load_run
from training.tables.sparse import BLOCK_ROWS, SparseTable, fill_rows

SAMPLED = ("loss.kind=sampled", "loss.num_negatives=16", "loss.num_draws=4")
SPARSE = ("items.table=sparse", *SAMPLED)


def steps_of(rows: int, count: int) -> list[tuple[torch.Tensor, torch.Tensor]]:
    """Returns rows of each step and their gradients; some rows recur, within a step or in several."""
    generator = torch.Generator().manual_seed(0)
    return [
        (torch.randint(rows, (9,), generator=generator), torch.randn(9, 4, generator=generator))
        for _ in range(count)
    ]


def make_table(rows: int = 12, learning_rate: float = 0.3) -> SparseTable:
    return SparseTable(rows, 4, std=0.1, seed=3, learning_rate=learning_rate)


def test_rowwise_adagrad_matches_fbgemm() -> None:
    # Imports FBGEMM without its warnings.
    table = make_table()
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    fused = SplitTableBatchedEmbeddingBagsCodegen(
        [(12, 4, EmbeddingLocation.HOST, ComputeDevice.CPU)],
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=0.3,
        eps=1e-8,
        pooling_mode=PoolingMode.NONE,
    )
    fused.split_embedding_weights()[0].copy_(table.weight.detach())
    for rows_N, gradient_ND in steps_of(12, 5):
        rows_U, slot_N = torch.unique(rows_N, return_inverse=True)
        (table(rows_U)[slot_N] * gradient_ND).sum().backward()
        (fused(rows_N, torch.tensor([0, len(rows_N)])) * gradient_ND).sum().backward()
    torch.testing.assert_close(table.weight.detach(), fused.split_embedding_weights()[0])


def test_rowwise_adagrad_by_hand() -> None:
    table = make_table()
    weights, momentum = table.weight.detach().double().clone(), [0.0] * 12
    for rows_N, gradient_ND in steps_of(12, 5):
        rows_U, slot_N = torch.unique(rows_N, return_inverse=True)
        table.set_learning_rate_scale(0.5)
        (table(rows_U)[slot_N] * gradient_ND).sum().backward()
        assert table.weight.grad is None
        for row in rows_U.tolist():
            total = gradient_ND[rows_N == row].double().sum(0)
            momentum[row] += float(total.square().mean())
            weights[row] -= 0.15 * total / (momentum[row] ** 0.5 + 1e-8)
    torch.testing.assert_close(table.weight.detach().double(), weights, atol=1e-6, rtol=1e-5)
    torch.testing.assert_close(
        table.momentum_R.double(), torch.tensor(momentum, dtype=torch.float64), atol=1e-6, rtol=1e-5
    )


@pytest.mark.gpu
def test_gpu_steps_match_cpu_steps() -> None:
    """The table is created on the CPU and moved, as Lightning does."""
    here, there = make_table(), make_table().to("cuda")
    for rows_N, gradient_ND in steps_of(12, 5):
        rows_U, slot_N = torch.unique(rows_N, return_inverse=True)
        (here(rows_U)[slot_N] * gradient_ND).sum().backward()
        (there(rows_U.cuda())[slot_N.cuda()] * gradient_ND.cuda()).sum().backward()
    torch.testing.assert_close(there.weight.detach().cpu(), here.weight.detach())
    torch.testing.assert_close(there.momentum_R.cpu(), here.momentum_R)


def test_step_updates_only_requested_rows() -> None:
    table = make_table()
    before = table.weight.detach().clone()
    table(torch.tensor([2, 7])).sum().backward()
    assert (table.weight.detach() != before).any(1).nonzero().flatten().tolist() == [2, 7]
    assert table.momentum_R.nonzero().flatten().tolist() == [2, 7]


@pytest.mark.parametrize("first", [0, 5, BLOCK_ROWS - 3, BLOCK_ROWS, BLOCK_ROWS + 1])
def test_initial_rows_do_not_depend_on_shards(first: int) -> None:
    whole_RD, part_RD = torch.empty(2 * BLOCK_ROWS + 7, 2), torch.empty(BLOCK_ROWS + 4, 2)
    fill_rows(whole_RD, 0, std=0.5, seed=9)
    fill_rows(part_RD, first, std=0.5, seed=9)
    assert torch.equal(part_RD, whole_RD[first : first + len(part_RD)])
    assert 0.49 < whole_RD.std() < 0.51
    assert len(whole_RD.unique()) > 0.99 * whole_RD.numel(), "blocks repeat each other"
    fill_rows(part_RD, first, std=0.5, seed=10)
    assert not torch.equal(part_RD, whole_RD[first : first + len(part_RD)])


def with_ids_of(model: SequenceModel, other: SequenceModel) -> SequenceModel:
    """Returns a model with the weights of another, whatever its kind of table."""
    with torch.no_grad():
        model.items.ids.weight.copy_(other.items.ids.weight)
    others = {name: value for name, value in other.state_dict().items() if not name.startswith("items.ids.")}
    model.load_state_dict(others, strict=False)
    return model


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("objective.kind=causal",),
        ("objective.kind=causal", "loss.sampler=mixed"),
        ("objective.kind=causal", "items.kind=tower", "items.id_dropout=0.3", "loss.temperature=0.2"),
        ("loss.kind=gbce",),
    ],
)
def test_sparse_step_matches_dense_step(dataset: Dataset, options: tuple[str, ...]) -> None:
    """The loss and the gradients of all other parameters are equal."""
    losses, gradients = [], []
    made = [small_recipe(*SAMPLED, *options), small_recipe(*SPARSE, *options)]
    split = training_split(make_split(dataset, made[0].split), made[0])
    dense, sparse = (build_training_model(dataset, split, config, total_steps=9) for config in made)
    for model in (dense, with_ids_of(sparse, dense)):
        batch = next(iter(EpochBatches(dataset, split, model.config, epoch=0)))
        model.log = lambda *_, **__: None  # type: ignore[method-assign]
        before = model.items.ids.weight.detach().clone()
        loss = model.training_step(batch, 0)
        loss.backward()
        losses.append(loss.item())
        gradients.append(
            {name: p.grad for name, p in model.named_parameters() if not name.startswith("items.ids.")}
        )
        moved = (model.items.ids.weight.detach() != before).any(1)
    assert losses[1] == pytest.approx(losses[0], rel=1e-6)
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-4, msg=name)
    dense_gradient = dense.items.ids.weight.grad
    assert dense_gradient is not None
    assert torch.equal(moved, dense_gradient.abs().amax(1) > 0), (
        "other rows were updated than those that the loss depends on"
    )


def test_sparse_run_trains_resumes_and_loads(dataset: Dataset, tmp_path: Path) -> None:
    """A resumed run is bit-identical to an uninterrupted one."""
    config = small_recipe("objective.kind=causal", *SPARSE, "training.max_epochs=6")
    whole = train_in_process("sasrec", dataset, config, tmp_path / "whole")
    training = config.training.model_copy(update={"stop_after_epochs": 3})
    train_in_process("sasrec", dataset, config.model_copy(update={"training": training}), tmp_path / "parts")
    manifest_path = tmp_path / "parts" / "manifest.json"
    manifest = json.loads(manifest_path.read_text())
    manifest["config"]["training"]["stop_after_epochs"] = None
    manifest_path.write_text(json.dumps(manifest))
    resumed = train_in_process("sasrec", dataset, config, tmp_path / "parts", resume=True)
    assert resumed.validation == whole.validation
    runs = [load_run(tmp_path / name) for name in ("whole", "parts")]
    np.testing.assert_array_equal(runs[0].vectors_RD, runs[1].vectors_RD)
    found = evaluate(runs[0], "test", (10,))
    assert found["model"]["ndcg@10"] > 1.5 * found["popularity"]["ndcg@10"]


def test_options_incompatible_with_sparse_tables() -> None:
    for options in (("loss.kind=full",), (*SAMPLED, "model.output_table=separate")):
        with pytest.raises(UserError, match=r"items\.table = '(sparse|dense)'"):
            small_recipe("items.table=sparse", *options)
    with pytest.raises(UserError, match=r"table_learning_rate = 0\.1 has no effect"):
        small_recipe("items.table_learning_rate=0.1")
