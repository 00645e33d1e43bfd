"""What a shell completes: words of closed lists, looked up when it asks for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence

Completer = Callable[[str], list[str]]


def words_of(setting: str) -> Completer:
    """Those that a setting of a run takes."""

    def complete(incomplete: str) -> list[str]:
        from spacepatch.config import choices_of
        from spacepatch.config.settings import CAN_BE_NONE

        none = ("none",) if setting in CAN_BE_NONE else ()
        return _matching((*choices_of(setting), *none), incomplete)

    return complete


def store_words(incomplete: str) -> list[str]:
    """What shards may hold."""
    from spacepatch.config.stores import STORES

    return _matching(STORES, incomplete)


def preset_words(incomplete: str) -> list[str]:
    """The presets."""
    from spacepatch.presets import preset_names

    return _matching(preset_names(), incomplete)


def _matching(words: Sequence[str], incomplete: str) -> list[str]:
    # A word with spaces in it ('c t p q') would come without quotes.
    return [word for word in words if word.startswith(incomplete) and " " not in word]
