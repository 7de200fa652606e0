"""A study's page as one self-contained HTML file: the same words and numbers as its Markdown, no scripts.

Raw HTML in the Markdown is shown as text, and links to scripts are not made.
"""

from __future__ import annotations

from jinja2 import Environment
from markdown_it import MarkdownIt
from markupsafe import Markup

TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'">
<title>{{ title }}</title>
<style>
:root { color-scheme: light dark; }
body { margin: 0 auto; padding: 2.5rem 1.25rem 4rem; max-width: 72rem; font: 1rem/1.55 system-ui, sans-serif; }
h1, h2, p { max-width: 48rem; overflow-wrap: anywhere; }
h2 { margin-top: 2.5rem; }
table { display: block; overflow-x: auto; border-collapse: collapse; font-size: .9rem; }
th, td { padding: .35rem .8rem; white-space: nowrap; border-bottom: 1px solid #8a939c55; }
th { text-align: left; }
td { font-variant-numeric: tabular-nums; }
</style>
</head>
<body>
{{ body }}</body>
</html>
"""


def html_page(title: str, markdown: str) -> str:
    """The HTML of ``markdown``, with ``title`` in the browser's bar."""
    reader = MarkdownIt("commonmark", {"html": False}).enable("table")
    template = Environment(autoescape=True, keep_trailing_newline=True).from_string(TEMPLATE)
    return template.render(title=title, body=Markup(reader.render(markdown)))
