"""The notebook runs from its first to its last cell on a CPU, and shows figures."""

import pathlib

import nbformat
import pytest
from nbclient import NotebookClient

NOTEBOOK = pathlib.Path(__file__).parent.parent / "notebooks" / "quickstart.ipynb"


@pytest.fixture(scope="module")
def executed(tmp_path_factory):
    """The notebook after its cells ran in their own process, inside this clone, with a few steps of training."""
    folder = tmp_path_factory.mktemp("notebook")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SELSSM_NOTEBOOK_STEPS", "4")
        patch.setenv("SELSSM_NOTEBOOK_WORKDIR", str(folder / "run"))
        patch.setenv("JUPYTER_PLATFORM_DIRS", "1")
        notebook = nbformat.read(NOTEBOOK, as_version=4)
        NotebookClient(notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": str(NOTEBOOK.parent)}}).execute()
    return notebook


def texts(notebook) -> str:
    return "".join(output.get("text", "") for cell in notebook.cells for output in cell.get("outputs", []) if output.output_type == "stream")


def test_nothing_is_installed_where_all_is_there(executed):
    assert "installing" not in texts(executed)


def test_it_trains_and_evaluates(executed):
    outcomes = [output.data["text/plain"] for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "execute_result"]
    assert len(outcomes) == 1 and "step=4" in outcomes[0] and "finished=True" in outcomes[0]
    assert "bigram" in texts(executed) and "index.html" in texts(executed)


def test_it_shows_figures(executed):
    shown = [output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "display_data"]
    assert sum("image/png" in output.data for output in shown) >= 3


def test_no_cell_complains(executed):
    streams = [output for cell in executed.cells for output in cell.get("outputs", []) if output.output_type == "stream" and output.name == "stderr"]
    assert [output.text for output in streams if "Warning" in output.text or "Error" in output.text] == []


def test_it_is_kept_without_outputs():
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    nbformat.validate(notebook)
    assert [cell.outputs for cell in notebook.cells if cell.cell_type == "code" and cell.outputs] == []
