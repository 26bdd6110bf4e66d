"""Executes the notebooks, each from top to bottom in a fresh kernel, and saves them with their outputs.

    python -m notebooks.run              # all of them
    python -m notebooks.run 2_drift      # only this one

Nothing is saved of a notebook in which a cell fails.
"""

from __future__ import annotations

import sys
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from jupyter_client import AsyncKernelManager
from nbclient import NotebookClient

HERE = Path(__file__).parent


def notebooks() -> list[Path]:
    return sorted(HERE.glob("*.ipynb"))


def executed(path: Path) -> nbformat.NotebookNode:
    """The notebook with the outputs of a run of its own; raises if a cell fails."""
    notebook = nbformat.read(path, as_version=4)
    with TemporaryDirectory() as folder:  # for sockets: another process may take a port before the kernel does
        client = NotebookClient(
            notebook,
            km=AsyncKernelManager(kernel_name="python3", transport="ipc", connection_file=f"{folder}/kernel.json"),
            timeout=600,
            record_timing=False,  # outputs are the same in every run
            coalesce_streams=True,
            resources={"metadata": {"path": str(HERE.parent)}},
        )
        client.execute()
    notebook.metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    return notebook


def main() -> None:
    names = sys.argv[1:] or [path.stem for path in notebooks()]
    for name in names:
        path = HERE / f"{name.removesuffix('.ipynb')}.ipynb"
        print(path.name, flush=True)
        nbformat.write(executed(path), path)


if __name__ == "__main__":
    main()
