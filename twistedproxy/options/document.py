"""The table of options for the documentation: ``python -m twistedproxy.options.document`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from twistedproxy.options.command import OPTIONS

BEGIN = "<!-- options: made by python -m twistedproxy.options.document -->"
END = "<!-- /options -->"


def markdown() -> str:
    """The table, between its two markers."""
    return "\n".join([BEGIN, "| option | default | |", "|---|---|---|", *_rows(), END])


def _rows() -> Iterator[str]:
    for option in OPTIONS:
        if option.group:
            yield f"| **{option.group}** | | |"
        name = f"`--{option.name} {option.kind.placeholder}`{', repeatable' * option.repeatable}"
        # Words that stand for a default are not shown as if they could be typed.
        cells = (name, option.words or f"`{option.shown_default}`", option.help)
        yield "| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + " |"


if __name__ == "__main__":
    print(markdown())  # noqa: T201
