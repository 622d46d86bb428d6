from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Arrays = tuple[NDArray[Any] | None, NDArray[Any] | None, NDArray[Any], NDArray[Any] | None]

class CoreModel:
    def _set(
        self,
        n_states: int,
        n_observations: int,
        dtype: np.dtype[Any],
        transitions: Sequence[Arrays],
        observations: Sequence[Arrays],
        transition_of: Sequence[int],
        observation_of: Sequence[int],
    ) -> None: ...
    def __sizeof__(self) -> int: ...
    def _likelihood_pairs(self, action: int, observation: int) -> tuple[NDArray[np.intp], NDArray[np.float64]]: ...
    def likelihood(self, action: int, observation: int) -> NDArray[np.float64]: ...
    @property
    def n_states(self) -> int: ...
    @property
    def n_actions(self) -> int: ...
    @property
    def n_observations(self) -> int: ...
    @property
    def dtype(self) -> np.dtype[Any]: ...
