"""A self-contained HTML page and what it is made of: no network, no script, light and dark, on paper and on a phone.

Every function takes plain text and escapes it; only what one of these functions returned (:class:`Html`) is taken as
markup. The output depends on the arguments alone.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from html import escape

#: Colours by scheme. Text on its background has a contrast of 4.5 at least (WCAG 2.2, AA), marks in charts 3.
LIGHT = {
    "page": "#f4f6f8",
    "card": "#ffffff",
    "text": "#17202b",
    "muted": "#536071",
    "line": "#d9dfe6",
    "grid": "#e7ebf0",
    "mark": "#2563ad",
    "mark-soft": "#a9c6e6",
    "link": "#1c5aa6",
    "pass": "#12653a",
    "pass-back": "#e0f3e8",
    "warn": "#7a4a00",
    "warn-back": "#fdf0d3",
    "fail": "#a5161d",
    "fail-back": "#fde6e5",
    "unknown": "#4a5666",
    "unknown-back": "#e8ecf1",
    "series-1": "#2563ad",
    "series-2": "#c2570c",
    "series-3": "#0f766e",
    "series-4": "#8b3fb0",
    "series-5": "#a16207",
    "series-6": "#be185d",
    "series-rest": "#7b8794",
}
DARK = {
    "page": "#10151b",
    "card": "#182029",
    "text": "#e7ecf2",
    "muted": "#a0adbb",
    "line": "#2f3b48",
    "grid": "#26313c",
    "mark": "#6ba7e8",
    "mark-soft": "#2f5378",
    "link": "#8bbcf0",
    "pass": "#7fdba6",
    "pass-back": "#143524",
    "warn": "#f0c067",
    "warn-back": "#3d2e0e",
    "fail": "#ff9c96",
    "fail-back": "#4a1a1b",
    "unknown": "#b4c0cd",
    "unknown-back": "#2a3541",
    "series-1": "#6ba7e8",
    "series-2": "#f29a5c",
    "series-3": "#4fc3b3",
    "series-4": "#c79be6",
    "series-5": "#e0bd57",
    "series-6": "#f28bb6",
    "series-rest": "#8a97a6",
}
VERDICTS = ("pass", "warn", "fail", "unknown")
_SYMBOLS = {"pass": "✓", "warn": "!", "fail": "✕", "unknown": "?"}

_FIGURE = re.compile(r"[<+-]?[0-9][0-9,.]*( ?[A-Za-z%/]{1,5})?")

_CSS = """
*,*::before,*::after{box-sizing:border-box}
html{color-scheme:light dark;-webkit-text-size-adjust:100%}
body{margin:0;background:var(--page);color:var(--text);
font:16px/1.5 system-ui,-apple-system,"Segoe UI",Roboto,"Noto Sans","Liberation Sans",sans-serif;
font-variant-numeric:tabular-nums}
.wrap{max-width:72rem;margin:0 auto;padding:1.5rem clamp(.75rem,3vw,2rem) 3rem}
h1,h2,h3{line-height:1.25;margin:0;overflow-wrap:anywhere;text-wrap:balance}
h1{font-size:clamp(1.5rem,1.2rem + 1.4vw,2.1rem);letter-spacing:-.015em}
h2{font-size:1.3rem;letter-spacing:-.01em;margin:2.5rem 0 .9rem}
h3{font-size:1.1rem}
h4{font-size:.95rem;margin:1.4rem 0 .35rem}
p{margin:.5rem 0;max-width:48rem;overflow-wrap:anywhere}
a{color:var(--link)}
.brand{font-weight:600;color:var(--muted);font-size:.85rem;letter-spacing:.02em;margin:0 0 .35rem}
.head{display:flex;flex-wrap:wrap;gap:.5rem 1rem;align-items:center}
.lead{font-size:1.1rem;margin:.6rem 0 0}
.muted{color:var(--muted)}
.small{font-size:.875rem}
.card{background:var(--card);border:1px solid var(--line);border-radius:.6rem;
padding:1.1rem clamp(.8rem,2.2vw,1.4rem);margin:0 0 1rem}
.badge{display:inline-flex;align-items:baseline;gap:.35em;border-radius:99px;padding:.1rem .65rem;font-weight:600;
font-size:.85rem;white-space:nowrap}
.badge.pass{color:var(--pass);background:var(--pass-back)}
.badge.warn{color:var(--warn);background:var(--warn-back)}
.badge.fail{color:var(--fail);background:var(--fail-back)}
.badge.unknown{color:var(--unknown);background:var(--unknown-back)}
.notice{border-left:4px solid var(--unknown);padding:.1rem 0 .1rem .9rem;margin:1rem 0}
.notice.pass{border-color:var(--pass)}
.notice.warn{border-color:var(--warn)}
.notice.fail{border-color:var(--fail)}
.notice ul{margin:.35rem 0;padding-left:1.15rem}
.notice li{margin:.25rem 0;max-width:52rem;overflow-wrap:anywhere}
.figures{display:grid;grid-template-columns:repeat(auto-fill,minmax(min(9rem,100%),1fr));gap:.9rem 1.2rem;margin:1rem 0}
.figures div{min-width:0}
.figures dt{color:var(--muted);font-size:.82rem}
.figures dd{margin:0;font-size:1.3rem;font-weight:600;line-height:1.3;overflow-wrap:anywhere}
.figures dd.plain{font-size:1rem;font-weight:500}
.figures .note{display:block;color:var(--muted);font-size:.82rem;font-weight:400}
.scroll{overflow-x:auto;margin:.75rem 0}
.card>.scroll:only-child{margin:0}
table{border-collapse:collapse;width:100%;font-size:.92rem}
caption{text-align:left;color:var(--muted);font-size:.875rem;padding:0 0 .4rem}
th,td{text-align:left;padding:.42rem 1.2rem .42rem 0;border-bottom:1px solid var(--line);vertical-align:top}
td{overflow-wrap:break-word}
tr>:last-child{padding-right:0}
thead th{color:var(--muted);font-weight:600;font-size:.82rem;vertical-align:bottom}
tbody th{font-weight:600;overflow-wrap:anywhere;min-width:8.5rem}
tbody tr:last-child>*{border-bottom:0}
.number{text-align:right;white-space:nowrap}
figure{margin:1rem 0 0}
figcaption{color:var(--muted);font-size:.875rem;margin-top:.35rem;max-width:48rem}
svg{display:block;width:100%;overflow:visible;font-size:12px}
svg text{fill:var(--text)}
svg .halo{paint-order:stroke;stroke:var(--card);stroke-width:4px;stroke-linejoin:round}
svg .soft{fill:var(--muted)}
svg .strong{font-weight:600}
svg .grid{stroke:var(--grid)}
svg .axis{stroke:var(--line)}
svg .bar{fill:var(--mark)}
svg .bar.pass{fill:var(--mark)}
svg .bar.soft{fill:var(--mark-soft)}
svg .bar.over,svg .bar.fail{fill:var(--fail)}
svg .bar.warn{fill:var(--warn)}
svg .mark{stroke:var(--text)}
svg .whisker{stroke:var(--text);stroke-width:1.5}
svg .limit{stroke:var(--fail);stroke-width:1.5;stroke-dasharray:5 3}
svg .limit.warn{stroke:var(--warn)}
svg text.limit-text{fill:var(--fail)}
svg text.limit-text.warn{fill:var(--warn)}
details{margin:1rem 0 0}
summary{cursor:pointer;color:var(--link);font-size:.92rem}
summary:focus-visible,a:focus-visible,.scroll:focus-visible{outline:2px solid var(--link);outline-offset:2px}
footer{margin-top:2.5rem;color:var(--muted);font-size:.875rem}
@media (max-width:40rem){
table.stack thead{position:absolute;width:1px;height:1px;overflow:hidden;clip-path:inset(50%)}
table.stack,table.stack caption,table.stack tbody,table.stack tr,table.stack th,table.stack td{display:block;width:100%}
table.stack tr{padding:.6rem 0;border-bottom:1px solid var(--line)}
table.stack tbody tr:last-child{border-bottom:0}
table.stack th,table.stack td{border:0;padding:.12rem 0;text-align:left;white-space:normal}
table.stack td{display:flex;justify-content:space-between;gap:1rem}
table.stack td::before{content:attr(data-label);color:var(--muted);flex:none}
table.stack td>span{text-align:right;min-width:0;overflow-wrap:anywhere}
}
@media print{
body{font-size:10.5pt;print-color-adjust:exact;-webkit-print-color-adjust:exact}
.wrap{max-width:none;padding:0}
.card,figure,tr,.notice{break-inside:avoid}
h2,h3{break-after:avoid}
.card{border-radius:0}
}
"""


class Html(str):
    """Markup that is ready to be put into a page."""

    __slots__ = ()


def text(value: object) -> Html:
    """``value`` escaped for content and for attributes in quotes; :class:`Html` stays as it is."""
    return value if isinstance(value, Html) else Html(escape(_printable(str(value)), quote=True))


def _printable(value: str) -> str:
    # HTML and XML know no control characters; a lone surrogate cannot be written as UTF-8.
    return "".join(
        "\ufffd"
        if (ord(c) < 32 and c not in "\t\n") or 0x7F <= ord(c) < 0xA0 or 0xD800 <= ord(c) < 0xE000
        else c
        for c in value
    )


def join(parts: Iterable[object], separator: str = "") -> Html:
    """The parts, escaped, one after the other."""
    return Html(separator.join(text(part) for part in parts))


def tag(name: str, *content: object, **attributes: object) -> Html:
    """``<name attributes>content</name>``; ``class_`` is class, ``_`` is ``-``, an attribute of None is left out."""
    shown = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{text(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Html(f"<{name}{shown}>{join(content)}</{name}>")


def badge(verdict: str, label: str | None = None) -> Html:
    """A verdict in its colour, with a symbol for who does not see colours. Anything unheard of is ``unknown``."""
    kind = verdict if verdict in VERDICTS else "unknown"
    symbol = tag("span", _SYMBOLS[kind], aria_hidden="true")
    return tag("span", symbol, Html(" "), label or kind, class_=f"badge {kind}")


def key_figures(figures: Sequence[tuple[str, object, object]]) -> Html:
    """``(name, value, note)``, large. The value is small where it is a text that is not a figure."""
    cells = []
    for name, value, note in figures:
        plain = None if _FIGURE.fullmatch(str(value)) else "plain"
        shown = [tag("span", note, class_="note")] if note else []
        cells.append(tag("div", tag("dt", name), tag("dd", value, *shown, class_=plain)))
    return tag("dl", *cells, class_="figures")


def table(
    caption: str,
    header: Sequence[str],
    rows: Sequence[Sequence[object]],
    *,
    numbers: Sequence[int] = (),
) -> Html:
    """A table with a caption; the first cell of a row is its heading. ``numbers``: columns aligned to the right.

    On a narrow screen each row becomes a list of its cells.
    """
    head = tag(
        "tr",
        *(tag("th", name, scope="col", class_=_number(at, numbers)) for at, name in enumerate(header)),
    )
    body = [
        tag(
            "tr",
            tag("th", row[0], scope="row"),
            *(
                tag("td", tag("span", cell), data_label=header[at], class_=_number(at, numbers))
                for at, cell in enumerate(row[1:], 1)
            ),
        )
        for row in rows
    ]
    whole = tag("table", tag("caption", caption), tag("thead", head), tag("tbody", *body), class_="stack")
    return tag("div", whole, class_="scroll", role="region", aria_label=caption, tabindex="0")


def _number(column: int, numbers: Sequence[int]) -> str | None:
    return "number" if column in numbers else None


def notice(kind: str, *content: object, items: Sequence[object] = ()) -> Html:
    """A paragraph that stands out, and a list below it."""
    paragraphs = [tag("p", part) for part in content if part]
    listed = [tag("ul", *(tag("li", item) for item in items))] if items else []
    return tag("div", *paragraphs, *listed, class_=f"notice {kind if kind in VERDICTS else 'unknown'}")


def section(title: str, *content: object) -> Html:
    """A part of the page with its heading."""
    return tag("section", tag("h2", title), *content)


def card(title: object, *content: object, mark: Html | None = None) -> Html:
    """A box with a heading and a badge beside it."""
    head = tag("div", tag("h3", title), *([mark] if mark else []), class_="head")
    return tag("article", head, *content, class_="card")


def details(title: str, *content: object) -> Html:
    """What is shown on demand."""
    return tag("details", tag("summary", title), *content)


def page(
    title: str,
    *content: object,
    lead: object = "",
    mark: Html | None = None,
    note: object = "",
    style: str = "",
    scripts: Sequence[str] = (),
) -> str:
    """The whole document. ``lead``: the sentence under the title. ``mark``: badge beside it. ``note``: the footer.

    ``style``: rules in addition. ``scripts``: texts that run at the end of the page; its policy names their hashes, so
    that nothing else can run. They are code, not data: neither is escaped.
    """
    head = tag("div", tag("h1", title), *([mark] if mark else []), class_="head")
    body = tag(
        "div",
        tag(
            "header",
            tag("p", "pveguard", class_="brand"),
            head,
            *([tag("p", lead, class_="lead")] if lead else []),
        ),
        tag("main", *content),
        *([tag("footer", note)] if note else []),
        class_="wrap",
    )
    for script in scripts:
        if "</script" in script.lower() or "<!--" in script:
            raise ValueError("a script that holds '</script' or '<!--' would end before its end")
    allowed = f"; script-src {' '.join(_source(script) for script in scripts)}" if scripts else ""
    return (
        '<!DOCTYPE html>\n<html lang="en">\n<head>\n<meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        '<meta name="color-scheme" content="light dark">\n<meta name="referrer" content="no-referrer">\n'
        # Should anything ever slip through the escaping, it can neither run nor call home.
        f"<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'{allowed}\">\n"
        f"<title>{text(title)}</title>\n<style>\n{_style()}{style}</style>\n</head>\n<body>\n{body}\n"
        + "".join(f"<script>{script}</script>\n" for script in scripts)
        + "</body>\n</html>\n"
    )


def _source(script: str) -> str:
    """What a Content-Security-Policy calls exactly this script."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()}'"


def _style() -> str:
    def scheme(colours: Mapping[str, str]) -> str:
        return ":root{" + ";".join(f"--{name}:{value}" for name, value in colours.items()) + "}"

    dark = f"@media screen and (prefers-color-scheme:dark){{{scheme(DARK)}}}"
    return f"{scheme(LIGHT)}\n{dark}{_CSS}"
