"""Write docs/settings.md from the fields of RunConfig; a test holds it to be current."""

from pathlib import Path

from spacepatch.config import RunConfig, choices_of, fingerprint_of
from spacepatch.config.settings import WORDS

GROUPS = {
    "token": "What the tokens are (part of every segment's id)",
    "layout": "How they are packed and stored",
    "selection": "Which sources",
    "seed": "Randomness",
    "run": "How the run is done (changes no byte)",
}


def settings_page() -> str:
    """The page as Markdown."""
    lines = [
        "# Settings",
        "",
        "Each is a flag of `spacepatch tokenize` and `plan` (`--pack-length 4096`) and a key of a",
        "TOML file for `--config` (`pack_length = 4096`). This page is made from the code by",
        "`python docs/make_settings.py`.",
    ]
    for group, title in GROUPS.items():
        lines += ["", f"## {title}", "", "| key | default | meaning |", "|---|---|---|"]
        for key, field in RunConfig.model_fields.items():
            if fingerprint_of(key) != group:
                continue
            text = (field.description or "").replace("|", "\\|")
            if key in WORDS:
                text += " One of " + ", ".join(f"`{word}`" for word in choices_of(key)) + "."
            is_off = field.default is None or field.default is False
            default = "" if is_off else f"`{field.default}`"
            lines.append(f"| `{key}` | {default} | {text} |")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    Path(__file__).with_name("settings.md").write_text(settings_page(), encoding="utf-8")
