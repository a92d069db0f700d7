"""Conditioning hooks whose strength changes while the noise level falls."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from ....flowcache_core.engine import EngineSettings
from ....flowcache_core.errors import require
from ..run.prompt_schedule import Entry


def refuse_keyframes(conds: Iterable[Sequence[Entry]], windows: Sequence[EngineSettings]) -> None:
    """SettingError for hook keyframes where the noise level rises again within the run: the host goes through them once
    and forwards only, so from the second chunk on it would be at the last one.
    """
    hooks = (hook for entries in conds for entry in entries if entry.get("hooks") for hook in entry["hooks"].hooks)
    changes = any(len(hook.hook_keyframe.keyframes) > 1 for hook in hooks)
    accepted = "one keyframe, or chunks that are denoised together without a prefix (ar_step 0, or one chunk)"
    require(not changes or falls(windows), "hooks", "keyframes of hooks", accepted)


def falls(windows: Sequence[EngineSettings]) -> bool:
    """Whether the model is called at falling noise levels only."""
    plan = windows[0].plan
    given = plan.prefix_chunks > 0 and windows[0].attention == "block-causal"
    return len(windows) == 1 and not given and len(plan.ticks) == plan.steps
