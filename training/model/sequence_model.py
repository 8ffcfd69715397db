"""The recommender as a Lightning module: items with their vectors, an encoder of histories, an objective and a loss.

With masked items and a bidirectional encoder it is BERT4Rec (Sun et al., 2019, "BERT4Rec: Sequential recommendation with
bidirectional encoder representations from transformer"); with next items and a causal one SASRec (Kang and McAuley, 2018,
"Self-attentive sequential recommendation"). The main differences from both papers: positions are counted from the newest item,
attention falls with distance and has no dropout, hidden items are no keys, item tables begin small, and items have no bias of
their own, so that a score is the inner product of a query and an item vector and any ANN index can serve it.

With a candidate tower for its items it is a two-tower model, whose query tower is the encoder over what the other tower makes of the
history (`training/model/items.py`); everything else stays as it is.

Shape legend: B sequences, L padded length, D width, T tokens, M target positions, R item rows, K ranked items, Q users.
"""

from pathlib import Path
from typing import Any

import pytorch_lightning as pl
import torch
import torch.distributed as dist
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor, nn

from passerelle.encoding import QueryEncoding
from passerelle.errors import UserError
from passerelle.ids import FIRST_ITEM_ROW, MASK_ROW, PADDING_ROW
from passerelle.metrics import accuracy as metrics
from training.config import Recipe
from training.data.batches import Batch
from training.data.evaluation_batches import EvaluationBatch, Histories
from training.data.padding import columns_of_rows, pad_right_aligned, scatter
from training.losses.samplers import Negatives, make_sampler
from training.model.dropout import Dropout, kept_rows
from training.model.encoder import (
    QueryEncoder,
    SequenceEncoder,
    Times,
    finished_query,
    serving_times,
)
from training.model.items import DenseTable, IdTable, ItemFeatures, make_items
from training.model.optimizer import learning_rate_share, make_optimizer
from training.model.query_features import QueryFeatures
from training.model.step_loss import loss_sum
from training.model.topk import rank_over_shards, rank_scores
from training.model.towers import QueryFeatureBatch, QueryTower
from training.tables.files import TABLE_KEY, open_table, table_of, write_table
from training.tables.sharded import ShardedTable
from training.tables.sparse import SparseTable

MONITOR = "validation_ndcg@10"
MONITOR_K = 10
IDS = "items.ids"
TABLES = (f"{IDS}.weight", "items.answers.weight")


