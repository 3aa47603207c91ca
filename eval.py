"""Evaluates a run exactly over a whole split and writes a report about it: scores, gates, memory, an example.

    python eval.py --workdir runs/quickstart
    python eval.py --workdir runs/quickstart --split validation
    python eval.py --workdir runs/shakespeare --file my_text.txt     another text, at the run's vocabulary
    python eval.py --workdir runs/etth1 --local_dir ~/data           the same data, from a folder of yours

The report is WORKDIR/report/index.html, one file with its figures inside, with report.md and results.json beside it.
"""

import argparse

from selssm_jax import errors
from selssm_jax.reporting import report
from selssm_jax.reporting.run import SPLITS
from selssm_jax.reporting.tables import number


def arguments() -> argparse.Namespace:
    """Returns the command line's options; a wrong one ends the process with exit code 2."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workdir", required=True, metavar="RUN", help="the folder that train.py wrote")
    parser.add_argument("--split", default="test", help=f"what to evaluate on: {', '.join(SPLITS)} (default: test)")
    parser.add_argument("--file", default="", help="a text, CSV or NPZ file to evaluate on instead of the run's own data, cut into the same splits")
    parser.add_argument("--local_dir", default="", metavar="FOLDER", help="a folder that holds the originals of the run's data (default: as in training)")
    return parser.parse_args()


def main() -> None:
    """Writes the report and prints the scores."""
    chosen = arguments()
    with errors.reported():
        results = report.write(chosen.workdir, split=chosen.split, file=chosen.file, local_dir=chosen.local_dir)
    for name, metrics in ({results["name"]: results["metrics"]} | results["baselines"]).items():
        print(f"{name:24s}" + "  ".join(f"{metric} {number(value)}" for metric, value in metrics.items()))
    print(f"report: {results['report']}")


if __name__ == "__main__":
    main()
