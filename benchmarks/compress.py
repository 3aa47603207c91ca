"""Claim: the memory of a sequence falls 16 times at 1 % of the metric, and a compressed model beats one that was
trained with as many bytes in float32.

  python train.py --config configs/NAME.py --workdir RUN ... ; python eval.py --workdir RUN --compress    # for every
  task and seed python benchmarks/compress.py --runs RUN [RUN ...] --controls SMALL [SMALL ...]

RUN are folders that were compressed, SMALL folders of small float32 models. The record holds, for each, how it was
trained and compressed, its bytes and its score on the test split, which each run's report read once; and, for each
task, the loss by seed, and the difference to the controls of the same seed. Bytes are those of one sequence; the table
of levels, which all sequences share, is beside them (`table_of`).
"""

import argparse
import json
import os
import pathlib
from typing import Any

import jax
import measure
import numpy as np
from seed_runs import interval

from selssm_jax.analysis.costs import state_bytes
from selssm_jax.compression.subject import relative_loss
from selssm_jax.runs import open_run
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training.evaluation import Evaluator

KEPT = (
    "reference",
    "compressed",
    "methods",
    "frontier",
    "knee",
    "carried_bytes",
    "parameter_bytes",
    "disk_bytes",
    "data_processing",
    "certificates",
    "seconds",
)


def main() -> None:
    """Collects, compares and writes the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--runs", nargs="+", type=pathlib.Path, required=True, help="runs with a compressed one beside them"
    )
    parser.add_argument("--controls", nargs="*", type=pathlib.Path, default=[], help="small runs in float32")
    parser.add_argument(
        "--record",
        type=pathlib.Path,
        default=measure.RECORDS / "compress.json",
        help="file to write (default %(default)s)",
    )
    chosen = parser.parse_args()
    missing = [str(run) for run in chosen.runs if not report_of(run).is_file()]
    if missing:
        parser.error(
            f"{', '.join(missing)} have no compressed run beside them: python eval.py --workdir RUN --compress"
        )
    compressed = [collected(run) for run in chosen.runs]
    controls = [control(run) for run in chosen.controls]
    origin = {
        "claim": __doc__.splitlines()[0],
        "command": "python benchmarks/compress.py --runs ... --controls ...",
        "machine": measure.machine() | {"load_average_at_start": round(os.getloadavg()[0], 1)},
    }
    chosen.record.write_text(
        json.dumps(
            origin | {"tasks": summary(compressed, controls), "runs": compressed, "controls": controls}, indent=1
        )
        + "\n"
    )
    print(json.dumps(summary(compressed, controls), indent=1))


def report_of(run: pathlib.Path) -> pathlib.Path:
    """Where the compression of a run is described."""
    return run.with_name(f"{run.name}-compressed") / "compression" / "compression.json"


def collected(run: pathlib.Path) -> dict[str, Any]:
    """What a compression found, and how the run was trained and compressed."""
    found = json.loads(report_of(run).read_text())
    config = found["config"]
    how = {
        "scope": found["scope"],
        "compress": config["compress"],
        "train_on": config["data"]["train_on"],
        "steps": config["training"]["steps"],
    }
    return {
        "task": found["name"],
        "seed": config["training"]["seed"],
        "metric": found["metric"],
        **how,
        **{key: found[key] for key in KEPT},
    }


def control(run: pathlib.Path) -> dict[str, Any]:
    """The score of a small float32 run on the test split, and its bytes."""
    opened = open_run(run)
    test = Evaluator(opened.experiment, opened.model)(opened.params, opened.dataset, "test")
    model = {
        key: getattr(opened.experiment.model, key)
        for key in ("d_model", "d_state", "conv", "frame", "stride", "linear_skip")
    }
    seed, parameters = (
        opened.experiment.training.seed,
        int(sum(np.size(leaf) for leaf in jax.tree.leaves(opened.params))),
    )
    return {
        "task": opened.experiment.name,
        "seed": seed,
        "bytes": {
            "all": state_bytes(opened.model, opened.params),
            "mixers": 4 * rows(opened) * sum(block.d_state for block in opened.model.config.blocks),
        },
        "parameters": parameters,
        "model": model,
        "test": test,
    }


def table_of(run: dict[str, Any]) -> tuple[int, bool]:
    """(bytes of the table of levels that all sequences share, whether they are exact rather than the most there can
    be).

    Reports say it since tables are counted and shared. Before, every component had a row of float32 of its own: what
    the parameters grew by, where none of them was removed, else one of 2^most_bits for each component.
    """
    after, grown = run["compressed"], run["parameter_bytes"]["after"] - run["parameter_bytes"]["before"]
    if "table_bytes" in after:
        return after["table_bytes"], True
    if "of the components" not in after["method"]:
        return grown, True
    return round(8 * after["bytes"] / after["bits"]) * 4 * 2 ** run["compress"]["most_bits"], False


def pays_from(run: dict[str, Any]) -> int:
    """From how many sequences on all bytes together, the table counted, are fewer than in float32."""
    return table_of(run)[0] // (run["reference"]["bytes"] - run["compressed"]["bytes"]) + 1


def control_of(run: dict[str, Any], controls: list[dict[str, Any]]) -> dict[str, Any] | None:
    """The small model of the same task and seed whose memory, of the same scope, has as many bytes, a twentieth more or
    less; None where none was trained.
    """
    alike = [one for one in controls if (one["task"], one["seed"]) == (run["task"], run["seed"])]
    return next((one for one in alike if abs(one["bytes"][run["scope"]] / run["compressed"]["bytes"] - 1) < 0.05), None)


def rows(opened: Any) -> int:
    """States of a sequence: one a channel, where channels run apart."""
    return kind_of(opened.model.config.task).rows(opened.model.config)


def summary(compressed: list[dict[str, Any]], controls: list[dict[str, Any]]) -> dict[str, Any]:
    """By task and scope: relative loss on the test split by seed, and how much better the compressed model is than the
    control of the same seed.
    """
    found = {}
    for task, scope in sorted({(one["task"], one["scope"]) for one in compressed}):
        mine = sorted(
            (one for one in compressed if (one["task"], one["scope"]) == (task, scope)), key=lambda one: one["seed"]
        )
        metric = mine[0]["metric"]
        rivals = {run["seed"]: rival for run in mine if (rival := control_of(run, controls))}
        lost = [one["compressed"]["lost"] for one in mine]
        won = [
            -relative_loss(one["compressed"]["test"], rivals[one["seed"]]["test"], metric)
            for one in mine
            if one["seed"] in rivals
        ]
        found[f"{task}, {scope}"] = {
            "metric": metric,
            "seeds": [one["seed"] for one in mine],
            "bytes": [[one["reference"]["bytes"], one["compressed"]["bytes"]] for one in mine],
            "float32": [one["reference"]["test"][metric] for one in mine],
            "compressed": [one["compressed"]["test"][metric] for one in mine],
            "lost": lost,
            "mean_lost": interval(np.array(lost)),
            "controls": [rivals[one["seed"]]["test"][metric] for one in mine if one["seed"] in rivals],
            "control_bytes": sorted({one["bytes"][scope] for one in rivals.values()}),
            "better_than_control": interval(np.array(won)) if won else None,
        }
    return found


if __name__ == "__main__":
    main()