class SequenceModel(pl.LightningModule):
    """The items, the encoder, and how a step trains them.

    Args:
        config: the resolved recipe.
        counts_R: float64 counts of each item row for the sampler (`make_sampler`).
        total_steps: steps in `max_epochs`, for the learning-rate schedule.
        content: what declared features say of the items, for a candidate tower.
        query_features: what is known of queries beside histories, where anything is to be read.
        num_event_types: kinds of events of the dataset.
        ids: the sparse table, for a recipe that wants one.
    """

    def __init__(
        self,
        config: Recipe,
        counts_R: Tensor,
        total_steps: int,
        content: ItemFeatures | None = None,
        query_features: QueryFeatures | None = None,
        *,
        num_event_types: int = 1,
        ids: IdTable | None = None,
    ) -> None:
        super().__init__()
        self.checkpoints: Path | None = None
        """Where a sparse table goes when the rest goes into a checkpoint."""
        self.local_world_size = 1
        """Ranks of this machine, among which its memory is shared."""
        self.config = config
        self.total_steps = total_steps
        generator = torch.Generator().manual_seed(config.training.seed)
        self.num_rows = len(counts_R)
        self.items = make_items(config, self.num_rows, content, generator, ids)
        causal = config.objective.kind == "causal"
        self.encoder = SequenceEncoder(
            config.model, generator, causal=causal, num_event_types=num_event_types
        )
        self.l2_normalize = config.items.kind == "tower"
        self.query_features, self.query_tower = None, None
        if query_features is not None:
            self.query_features = query_features
            self.query_tower = QueryTower(
                query_features.encoding, config.query.time_features, config.model.dim, generator
            )
        self.sampler = make_sampler(config.loss, counts_R)
        # DistributedDataParallel asks for this name: what a sparse table holds, it trains itself; buffers are alike on every rank.
        apart = self.items.ids if isinstance(self.items.ids, SparseTable) else nn.Module()
        self._trained_apart = [f"{IDS}.{name}" for name in apart.state_dict()]
        self._ddp_params_and_buffers_to_ignore = [
            *self._trained_apart,
            *(name for name, _ in self.named_buffers()),
        ]
        self._train_loss = torch.zeros(2, dtype=torch.float64)
        self._validation_sums = torch.zeros(2, dtype=torch.float64)
        self._written: tuple[int, str] | None = None

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """float32 [R, D] of items as answers; the special rows are zero."""
        return self._without_special_rows(self.items.exact().candidates_UD)

    @torch.no_grad()
    def history_vectors(self) -> Tensor | None:
        """float32 [R, D] of items in histories, where those are others."""
        vectors = self.items.exact()
        return (
            None
            if vectors.history_UD is vectors.candidates_UD
            else self._without_special_rows(vectors.history_UD)
        )

    def _without_special_rows(self, vectors_RD: Tensor) -> Tensor:
        copy_RD = self.items.room()
        copy_RD.copy_(vectors_RD.detach())[:FIRST_ITEM_ROW] = 0.0
        return copy_RD

    @torch.no_grad()
    def query_encoder(self) -> QueryEncoder:
        """The part that is exported, sharing no memory with the table."""
        mask_vector_D, widths = self.items.exact().history_UD[MASK_ROW], self.query_encoding.widths()
        return QueryEncoder(
            self.encoder, mask_vector_D, self.query_tower, widths, l2_normalize=self.l2_normalize
        ).eval()

    @property
    def query_encoding(self) -> QueryEncoding:
        """How what is known of queries beside histories becomes the query encoder's input."""
        return QueryEncoding() if self.query_features is None else self.query_features.encoding

    def encode(
        self,
        items_BL: Tensor,
        times: Times | None = None,
        dropout: Dropout | None = None,
        columns_BP: Tensor | None = None,
        history_UD: Tensor | None = None,
        event_types_BL: Tensor | None = None,
    ) -> Tensor:
        """Contextual vectors of right-aligned item rows: [B, P, D] of the columns `columns_BP`, or [B, L, D] of all.

        With `history_UD`, the vectors that items have in a step, rows are places among them.
        """
        vectors_BLD = F.embedding(
            items_BL, self.items.exact().history_UD if history_UD is None else history_UD
        )
        return self.encoder(
            vectors_BLD,
            items_BL != PADDING_ROW,
            items_BL == MASK_ROW,
            times,
            dropout,
            columns_BP,
            event_types_BL,
        )

    def encode_histories(self, histories: Histories) -> Tensor:
        """Queries [B, D] for the item that follows each history, at the time of the request."""
        items_BL, types_BL, request_ms_B1 = (
            histories.items_BL,
            histories.event_types_BL,
            histories.request_timestamp_ms_B1,
        )
        if not self.encoder.causal:
            items_BL = torch.cat([items_BL, torch.full_like(items_BL[:, :1], MASK_ROW)], dim=1)
            types_BL = torch.cat([types_BL, torch.zeros_like(types_BL[:, :1])], dim=1)
        times = serving_times(histories.timestamps_ms_BL, request_ms_B1, causal=self.encoder.causal)
        newest_B1 = torch.full_like(items_BL[:, :1], items_BL.shape[1] - 1)
        items = self.items.exact_of(items_BL)
        places_BL, history_UD = items.places(items_BL), items.vectors.history_UD
        history_BD = self.encode(places_BL, times, None, newest_B1, history_UD, types_BL)[:, 0]
        facts = (
            None
            if self.query_features is None
            else self.query_features(histories.user_rows_B, histories.request_events_B)
        )
        return finished_query(
            history_BD, self.query_tower, facts, request_ms_B1[:, 0], l2_normalize=self.l2_normalize
        )

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """float32 [B, R] inner products of each user's query and every row of the table, for the caller to overwrite."""
        return (self.encode_histories(batch.histories) @ self.items.exact().candidates_UD.T).float()

    def configure_model(self) -> None:
        """Where there are several ranks, they know of each other by now."""
        if isinstance(self.items.ids, ShardedTable):
            self.items.ids.place(self.local_world_size, self.trainer.strategy.root_device)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        items_BL, row_T, column_T = pad_right_aligned(batch.items_T, batch.offsets_B1)
        times = None
        if self.encoder.needs_times:
            times = Times(
                *(
                    scatter(times_T, row_T, column_T, items_BL)
                    for times_T in (batch.query_times_ms_T, batch.key_times_ms_T)
                )
            )
        from_end_L = torch.arange(items_BL.shape[1], 0, -1, device=self.device)
        dropout = Dropout(
            self.config.model.dropout,
            batch.seed,
            batch.windows_B[:, None] * self.encoder.max_length + from_end_L,
        )
        if not isinstance(self.items.ids, DenseTable):
            self.items.ids.learning_rate_share = learning_rate_share(
                self.config.optimizer, self.global_step, self.total_steps
            )
        negatives = self._negatives(batch)
        asked = [batch.items_T, batch.target_rows_M, *([] if negatives is None else [negatives.rows_SN])]
        items = self.items.for_step(batch.seed, asked)
        places_BL, history_UD = items.places(items_BL), items.vectors.history_UD
        types_BL = (
            scatter(batch.event_types_T, row_T, column_T, items_BL) if self.config.model.event_types else None
        )
        row_M, column_M = row_T[batch.target_positions_M], column_T[batch.target_positions_M]
        if self.encoder.causal:  # almost every position is a target
            history_MD = self.encode(places_BL, times, dropout, None, history_UD, types_BL)[row_M, column_M]
        else:
            columns_BP, place_M = columns_of_rows(row_M, column_M, len(items_BL))
            history_MD = self.encode(places_BL, times, dropout, columns_BP, history_UD, types_BL)[
                row_M, place_M
            ]
        time_ms_M = batch.query_times_ms_T[batch.target_positions_M]
        query_MD = finished_query(
            history_MD, self.query_tower, self._facts(batch, row_M), time_ms_M, l2_normalize=self.l2_normalize
        )
        # DDP averages gradients over ranks: with this divisor on each, that average is the mean over all targets of the step.
        total = loss_sum(
            self.config.loss, query_MD, items, batch, negatives, num_items=self.num_rows - FIRST_ITEM_ROW
        )
        loss = total / self._mean_over_ranks(batch.weights_M.sum())
        self._train_loss = self._train_loss.to(self.device)
        self._train_loss[0] += loss.detach()
        self._train_loss[1] += 1
        self.log("train_loss", loss.detach(), batch_size=1)
        return loss

    def mean_train_loss(self) -> Tensor:
        """Mean over the steps of the epoch so far, those before a restart included; every rank must ask.

        Raises:
            UserError: training has diverged.
        """
        total, steps = self._loss_so_far()
        return (total / steps).float()

    def on_train_epoch_end(self) -> None:
        self.log("train_loss_epoch", self.mean_train_loss())
        self._train_loss.zero_()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Within an epoch, what its loss has added up to: on average, for every rank will go on from it."""
        checkpoint["train_loss"] = self._loss_so_far()
        if isinstance(self.items.ids, SparseTable | ShardedTable):
            assert self.checkpoints is not None
            if (
                self._written is None or self._written[0] != self.global_step
            ):  # else that of the best is that of the last
                rows, dim = self.num_rows, self.config.model.dim
                self._written = (
                    self.global_step,
                    write_table(self.checkpoints, rows, dim, self.items.ids.shards),
                )
            checkpoint[TABLE_KEY] = self._written[1]
            for name in self._trained_apart:
                checkpoint["state_dict"].pop(name, None)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self._train_loss = checkpoint["train_loss"].clone()
        if isinstance(self.items.ids, SparseTable | ShardedTable):
            assert self.checkpoints is not None
            open_table(self.checkpoints, table_of(checkpoint, str(self.checkpoints))).read_into(
                self.items.ids.shards
            )
            own = self.state_dict()
            checkpoint["state_dict"] |= {name: own[name] for name in self._trained_apart}

    def _loss_so_far(self) -> Tensor:
        """Total and steps, on average over ranks; asked for before anything is kept of an epoch, so that nothing is after NaN."""
        so_far = self._mean_over_ranks(self._train_loss)
        if not so_far.isfinite().all():
            tried = self.config.optimizer.learning_rate
            raise UserError(
                f"epoch {self.current_epoch + 1}: the training loss is {so_far[0]:g}: try optimizer.learning_rate below {tried:g}"
            )
        return so_far

    def _facts(self, batch: Batch, row_M: Tensor) -> QueryFeatureBatch | None:
        """What is known of each target's query beside the history; of some windows nothing, as if it were not given."""
        if self.query_features is None:
            return None
        share = self.config.query.dropout
        known = (kept_rows(batch.windows_B, share, batch.seed + number)[row_M] for number in (1, 2))
        return self.query_features(batch.user_rows_B[row_M], batch.target_events_M).where(*known)

    def _negatives(self, batch: Batch) -> Negatives | None:
        config = self.config.loss
        if config.kind == "full":
            return None
        generator = torch.Generator().manual_seed(batch.seed)
        return self.sampler.draw(config.num_draws, config.num_negatives, batch.target_rows_M, generator)

    def _mean_over_ranks(self, values: Tensor) -> Tensor:
        """A copy on the model's device, the same on every rank; every rank must ask."""
        values = values.to(self.device, copy=True)
        if dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1:
            dist.all_reduce(values)
            values /= dist.get_world_size()
        return values

    def validation_step(self, batch: EvaluationBatch, batch_index: int) -> None:
        if isinstance(self.items.ids, ShardedTable):
            rows_BK = rank_over_shards(
                self.encode_histories(batch.histories), batch, self.items.candidates_here(), MONITOR_K
            )
        else:
            rows_BK, _ = rank_scores(self.scores(batch), batch, MONITOR_K)
        if batch.is_repeat:
            return
        hits_BK = metrics.hits(rows_BK.cpu().numpy(), batch.relevant_rows_G, batch.relevant_offsets_B1)
        values_B = metrics.ndcg(hits_BK, batch.num_relevant_B, MONITOR_K)
        self._validation_sums += torch.tensor([values_B.sum(), len(values_B)])

    def on_validation_epoch_end(self) -> None:
        total, users = self._mean_over_ranks(self._validation_sums)
        self._validation_sums.zero_()
        self.log(MONITOR, (total / users).float(), rank_zero_only=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        trained_here = (
            (name, parameter)
            for name, parameter in self.named_parameters()
            if name not in self._trained_apart
        )
        return make_optimizer(self.config.optimizer, trained_here, TABLES, self.total_steps)
