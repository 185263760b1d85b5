"""What prompts become for a network: named tensors, a row a prompt."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from prdp.support.remote_rows import RowArray


@dataclass(frozen=True)
class Conditions:
    """Text states, pooled states, sizes, masks: whatever a family's network is given beside latents and time.

    Attributes:
        fields: name -> tensor [B, ...], a row a prompt or an image.
        empty: name -> tensor [1, ...], what the branch without prompt is given; None for a family without guidance.
            Fields that it has not are the same for both branches.
    """

    fields: Mapping[str, torch.Tensor]
    empty: Mapping[str, torch.Tensor] | None = None

    def __len__(self) -> int:
        return len(next(iter(self.fields.values())))

    def __getitem__(self, rows: npt.NDArray[np.integer]) -> Conditions:
        """The rows of integer indices [b], in their order."""
        index = torch.from_numpy(np.asarray(rows, np.int64))
        return Conditions({name: value[index.to(value.device)] for name, value in self.fields.items()}, self.empty)

    def behind_empty(self) -> Conditions:
        """[2 B]: B rows of the branch without prompt, then these; for both branches of guidance in one call.

        Raises:
            ValueError: there is no such branch.
        """
        if self.empty is None:
            raise ValueError("these conditions have no branch without prompt to guide with")
        empty = self.empty
        return Conditions(
            {
                name: torch.cat([empty[name].expand_as(value) if name in empty else value, value])
                for name, value in self.fields.items()
            }
        )

    def to_arrays(self) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
        """The fields and the empty ones as arrays on the host, the latter {} where there are none."""
        fields, empty = (
            {name: value.detach().cpu().numpy() for name, value in part.items()}
            for part in (self.fields, self.empty or {})
        )
        return fields, empty

    @classmethod
    def from_arrays(
        cls, fields: Mapping[str, RowArray], empty: Mapping[str, RowArray], device: torch.device
    ) -> Conditions:
        """What `to_arrays` gave, on a device."""
        # A copy, because arrays that come through shared memory are read-only.
        there, nothing = (
            {name: torch.from_numpy(np.array(value)).to(device) for name, value in part.items()}
            for part in (fields, empty)
        )
        return cls(there, nothing or None)

    def map(self, function: Callable[[torch.Tensor], torch.Tensor]) -> Conditions:
        """Every tensor of both branches through a function that keeps their rows."""
        fields = {name: function(value) for name, value in self.fields.items()}
        empty = None if self.empty is None else {name: function(value) for name, value in self.empty.items()}
        return Conditions(fields, empty)
