from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from agentmem._core.model import CoreModel

SensorTable = tuple[NDArray[np.int64] | None, NDArray[np.int32] | None, NDArray[Any], int]

class CoreSensors:
    def __init__(self, model: CoreModel, tables: Iterable[SensorTable]) -> None: ...
    @property
    def model(self) -> CoreModel: ...
    @property
    def n_modalities(self) -> int: ...
    def __sizeof__(self) -> int: ...
    def expectation(self, modality: int, of_observation: ArrayLike) -> NDArray[np.float64]: ...
    def likelihood(self, modality: int, observation: int, states: NDArray[np.intp]) -> NDArray[np.float64]: ...
    def worth(
        self,
        states: NDArray[Any],
        mass: NDArray[Any],
        depths: NDArray[np.int32],
        actions: NDArray[np.int32],
        *,
        offsets: NDArray[np.int64] | None = None,
        value: NDArray[np.float64] | None = None,
        extra: NDArray[np.float64] | None = None,
        information: bool = True,
    ) -> NDArray[np.float64]: ...
