"""The layouts that are known, in the order in which they are looked for."""

from __future__ import annotations

from . import arrow, folders, lance, lists, mds, parquet, tars, tfrecords
from .findings import Layout

LAYOUTS: dict[str, Layout] = {
    module.NAME: module for module in (arrow, mds, lance, lists, parquet, tars, tfrecords, folders)
}
