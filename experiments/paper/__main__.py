"""Writes docs/results.md and its figures from the committed records of all models and tasks; no model is run.

python -m experiments.paper
python -m experiments.paper --configs configs/paper --records my_records
"""

import argparse

from experiments.paper import page
from selssm_jax.errors import report_errors

parser = argparse.ArgumentParser(
    prog="python -m experiments.paper", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
)
parser.add_argument("--configs", default="configs/paper", help="the folder of the tasks' configs (default %(default)s)")
parser.add_argument("--records", default=str(page.RECORDS), help="the folder of TASK/MODEL.json (default %(default)s)")
chosen = parser.parse_args()
with report_errors():
    print(page.write(chosen.configs, chosen.records))
