"""TorchRec-native recommenders: towers and ranking nets that stand on sharded embedding tables.

`Bundle` runs an exported model; it is imported on first use, and neither it nor this package imports torch.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torchrec_models.pipelines.serving.bundle import Bundle

__all__ = ["Bundle"]


def __getattr__(name: str) -> Any:
    if name == "Bundle":
        from torchrec_models.pipelines.serving.bundle import Bundle

        return Bundle
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
