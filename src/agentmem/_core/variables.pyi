from types import FrameType
from typing import Any

def variables_of(frame: FrameType) -> dict[str, Any]: ...
