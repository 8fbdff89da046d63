"""Picture files under their earlier name, for scripts that use it; see :mod:`.core.pictures`."""

from .core.pictures import CHUNK, check_folder, read_picture, reserve_number, write_picture

__all__ = ["CHUNK", "check_folder", "read_picture", "reserve_number", "write_picture"]
