"""Reading, writing and assembling models. What others need of it is named here."""

from .alone import fits, is_transformer_alone
from .assemble import assemble
from .export import save_released
from .load import count_parameters, is_pipeline_folder, load_parts, released_parts_on_meta
from .parts import LadderParts
from .placing import LAYERS, Dtypes
from .unchanged import FileWatch, own_weights

__all__ = [
    "LAYERS",
    "Dtypes",
    "FileWatch",
    "LadderParts",
    "assemble",
    "count_parameters",
    "fits",
    "is_pipeline_folder",
    "is_transformer_alone",
    "load_parts",
    "own_weights",
    "released_parts_on_meta",
    "save_released",
]
