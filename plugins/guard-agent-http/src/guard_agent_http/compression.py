"""
The gzip of a body: by isal where it is installed (the extra ``speed``), else by zlib.

A batch of 100 events takes isal 60 us and zlib 210 (benchmarks/gzip_level.py), and the body of
isal is an eighth smaller.
"""

from __future__ import annotations

import zlib
from typing import Any

fast: Any
try:
    from isal import isal_zlib as fast
except ImportError:  # not on each platform, and never needed
    fast = None

_GZIP = 31
"""Window bits that ask for the head and tail of gzip."""
# With zlib, level 6 takes twice the time of level 1 for 13 % fewer bytes, and the time is the
# app's. With isal, which has levels up to 3, the others are no smaller.
_LEVEL = 1


def gzip(body: bytes, *, is_base64: bool = False) -> bytes:
    """
    Compress ``body``, quickly rather than well; the same body gives the same bytes.

    Base64 of what is encrypted has no repetitions to look for, but each character carries six bits
    of eight: zlib is told to code only, which gets that quarter back in a third of the time.
    """
    packer: Any
    if fast is None:
        strategy = zlib.Z_HUFFMAN_ONLY if is_base64 else zlib.Z_DEFAULT_STRATEGY
        packer = zlib.compressobj(_LEVEL, zlib.DEFLATED, _GZIP, zlib.DEF_MEM_LEVEL, strategy)
    else:
        packer = fast.compressobj(_LEVEL, fast.DEFLATED, _GZIP)
    packed: bytes = packer.compress(body) + packer.flush()
    return packed
