"""The parts of the two towers that read declared features.

Shape legend: N rows, S code slots of a row, F numbers of a row, D width, C width of a code's vector, H hidden width.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from passerelle.encoding import NO_CODE, FeatureEncoding

CODE_DIM = 16
HIDDEN_MULTIPLE = 2


class Content(nn.Module):
    """What the declared features of an item or of a user say, as a vector.

    Each categorical column is the mean of its values' vectors; these, and the numbers, go through two layers.
    """

    def __init__(self, encoding: FeatureEncoding, dim: int, generator: torch.Generator) -> None:
        super().__init__()
        self.slots = list(encoding.slots().values())
        self.codes_VC = nn.Parameter(torch.empty(encoding.num_codes, CODE_DIM))
        self.inner = nn.Linear(CODE_DIM * len(self.slots) + encoding.num_numbers, HIDDEN_MULTIPLE * dim)
        self.out = nn.Linear(HIDDEN_MULTIPLE * dim, dim)
        nn.init.trunc_normal_(self.codes_VC, std=CODE_DIM**-0.5, generator=generator)
        for layer in (self.inner, self.out):
            nn.init.trunc_normal_(layer.weight, std=layer.in_features**-0.5, generator=generator)
            nn.init.zeros_(layer.bias)

    def forward(self, codes_NS: Tensor, numbers_NF: Tensor) -> Tensor:
        """[N, D]."""
        present_NS1 = (codes_NS != NO_CODE)[..., None].to(numbers_NF.dtype)
        vectors_NSC = F.embedding(codes_NS, self.codes_VC) * present_NS1
        columns = [vectors_NSC[:, slots].sum(1) / present_NS1[:, slots].sum(1).clamp_min(1.0) for slots in self.slots]
        hidden_NH = F.gelu(self.inner(torch.cat([*columns, numbers_NF], dim=1)))
        out_ND: Tensor = self.out(hidden_NH)
        return out_ND


class CandidateTower(nn.Module):
    """The vector an item is found by: of its id, where training knew it, and of its content.

    They are added, and training leaves ids out now and then (`id_dropout`), so that content alone stands for an item that came later.
    """

    def __init__(self, content: Content) -> None:
        super().__init__()
        self.content = content

    def forward(self, id_vector: Tensor, codes: Tensor, numbers: Tensor) -> Tensor:
        """Unit vectors [N, D]; `id_vector` [N, D] is 0 where there is none."""
        return F.normalize(id_vector + self.content(codes, numbers), dim=1)
