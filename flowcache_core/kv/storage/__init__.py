"""How finished chunks' K/V are kept: as they are, in fewer bits, or as centroids and what they leave over."""

from __future__ import annotations

from .base import Storage
from .centroids import Centroid
from .integer import Int2, Int4, Int8
from .plain import Plain

__all__ = ["STORAGES", "Centroid", "Int2", "Int4", "Int8", "Plain", "Storage"]

STORAGES: dict[str, type[Storage]] = {
    Plain.name: Plain,
    Int8.name: Int8,
    Int4.name: Int4,
    Int2.name: Int2,
    Centroid.name: Centroid,
}
