"""The networks that read declared features: the candidate tower, and the query tower after the encoder.

Shape legend: N rows, S code slots of a row, F numbers of a row, D width, V codes, C width of a code's vector,
W concatenated vectors and numbers of a row's columns, H hidden width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passerelle.calendar_time import DAYS_PER_WEEK, HOURS_PER_DAY, hour_of_day, weekday
from passerelle.encoding import NO_CODE, FeatureEncoding, QueryEncoding

CODE_DIM = 16
HIDDEN_MULTIPLE = 2


class FeatureInput(nn.Module):
    """Turns encoded features into one vector; a categorical column is the mean of its values' vectors."""

    def __init__(self, encoding: FeatureEncoding, generator: torch.Generator) -> None:
        super().__init__()
        self.slots = list(encoding.slots().values())
        self.width = CODE_DIM * len(self.slots) + encoding.num_numbers
        # DistributedDataParallel fails on parameters without a gradient.
        self.codes_VC = nn.Parameter(torch.empty(encoding.num_codes, CODE_DIM)) if self.slots else None
        if self.codes_VC is not None:
            nn.init.trunc_normal_(self.codes_VC, std=CODE_DIM**-0.5, generator=generator)

    def columns(self, codes_NS: Tensor, numbers_NF: Tensor) -> Tensor:
        """Returns the concatenated columns [N, W] of codes (integers) and numbers (float32)."""
        if self.codes_VC is None:
            return numbers_NF
        present_NS1 = (codes_NS != NO_CODE)[..., None].to(numbers_NF.dtype)
        vectors_NSC = F.embedding(codes_NS, self.codes_VC) * present_NS1
        columns = [
            vectors_NSC[:, slots].sum(1) / present_NS1[:, slots].sum(1).clamp_min(1.0) for slots in self.slots
        ]
        return torch.cat([*columns, numbers_NF], dim=1)


class FeatureTower(FeatureInput):
    """Maps the encoded features of items to vectors, by two layers."""

    def __init__(self, encoding: FeatureEncoding, dim: int, generator: torch.Generator) -> None:
        super().__init__(encoding, generator)
        self.inner = nn.Linear(self.width, HIDDEN_MULTIPLE * dim)
        self.out = nn.Linear(HIDDEN_MULTIPLE * dim, dim)
        for layer in (self.inner, self.out):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, codes_NS: Tensor, numbers_NF: Tensor) -> Tensor:
        """Returns vectors [N, D] of codes (integers) and numbers (float32)."""
        out_ND: Tensor = self.out(F.gelu(self.inner(self.columns(codes_NS, numbers_NF))))
        return out_ND


class CandidateTower(nn.Module):
    """Maps the id vector and the features of items to unit vectors.

    Training leaves out some id vectors (`id_dropout`), so that features alone place a new item well.
    """

    def __init__(self, features: FeatureTower) -> None:
        super().__init__()
        # Checkpoints hold the parameters under this name.
        self.content = features

    def forward(self, id_vector: Tensor, codes: Tensor, numbers: Tensor) -> Tensor:
        """Returns unit vectors [N, D]; `id_vector` [N, D] is 0 for items without one."""
        return F.normalize(id_vector + self.content(codes, numbers), dim=1)


class QueryFeatureBatch(NamedTuple):
    """Encoded features of the users and contexts of queries; all zero where they are unknown.

    The names are those of inputs of the ONNX file.
    """

    user_codes: Tensor
    """integers [N, S], codes of user features."""
    user_numbers: Tensor
    """float32 [N, F]."""
    context_codes: Tensor
    """integers [N, S], codes of context features."""
    context_numbers: Tensor
    """float32 [N, F]."""

    def where(self, user_N: Tensor, context_N: Tensor) -> "QueryFeatureBatch":
        """Returns a copy with zeros for users and contexts where the bool masks are false."""
        user_N1, context_N1 = user_N[:, None], context_N[:, None]
        return QueryFeatureBatch(
            self.user_codes * user_N1,
            self.user_numbers * user_N1,
            self.context_codes * context_N1,
            self.context_numbers * context_N1,
        )


class QueryTower(nn.Module):
    """Corrects the vector of a history by features of the user, the context and the time of the request.

    Its initial correction is zero.

    Args:
        encoding: of user and context features; those without columns are not read.
        time_features: names of the features of the request's time (`QueryConfig.time_features`).
        dim: D.
        generator: draws the initial weights.
    """

    def __init__(
        self, encoding: QueryEncoding, time_features: tuple[str, ...], dim: int, generator: torch.Generator
    ) -> None:
        super().__init__()
        self.user = FeatureInput(encoding.user, generator) if encoding.user.columns else None
        self.context = FeatureInput(encoding.context, generator) if encoding.context.columns else None
        self.hour_VC, self.weekday_VC = (
            nn.Parameter(torch.empty(size, CODE_DIM)) if name in time_features else None
            for name, size in (("hour", HOURS_PER_DAY), ("weekday", DAYS_PER_WEEK))
        )
        width = sum(part.width for part in (self.user, self.context) if part is not None) + CODE_DIM * len(
            time_features
        )
        self.inner = nn.Linear(dim + width, HIDDEN_MULTIPLE * dim)
        self.out = nn.Linear(HIDDEN_MULTIPLE * dim, dim)
        for table in (self.hour_VC, self.weekday_VC):
            if table is not None:
                nn.init.trunc_normal_(table, std=CODE_DIM**-0.5, generator=generator)
        nn.init.trunc_normal_(self.inner.weight, std=self.inner.in_features**-0.5, generator=generator)
        for zeros in (self.inner.bias, self.out.weight, self.out.bias):
            nn.init.zeros_(zeros)

    def forward(self, history_ND: Tensor, features: QueryFeatureBatch, time_ms_N: Tensor) -> Tensor:
        """Returns queries [N, D]; `time_ms_N` are int64 times of the requests."""
        parts = [history_ND]
        if self.user is not None:
            parts.append(self.user.columns(features.user_codes, features.user_numbers))
        if self.context is not None:
            parts.append(self.context.columns(features.context_codes, features.context_numbers))
        if self.hour_VC is not None:
            parts.append(F.embedding(hour_of_day(time_ms_N), self.hour_VC))
        if self.weekday_VC is not None:
            parts.append(F.embedding(weekday(time_ms_N), self.weekday_VC))
        corrected_ND: Tensor = history_ND + self.out(F.gelu(self.inner(torch.cat(parts, dim=1))))
        return corrected_ND
