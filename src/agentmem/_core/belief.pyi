from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from agentmem._core.array import CoreArray
from agentmem._core.model import CoreModel

class CoreBelief(CoreArray):
    pruned_mass: float
    prune_below: float
    def update(
        self,
        model: CoreModel,
        action: int,
        observation: int | None,
        *,
        prune: float | None = None,
        on_impossible: Literal["raise", "predict", "likelihood"] = "raise",
    ) -> float: ...
    def predict(self, model: CoreModel, action: int) -> None: ...
    def _filter(
        self,
        model: CoreModel,
        actions: NDArray[np.intp],
        observations: NDArray[np.intp],
        correct_first: bool,
        prune: float | None,
        on_impossible: Literal["raise", "predict", "likelihood"],
        record: bool,
    ) -> tuple[NDArray[np.float64], tuple[NDArray[np.int64], NDArray[np.int32], NDArray[Any]] | None]: ...
    def normalize(self) -> float: ...
    def _correct(self, weights: NDArray[Any], per_entry: bool) -> float | None: ...
    def _is_measure(self) -> bool: ...
