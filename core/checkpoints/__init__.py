"""Reading, writing and assembling models. What others need of it is named here."""

from .assemble import assemble
from .export import save_released
from .load import count_parameters, is_pipeline_folder, load_parts, released_parts_on_meta
from .parts import LadderParts

__all__ = [
    "LadderParts",
    "assemble",
    "count_parameters",
    "is_pipeline_folder",
    "load_parts",
    "released_parts_on_meta",
    "save_released",
]
