"""The page's building blocks: tables, grids of plots, notes, what is folded away."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from offline.evaluation.report.formatting import escape


def table(caption: str, head: Sequence[object], rows: Iterable[Sequence[object]], text_columns: int = 1) -> str:
    """A table whose first `text_columns` columns are text, the first of them the row's header, the rest numbers."""
    kinds = ["" if i < text_columns else ' class="number"' for i in range(len(head))]
    top = "".join(f'<th scope="col"{kind}>{escape(cell)}</th>' for kind, cell in zip(kinds, head, strict=True))
    lines = []
    for first, *rest in rows:
        cells = "".join(f"<td{kind}>{escape(cell)}</td>" for kind, cell in zip(kinds[1:], rest, strict=True))
        lines.append(f'<tr><th scope="row">{escape(first)}</th>{cells}</tr>')
    return (
        f'<div class="scroll"><table><caption>{escape(caption)}</caption><thead><tr>{top}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>"
    )


def collapsed(summary: str, body: str) -> str:
    """A body that opens when its summary is clicked; nothing for no body."""
    return f"<details><summary>{summary}</summary>{body}</details>" if body else ""


def grid(plots: Sequence[str]) -> str:
    """Plots side by side as the page is wide; nothing for none."""
    return f'<div class="plots">{"".join(plots)}</div>' if plots else ""


def note(said: str) -> str:
    """A small remark. said: HTML."""
    return f'<p class="note">{said}</p>' if said else ""
