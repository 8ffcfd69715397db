"""The recommender as a Lightning module: item vectors, an encoder, an objective and a loss.

With masked items and a bidirectional encoder it is BERT4Rec (Sun et al., 2019, "BERT4Rec: Sequential
recommendation with bidirectional encoder representations from transformer").
With next items and a causal encoder it is SASRec (Kang and McAuley, 2018, "Self-attentive sequential
recommendation").
The main differences from both papers:

- positions are counted from the newest item;
- attention falls with distance and has no dropout, and masked items are no keys;
- item tables start small;
- items have no bias: a score is the inner product of a query and an item vector, as ANN indices compute it.

With a candidate tower (`training/model/items.py`) it is a two-tower model.
Its query tower is the encoder over the vectors that the candidate tower computes of the history.

Shape legend: B sequences, L padded length, D width, M target positions, P encoded columns, R item rows,
U rows of a step, K ranked items, N queries.
"""

from typing import Any

import pytorch_lightning as pl
import torch
import torch.nn.functional as F
from pytorch_lightning.utilities.types import OptimizerLRSchedulerConfig
from torch import Tensor

from passerelle.encoding import QueryEncoding
from passerelle.ids import FIRST_ITEM_ROW, MASK_ROW, PADDING_ROW
from passerelle.metrics import accuracy
from training.config import Recipe
from training.data.batches import Batch
from training.data.evaluation_batches import EvaluationBatch, Histories
from training.losses.samplers import make_sampler
from training.model.dropout import Dropout, keep_mask
from training.model.encoder import SequenceEncoder, Times
from training.model.epoch_loss import EpochLoss, mean_over_ranks
from training.model.items import ItemFeatures, StepItems, make_items
from training.model.optimizer import learning_rate_scale, make_optimizer
from training.model.padded_batch import pad_batch
from training.model.query_encoder import HistoryInputs, QueryEncoder, encode_next, finish_query
from training.model.query_features import QueryFeatures
from training.model.step_loss import draw_negatives, loss_sum, requested_rows
from training.model.topk import rank_over_shards, rank_scores
from training.model.towers import QueryFeatureBatch, QueryTower
from training.tables.base import EmbeddingTable
from training.tables.checkpoint import TableCheckpoint

MONITOR = "validation_ndcg@10"
MONITOR_K = 10
IDS = "items.ids"
TABLES = (f"{IDS}.weight", "items.answers.weight")


