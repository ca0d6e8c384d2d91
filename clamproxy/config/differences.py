"""What differs between two configurations, as an administrator would say it."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel

from clamproxy.config.effective import one_line
from clamproxy.config.settings import Settings

_LONGEST = 2000
"""Characters of a value. Nobody reads a list of thousands of networks, and a log may cut so long a line."""


@dataclass(frozen=True, slots=True)
class KeyChange:
    """A key with another value than before, both as people write them: ``4GiB``, ``[10.0.0.0/8]``."""

    key: str
    before: str
    after: str

    def __str__(self) -> str:
        return f"{self.key}: {self.before} → {self.after}"


def changes(old: Settings, new: Settings) -> list[KeyChange]:
    """The keys whose values differ, in the order of proxy.yaml. Secrets are masked, before and after."""
    found = []
    for (section, before), (_, after) in zip(old, new, strict=True):
        if not isinstance(before, BaseModel):
            found += [KeyChange(section, _shown(before), _shown(after))] if before != after else []
            continue
        written, rewritten = before.model_dump(mode="json"), after.model_dump(mode="json")
        found += [
            KeyChange(f"{section}.{key}", _shown(written[key]), _shown(rewritten[key]))
            for key, value in before
            if value != getattr(after, key)
        ]
    return found


def _shown(value: object) -> str:
    text = one_line(value)
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"
