"""proxy.yaml as the project comes with it: every key with its comment and its default."""

from __future__ import annotations

from pathlib import Path

from clamproxy.config.loading import LOCAL_CONFIG, ConfigurationError, load_settings
from clamproxy.config.settings import Settings

_PACKAGED = Path(__file__).with_name(LOCAL_CONFIG)
"""Where the build puts it (setup.py)."""
_IN_CHECKOUT = Path(__file__).parents[2] / LOCAL_CONFIG
"""Where users of a checkout edit it."""


def example() -> str:
    """The text of the project's proxy.yaml.

    Raises:
        ConfigurationError: clamproxy runs from a checkout whose proxy.yaml has been changed or removed.
    """
    if _PACKAGED.exists():
        return _PACKAGED.read_text(encoding="utf-8")
    defaults = Settings.model_validate({}, context={"base": _IN_CHECKOUT.parent})
    if not _IN_CHECKOUT.exists() or load_settings(_IN_CHECKOUT, {}) != defaults:
        raise ConfigurationError(
            f"{_IN_CHECKOUT}: has been changed; `git show HEAD:{LOCAL_CONFIG}` prints the original"
        )
    return _IN_CHECKOUT.read_text(encoding="utf-8")
