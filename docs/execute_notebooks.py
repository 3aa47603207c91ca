"""Runs the notebooks and stores them with their outputs: `python docs/execute_notebooks.py`, minutes on 2 CPU cores.

The site shows these outputs and runs nothing. What differs between two runs without being a result is left out: times
of cells, and log lines of libraries, which name folders of the machine.
"""

import pathlib

import nbformat
from nbclient import NotebookClient

FOLDER = pathlib.Path(__file__).resolve().parent.parent / "notebooks"


def tidy(notebook: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Returns the notebook with each stream of a cell in one piece, and without times and log lines of libraries."""
    notebook.metadata["language_info"] = {"name": "python"}
    for cell in notebook.cells:
        cell.metadata.pop("execution", None)
        if cell.cell_type == "code":
            cell.outputs = _join_streams(cell.outputs)
    return notebook


def _join_streams(outputs: list[nbformat.NotebookNode]) -> list[nbformat.NotebookNode]:
    texts = {
        name: "".join(output.text for output in outputs if output.get("name") == name) for name in ("stderr", "stdout")
    }
    texts = {
        name: "".join(line for line in text.splitlines(keepends=True) if ":absl:" not in line)
        for name, text in texts.items()
    }
    streams = [nbformat.v4.new_output("stream", name=name, text=text) for name, text in texts.items() if text]
    return [*streams, *(output for output in outputs if output.output_type != "stream")]


if __name__ == "__main__":
    for path in sorted(FOLDER.glob("*.ipynb")):
        notebook = nbformat.read(path, as_version=4)
        NotebookClient(notebook, kernel_name="python3", resources={"metadata": {"path": str(FOLDER)}}).execute()
        nbformat.write(tidy(notebook), path)
