"""Settings that ranks cannot share, refused before anything starts."""

from __future__ import annotations

from ..engine import EngineSettings
from ..errors import require
from ..reuse.base import ReusePolicy
from ..sparse.settings import SparseSettings
from .shape import MeshShape


def require_shareable(settings: EngineSettings, shape: MeshShape) -> None:
    """SettingError for what asks, in the middle of a run, for what no rank has all of."""
    require_policy(settings.policy, shape)
    require_sparse(settings.sparse, shape)


def require_policy(policy: ReusePolicy, shape: MeshShape) -> None:
    accepted = "another on several ranks (motion): its branches decide apart, by hidden states that no rank has all of"
    require(shape.size == 1 or not policy.reads_residual, "policy", policy.name, accepted)


def require_sparse(sparse: SparseSettings | None, shape: MeshShape) -> None:
    """Each rank chooses the blocks of its own heads; a vote of all heads it cannot count."""
    voted = sparse is not None and sparse.reuse is not None and sparse.reuse.gate is not None
    accepted = "off, or ranks for branches only: all heads of a layer vote on whether its masks serve again"
    require(shape.heads == 1 or not voted, "mask_reuse", f"on, with {shape.heads} ranks for heads", accepted)
