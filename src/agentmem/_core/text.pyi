import numpy as np
from numpy.typing import NDArray

class Scanner:
    words: dict[bytes, int]
    line: int
    def __init__(self, keywords: dict[bytes, bytes]) -> None: ...
    def scan(
        self, piece: bytes, last: bool = False
    ) -> tuple[NDArray[np.uint8], NDArray[np.float64], NDArray[np.int32]]: ...
