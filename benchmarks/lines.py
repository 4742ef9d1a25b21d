"""Lines of the package and its tests by wing: all, and without blank lines, comments and docstrings (`make lines`)."""

from __future__ import annotations

import ast
import io
import tokenize
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).parents[1]
FOLDERS = ("powersample", "evals", "orchestrator", "demo_training", "benchmarks", "tests")
PACKAGE = ("powersample", "evals", "orchestrator")
SILENT = {tokenize.COMMENT, tokenize.NL, tokenize.NEWLINE, tokenize.INDENT, tokenize.DEDENT, tokenize.ENDMARKER}


def code_lines(source: str) -> int:
    """Lines with code on them: neither blank nor part of a comment or a docstring.

    Strings that stand alone count as docstrings, those below fields included.
    """
    texts = {
        line
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
        for line in range(node.lineno, (node.end_lineno or node.lineno) + 1)
    }
    code: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type not in SILENT:
            code.update(range(token.start[0], token.end[0] + 1))
    return len(code - texts)


def wing(path: Path) -> str:
    """The folder of a file below its package, `(top)` for files that lie in the package itself."""
    package, *inner = path.relative_to(ROOT).parts
    return f"{package}/{inner[0]}" if len(inner) > 1 else f"{package}/(top)"


def main() -> None:
    """Print a table: files, lines and lines of code of every wing, and the sums."""
    files, lines, code = Counter[str](), Counter[str](), Counter[str]()
    for folder in FOLDERS:
        for path in sorted((ROOT / folder).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if not source:
                continue
            sums = (wing(path), folder, *(["package"] if folder in PACKAGE else []))
            for name in sums:
                files[name] += 1
                lines[name] += source.count("\n")
                code[name] += code_lines(source)
    print(f"{'':28}{'files':>6}{'lines':>8}{'code':>8}")
    for folder in FOLDERS:
        for name in (*sorted(name for name in files if name.startswith(f"{folder}/")), folder):
            print(f"{name if name == folder else f'  {name}':28}{files[name]:6}{lines[name]:8,}{code[name]:8,}")
    print(f"{'package (the first three)':28}{files['package']:6}{lines['package']:8,}{code['package']:8,}")


if __name__ == "__main__":
    main()
