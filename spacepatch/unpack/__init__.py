"""Turn the packs of a dataset back into files of frames."""

from spacepatch.unpack.files import FORMATS
from spacepatch.unpack.unpacking import Unpacked, unpack

__all__ = ["FORMATS", "Unpacked", "unpack"]
