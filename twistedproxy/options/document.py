"""The table of options for README.md, made from the options: ``python -m twistedproxy.options.document`` prints it."""

from __future__ import annotations

from collections.abc import Iterator

from twistedproxy.options.table import OPTIONS, Option

BEGIN = "<!-- options: made by python -m twistedproxy.options.document -->"
END = "<!-- /options -->"


def markdown() -> str:
    """The table, between its two markers."""
    return "\n".join([BEGIN, *_rows(), END])


def _rows() -> Iterator[str]:
    yield "| option | default | |"
    yield "|---|---|---|"
    for option in OPTIONS:
        again = ", repeatable" if option.repeatable else ""
        yield f"| `{option.flag} {_cell(option.value)}`{again} | {_default(option)} | {_cell(option.help)} |"


def _default(option: Option) -> str:
    # A default that is no value but words is not shown as if it could be typed.
    shown = option.shown_default if option.default else f"`{option.shown_default}`"
    return f"{shown} {option.kind.unit}" if option.kind.unit and not option.default else shown


def _cell(text: str) -> str:
    return text.replace("|", r"\|")


if __name__ == "__main__":
    print(markdown())  # noqa: T201
