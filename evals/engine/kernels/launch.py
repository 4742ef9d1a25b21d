"""What every launch of a kernel asks for."""

from __future__ import annotations

from typing import Any

OPTIONS: dict[str, Any] = {"enable_fp_fusion": True}
"""Said by name because Triton's own default depends on its version, and warns before it changes."""
