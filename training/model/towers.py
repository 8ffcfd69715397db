"""The parts of the two towers that read declared features.

Shape legend: N rows, S code slots of a row, F numbers of a row, D width, C width of a code's vector, W columns' vectors and numbers of a
row one after the other, H hidden width.
"""

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passerelle.calendar_time import DAYS_PER_WEEK, HOURS_PER_DAY, hour_of_day, weekday
from passerelle.encoding import NO_CODE, FeatureEncoding, QueryEncoding

CODE_DIM = 16
HIDDEN_MULTIPLE = 2
"""1970-01-01, where Monday is 0."""


class FeatureInput(nn.Module):
    """What encoded features become before a layer reads them: each categorical column is the mean of its values' vectors."""

    def __init__(self, encoding: FeatureEncoding, generator: torch.Generator) -> None:
        super().__init__()
        self.slots = list(encoding.slots().values())
        self.width = CODE_DIM * len(self.slots) + encoding.num_numbers
        # A table that nothing reads would be without a gradient, which DistributedDataParallel does not forgive.
        self.codes_VC = nn.Parameter(torch.empty(encoding.num_codes, CODE_DIM)) if self.slots else None
        if self.codes_VC is not None:
            nn.init.trunc_normal_(self.codes_VC, std=CODE_DIM**-0.5, generator=generator)

    def columns(self, codes_NS: Tensor, numbers_NF: Tensor) -> Tensor:
        """[N, W]."""
        if self.codes_VC is None:
            return numbers_NF
        present_NS1 = (codes_NS != NO_CODE)[..., None].to(numbers_NF.dtype)
        vectors_NSC = F.embedding(codes_NS, self.codes_VC) * present_NS1
        columns = [
            vectors_NSC[:, slots].sum(1) / present_NS1[:, slots].sum(1).clamp_min(1.0) for slots in self.slots
        ]
        return torch.cat([*columns, numbers_NF], dim=1)


class FeatureTower(FeatureInput):
    """What the declared features of an item say, as a vector: its columns, through two layers."""

    def __init__(self, encoding: FeatureEncoding, dim: int, generator: torch.Generator) -> None:
        super().__init__(encoding, generator)
        self.inner = nn.Linear(self.width, HIDDEN_MULTIPLE * dim)
        self.out = nn.Linear(HIDDEN_MULTIPLE * dim, dim)
        for layer in (self.inner, self.out):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, codes_NS: Tensor, numbers_NF: Tensor) -> Tensor:
        """[N, D]."""
        out_ND: Tensor = self.out(F.gelu(self.inner(self.columns(codes_NS, numbers_NF))))
        return out_ND


class CandidateTower(nn.Module):
    """The vector an item is found by: of its id, where training knew it, and of its content.

    They are added, and training leaves ids out now and then (`id_dropout`), so that content alone stands for an item that came later.
    """

    def __init__(self, content: FeatureTower) -> None:
        super().__init__()
        self.content = content

    def forward(self, id_vector: Tensor, codes: Tensor, numbers: Tensor) -> Tensor:
        """Unit vectors [N, D]; `id_vector` [N, D] is 0 where there is none."""
        return F.normalize(id_vector + self.content(codes, numbers), dim=1)


class QueryFeatureBatch(NamedTuple):
    """What is known of queries beside histories, encoded; all zero where nothing is."""

    user_codes: Tensor
    """integers [N, S], of the users' encoding."""
    user_numbers: Tensor
    """float32 [N, F]."""
    context_codes: Tensor
    """integers [N, S], of the encoding of circumstances."""
    context_numbers: Tensor
    """float32 [N, F]."""

    def where(self, user_N: Tensor, context_N: Tensor) -> "QueryFeatureBatch":
        """The same with nothing known where these (bool) are false."""
        user_N1, context_N1 = user_N[:, None], context_N[:, None]
        return QueryFeatureBatch(
            self.user_codes * user_N1,
            self.user_numbers * user_N1,
            self.context_codes * context_N1,
            self.context_numbers * context_N1,
        )


class QueryTower(nn.Module):
    """The vector of a history, and what user, circumstances and time_features say: the latter correct the former, in the light of it.

    It begins as the history's vector alone.

    Args:
        encoding: of users and of circumstances; without columns, they are not read.
        time_features: what is read of the time of the request.
        generator: draws the first weights.
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

    def forward(self, history_ND: Tensor, facts: QueryFeatureBatch, time_ms_N: Tensor) -> Tensor:
        """[N, D], at the times of the requests (int64, milliseconds)."""
        parts = [history_ND]
        if self.user is not None:
            parts.append(self.user.columns(facts.user_codes, facts.user_numbers))
        if self.context is not None:
            parts.append(self.context.columns(facts.context_codes, facts.context_numbers))
        if self.hour_VC is not None:
            parts.append(F.embedding(hour_of_day(time_ms_N), self.hour_VC))
        if self.weekday_VC is not None:
            parts.append(F.embedding(weekday(time_ms_N), self.weekday_VC))
        corrected_ND: Tensor = history_ND + self.out(F.gelu(self.inner(torch.cat(parts, dim=1))))
        return corrected_ND