class SequenceModel(pl.LightningModule):
    """The items, the encoder, and the steps that train them.

    Args:
        config: the resolved recipe.
        counts_R: float64 counts of each item row for the sampler (`make_sampler`).
        total_steps: steps in `max_epochs`, for the learning-rate schedule.
        item_features: encoded features of the items, for a candidate tower.
        query_features: encoded features of users and requests, for a query tower.
        num_event_types: event types of the dataset.
        ids: the id table, for a recipe with `items.table = "sparse"`.
    """

    def __init__(
        self,
        config: Recipe,
        counts_R: Tensor,
        total_steps: int,
        item_features: ItemFeatures | None = None,
        query_features: QueryFeatures | None = None,
        *,
        num_event_types: int = 1,
        ids: EmbeddingTable | None = None,
    ) -> None:
        super().__init__()
        self.local_world_size = 1
        """Ranks of this machine, which share its memory."""
        self.config = config
        self.total_steps = total_steps
        generator = torch.Generator().manual_seed(config.training.seed)
        self.num_rows = len(counts_R)
        self.items = make_items(config, self.num_rows, item_features, generator, ids)
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
        self.table_checkpoint = TableCheckpoint(self.items.ids, IDS)
        # DistributedDataParallel reads this name.
        # Buffers are the same on every rank, and need no broadcast.
        self._ddp_params_and_buffers_to_ignore = [
            *self.table_checkpoint.state_names(),
            *(name for name, _ in self.named_buffers()),
        ]
        self.epoch_loss = EpochLoss(config.optimizer.learning_rate)
        self._validation_sums = torch.zeros(2, dtype=torch.float64)

    @torch.no_grad()
    def item_vectors(self) -> Tensor:
        """Returns the candidate vectors, float32 [R, D]; those of the special rows are zero."""
        return self._without_special_rows(self.items.exact().candidates_UD)

    @torch.no_grad()
    def history_vectors(self) -> Tensor | None:
        """Returns the vectors of items in histories, float32 [R, D]; None: the candidate vectors."""
        vectors = self.items.exact()
        return (
            None
            if vectors.history_UD is vectors.candidates_UD
            else self._without_special_rows(vectors.history_UD)
        )

    def _without_special_rows(self, vectors_RD: Tensor) -> Tensor:
        copy_RD = self.items.ids.allocate_like(vectors_RD)
        copy_RD.copy_(vectors_RD.detach())[:FIRST_ITEM_ROW] = 0.0
        return copy_RD

    @torch.no_grad()
    def query_encoder(self) -> QueryEncoder:
        """Returns the exported network, which shares no memory with the table."""
        mask_vector_D, widths = self.items.exact().history_UD[MASK_ROW], self.query_encoding.widths()
        return QueryEncoder(
            self.encoder, mask_vector_D, self.query_tower, widths, l2_normalize=self.l2_normalize
        ).eval()

    @property
    def query_encoding(self) -> QueryEncoding:
        """The encoding of the features of users and requests."""
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
        """Returns contextual vectors of right-aligned item rows: [B, P, D] of `columns_BP`, or [B, L, D].

        With `history_UD`, the vectors of a step, `items_BL` are positions among these.
        """
        vectors_BLD = F.embedding(
            items_BL, self.items.exact().history_UD if history_UD is None else history_UD
        )
        mask_BL, masked_BL = items_BL != PADDING_ROW, items_BL == MASK_ROW
        return self.encoder(vectors_BLD, mask_BL, masked_BL, times, dropout, columns_BP, event_types_BL)

    def encode_histories(self, histories: Histories) -> Tensor:
        """Returns queries [B, D] for the item after each history, at the time of the request."""
        items = self.items.exact_for(histories.items_BL)
        history_UD, request_ms_B1 = items.vectors.history_UD, histories.request_timestamp_ms_B1
        inputs = HistoryInputs(
            item_vectors=F.embedding(items.positions(histories.items_BL), history_UD),
            mask=histories.items_BL != PADDING_ROW,
            event_types=histories.event_types_BL,
            timestamps_ms=histories.timestamps_ms_BL,
            query_timestamp_ms=request_ms_B1,
        )
        features = self._query_features(histories.user_rows_B, histories.request_events_B)
        history_BD = encode_next(self.encoder, inputs, history_UD[MASK_ROW])
        return finish_query(
            history_BD, self.query_tower, features, request_ms_B1[:, 0], l2_normalize=self.l2_normalize
        )

    def _query_features(self, user_rows_N: Tensor, events_N: Tensor) -> QueryFeatureBatch | None:
        return None if self.query_features is None else self.query_features(user_rows_N, events_N)

    def scores(self, batch: EvaluationBatch) -> Tensor:
        """Returns inner products of queries and all rows, float32 [B, R], which the caller may overwrite."""
        return (self.encode_histories(batch.histories) @ self.items.exact().candidates_UD.T).float()

    def configure_model(self) -> None:
        """Materializes the table: the process group exists by now."""
        self.items.ids.materialize(self.local_world_size, self.trainer.strategy.root_device)

    def training_step(self, batch: Batch, batch_index: int) -> Tensor:
        self.items.ids.set_learning_rate_scale(
            learning_rate_scale(self.config.optimizer, self.global_step, self.total_steps)
        )
        negatives = draw_negatives(self.config.loss, self.sampler, batch)
        items = self.items.for_step(batch.seed, requested_rows(batch, negatives))
        query_MD = self._target_queries(batch, items)
        num_items = self.num_rows - FIRST_ITEM_ROW
        total = loss_sum(self.config.loss, query_MD, items, batch, negatives, num_items=num_items)
        # DDP averages gradients over ranks: with the mean weight as divisor, that average is the mean over
        # all targets.
        loss = total / mean_over_ranks(batch.weights_M.sum(), self.device)
        self.epoch_loss.add(loss.detach())
        self.log("train_loss", loss.detach(), batch_size=1)
        return loss

    def _target_queries(self, batch: Batch, items: StepItems) -> Tensor:
        """Returns the queries [M, D] that predict the targets of a step."""
        padded = pad_batch(batch, self.encoder)
        history_BPD = self.encode(
            items.positions(padded.items_BL),
            padded.times,
            Dropout(self.config.model.dropout, batch.seed, padded.token_BL),
            padded.columns_BP,
            items.vectors.history_UD,
            padded.event_types_BL,
        )
        return finish_query(
            history_BPD[padded.row_M, padded.slot_M],
            self.query_tower,
            self._target_features(batch, padded.row_M),
            batch.query_times_ms_T[batch.target_positions_M],
            l2_normalize=self.l2_normalize,
        )

    def _target_features(self, batch: Batch, row_M: Tensor) -> QueryFeatureBatch | None:
        """Returns the features of each target's query, with those of a share of the windows left out."""
        features = self._query_features(batch.user_rows_B[row_M], batch.target_events_M)
        if features is None:
            return None
        share = self.config.query.dropout
        keep = (keep_mask(batch.windows_B, share, batch.seed + number)[row_M] for number in (1, 2))
        return features.where(*keep)

    def mean_train_loss(self) -> Tensor:
        """Returns the mean over the steps of the epoch so far, also before a restart; a collective call.

        Raises:
            UserError: training has diverged.
        """
        return self.epoch_loss.mean(self.device, self.current_epoch)

    def on_train_epoch_end(self) -> None:
        self.log("train_loss_epoch", self.mean_train_loss())
        self.epoch_loss.reset()

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["train_loss"] = self.epoch_loss.sums(self.device, self.current_epoch)
        self.table_checkpoint.save(checkpoint, self.global_step)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.epoch_loss.restore(checkpoint["train_loss"])
        self.table_checkpoint.load(checkpoint)

    def validation_step(self, batch: EvaluationBatch, batch_index: int) -> None:
        if self.items.ids.holds_all_rows:
            rows_BK, _ = rank_scores(self.scores(batch), batch, MONITOR_K)
        else:
            query_BD = self.encode_histories(batch.histories)
            rows_BK = rank_over_shards(query_BD, batch, self.items.local_candidates(), MONITOR_K)
        if batch.is_repeat:
            return
        hits_BK = accuracy.hits(rows_BK.cpu().numpy(), batch.relevant_rows_G, batch.relevant_offsets_B1)
        values_B = accuracy.ndcg(hits_BK, batch.num_relevant_B, MONITOR_K)
        self._validation_sums += torch.tensor([values_B.sum(), len(values_B)])

    def on_validation_epoch_end(self) -> None:
        total, users = mean_over_ranks(self._validation_sums, self.device)
        self._validation_sums.zero_()
        self.log(MONITOR, (total / users).float(), rank_zero_only=False)

    def configure_optimizers(self) -> OptimizerLRSchedulerConfig:
        self_managed = self.table_checkpoint.state_names()
        parameters = (
            (name, parameter) for name, parameter in self.named_parameters() if name not in self_managed
        )
        return make_optimizer(self.config.optimizer, parameters, TABLES, self.total_steps)
