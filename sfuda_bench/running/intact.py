"""What a method is lent and must leave as it was: others read it after this method."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor, nn

from sfuda_bench.errors import UsageError
from sfuda_bench.running.keys import model_sha256


@dataclass
class Lent:
    """The target images, and the source model behind frozen steps, as they were handed out.

    Attributes:
        images: (N, 3, S, S) uint8 resident images.
        source_model: The copy that functions of frozen steps get copies of.
        method: Who may not change them.
        origin: The method's file.
    """

    images: Tensor
    source_model: nn.Module
    method: str
    origin: str
    on_change: Callable[[], None] = lambda: None
    _seen: tuple[str, str] = field(init=False)

    def __post_init__(self) -> None:
        self._seen = self._digests()

    def check(self) -> None:
        """Compare with what was handed out.

        Raises:
            UsageError: The method changed the images or the source model.
        """
        for what, before, now in zip(
            ("target images", "source model of frozen steps"),
            self._seen,
            self._digests(),
            strict=True,
        ):
            if before != now:
                self.on_change()
                raise UsageError(
                    f"method '{self.method}' changed the {what} that others read after it",
                    hint=f"change a copy, in {self.origin}",
                )

    def _digests(self) -> tuple[str, str]:
        pixels = self.images.detach().cpu().contiguous().numpy().data
        return hashlib.sha256(pixels).hexdigest(), model_sha256(self.source_model.state_dict())
