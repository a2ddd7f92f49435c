"""After new weights are in visglm/assets: bring up to date what shows their answers. `make tiny-record` runs it.

That is what `visglm doctor` expects, the output under the first Python block of each README, and the outputs of
examples/quickstart.ipynb; the tests hold all three against the weights.
"""

from __future__ import annotations

import contextlib
import io
import os
import re
from pathlib import Path

import nbformat
from nbclient import NotebookClient

from visglm.selftest import record

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "quickstart.ipynb"
FIRST_BLOCK = re.compile(r"```python\n(.*?)```\n\n(.*?)\n\n```text\n.*?```\n", re.DOTALL)


def show_output(document: Path) -> None:
    """Run the first Python block and put what it prints into the text block below."""
    text = document.read_text("utf-8")
    code, lead = FIRST_BLOCK.search(text).groups()
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed), contextlib.redirect_stderr(io.StringIO()):
        exec(compile(code, str(document), "exec"), {})
    block = f"```python\n{code}```\n\n{lead}\n\n```text\n{printed.getvalue()}```\n"
    document.write_text(FIRST_BLOCK.sub(lambda match: block, text, count=1), "utf-8")
    print(f"{document.name}:\n{printed.getvalue()}")


def run_notebook(path: Path) -> None:
    notebook = nbformat.read(path, as_version=4)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(path.parent)}}).execute()
    notebook.metadata.language_info = {"name": "python"}  # not the version it happened to run on
    for cell in notebook.cells:
        cell.metadata = {}  # when which cell ran is of no interest
        if cell.cell_type == "code":
            cell.outputs = join_streams(cell.outputs)
    nbformat.write(notebook, path)


def join_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    """Without what libraries said on stderr, and what was printed in one piece, however it arrived."""
    joined: list[nbformat.NotebookNode] = []
    for output in outputs:
        if output.get("name") == "stderr":
            continue
        if joined and output.output_type == joined[-1].output_type == "stream":
            joined[-1].text += output.text
        else:
            joined.append(output)
    return joined


def main() -> None:
    os.chdir(ROOT)
    print(record())
    for name in ("README.md", "README_zh.md"):
        show_output(ROOT / name)
    run_notebook(NOTEBOOK)


if __name__ == "__main__":
    main()
