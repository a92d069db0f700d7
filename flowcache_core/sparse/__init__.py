"""Block-sparse self-attention: which blocks of the context a chunk's queries attend to, and how that is computed."""

from __future__ import annotations

from .calibrated import Calibrated
from .method import SparseMethod
from .top_k import TopK
from .window import Window
from .xattention import XAttention

METHODS: dict[str, type[SparseMethod]] = {method.name: method for method in (XAttention, Calibrated, TopK, Window)}
