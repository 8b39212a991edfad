"""What the site shows and nobody writes twice, made while it is built.

A page has a line `<!-- gallery -->`, `<!-- names -->`, `<!-- support -->` or
`<!-- figures -->` where that belongs. Pictures of the examples come from the folder
that the environment variable `LINEAX_EXT_PICTURES` names; without it the examples run,
which takes minutes and the extra `examples`; `LINEAX_EXT_PICTURES=none` leaves them
out.
"""

import ast
import functools as ft
import importlib.util
import inspect
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import textwrap
from typing import Any

from mkdocs.structure.files import File

import lineax_ext as lxe


_root = pathlib.Path(__file__).parents[1]
_results = _root / "benchmarks" / "results"
# `mkdocs serve` builds again and again; the examples run once.
_drawn: dict[str, bytes] = {}


def on_files(files, config):
    pictures = _pictures()
    pictures |= {path.name: path.read_bytes() for path in _results.glob("*.png")}
    for name, content in pictures.items():
        uri = f"pictures/{name}"
        files.append(File.generated(config, uri, content=content))
    return files


def on_page_markdown(markdown, **kwargs):
    for name, make in _made.items():
        line = f"<!-- {name} -->"
        if line in markdown:
            markdown = markdown.replace(line, make())
    return markdown


def _table(head: list[str], rows: list[list[Any]]) -> str:
    escaped = [[str(x).replace("|", "\\|") for x in row] for row in rows]
    lines = [head, ["---"] * len(head), *escaped]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


#
# The examples and their pictures
#


def _pictures() -> dict[str, bytes]:
    folder = os.environ.get("LINEAX_EXT_PICTURES")
    if folder == "none":
        return {}
    if not _drawn:
        with tempfile.TemporaryDirectory() as temporary:
            if folder is None:
                folder = temporary
                _draw(folder)
            paths = [pathlib.Path(folder) / f"{x.stem}.png" for x in _examples()]
            _drawn.update({x.name: x.read_bytes() for x in paths if x.exists()})
        missing = [p.name for p, x in zip(paths, _examples()) if _draws(x) > p.exists()]
        if missing:
            raise RuntimeError(f"no picture in {folder}: {', '.join(missing)}")
    return _drawn


def _draw(folder: str) -> None:
    for example in filter(_draws, _examples()):
        print(f"Running {example.name} for its picture", flush=True)
        command = [sys.executable, str(example)]
        subprocess.run(command, cwd=folder, check=True, stdout=subprocess.DEVNULL)


@ft.cache
def _examples() -> list[pathlib.Path]:
    return sorted((_root / "examples").glob("*.py"))


@ft.cache
def _docstring(example: pathlib.Path) -> str:
    return ast.get_docstring(ast.parse(example.read_text())) or ""


def _draws(example: pathlib.Path) -> bool:
    return f"{example.stem}.png" in _docstring(example)


def _gallery() -> str:
    parts = []
    for example in sorted(_examples(), key=_draws, reverse=True):
        title, _, text = _docstring(example).partition("\n")
        source = textwrap.indent(example.read_text(), " " * 4)
        picture = f"![{title}](pictures/{example.stem}.png)"
        parts += [
            f"## {title.rstrip('.')}",
            picture if f"{example.stem}.png" in _pictures() else "",
            text.strip(),
            f'??? example "examples/{example.name}"\n\n    ```python\n{source}    ```',
        ]
    return "\n\n".join(parts)


#
# Names
#


def public_names() -> list[str]:
    is_ours = lambda x: getattr(x, "__module__", "").startswith("lineax_ext")
    return sorted(name for name, value in vars(lxe).items() if is_ours(value))


def _names() -> str:
    rows = []
    for name in public_names():
        doc = inspect.getdoc(getattr(lxe, name)) or ""
        summary = " ".join(doc.partition("\n\n")[0].split())
        rows.append([f"[`{name}`][lineax_ext.{name}]", summary])
    return _table(["name", "what it is"], rows)


#
# Support
#


def _support() -> str:
    path = _root / "tests" / "support.py"
    spec = importlib.util.spec_from_file_location("support", path)
    assert spec is not None and spec.loader is not None
    support = importlib.util.module_from_spec(spec)
    sys.modules["support"] = support
    spec.loader.exec_module(support)
    rows = [
        [
            row.name,
            *(
                ", ".join(support.TRANSFORMS) if dtype in row.dtypes else "—"
                for dtype in support.DTYPES
            ),
            "not run",
        ]
        for row in support.ROWS
    ]
    return _table(["", *(f"{x}, CPU" for x in support.DTYPES), "GPU"], rows)


#
# Figures
#


def _seconds(seconds: float | None) -> str:
    if seconds is None:
        return "—"
    factor, unit = next(
        ((f, u) for f, u in ((1, "s"), (1e-3, "ms")) if seconds >= f), (1e-6, "µs")
    )
    return f"{seconds / factor:#.3g}".rstrip(".") + f" {unit}"


def _measured(side: dict[str, Any] | None) -> str:
    if side is None:
        return ""
    if side.get("seconds") is None:
        return "—"
    out = f"{_seconds(side['seconds'])}, {side['error']:.0e}"
    return out + (f", {side['steps']} steps" if "steps" in side else "")


def _panel(cases: list[dict[str, Any]]) -> str:
    if "sides" not in cases[0]:  # counts
        names = [name for name in cases[0] if name != "panel"]
        return _table(names, [[case.get(name, "") for name in names] for case in cases])
    names = list(dict.fromkeys(name for case in cases for name in case["sides"]))
    rows = [
        [case["label"], *(_measured(case["sides"].get(name)) for name in names)]
        for case in cases
    ]
    return _table(["", *names], rows)


def _claim(path: pathlib.Path) -> str:
    result = json.loads(path.read_text(encoding="utf-8"))
    machine, versions = result["machine"], result["versions"]
    where = f"{machine['cores']} cores of an {machine['cpu']}, {machine['system']}"
    what = ", ".join(f"{name} {version}" for name, version in versions.items())
    panels: dict[str, list[dict[str, Any]]] = {}
    for case in result["cases"]:
        panels.setdefault(case["panel"], []).append(case)
    tables = "\n".join(f"**{name}**\n\n{_panel(x)}" for name, x in panels.items())
    parts = [
        f"### {result['title'].rstrip('.')}",
        f"`{result['command']}`, {result['date'][:10]}; {where}; {what}.",
        f"![{result['title']}](pictures/{path.stem}.png)",
        '??? note "All cases: time, error, steps"\n\n'
        + textwrap.indent(tables, "    "),
    ]
    return "\n\n".join(parts)


def _figures() -> str:
    return "\n\n".join(map(_claim, sorted(_results.glob("*.json"))))


_made = {
    "gallery": _gallery,
    "names": _names,
    "support": _support,
    "figures": _figures,
}
