"""Writes benchmarks/README.md and its plots from the records.

python benchmarks/readme.py
"""

import json
import pathlib
from collections.abc import Iterator, Sequence
from statistics import fmean, median
from typing import Any

from compress import control_of, pays_from, table_of
from matplotlib.figure import Figure

from selssm_jax.report import figures

FOLDER = pathlib.Path(__file__).parent
DOCS = FOLDER.parent / "docs"
GATES_PAGE = DOCS / "gates.md"
MEASURED, PRICED, END = (
    *(f"<!-- {what}: written by benchmarks/readme.py -->\n" for what in ("measured", "bottleneck")),
    "<!-- end -->",
)
CLAIMS = (
    *(
        "linear_scan",
        "selective_scan",
        "ssd",
        "newton_scan",
        "newton_attack",
        "growth",
        "floor",
        "compile",
        "gathered_step",
    ),
    *(
        "information",
        "information_bounds",
        "coverage",
        "inference",
        "intervals",
        "memory",
        "certificates",
        "rate",
        "bottleneck",
        "gate_kinds",
        "gate_recall",
        "gate_complexity",
        "selective_options",
        "resample",
        "two_answers",
        "sparsity",
        "removal",
        "explain",
        "curriculum",
        "traces",
        "decoding",
        "serving",
        "huggingface",
        "scaling",
        "seeds",
        "pieces",
        "tpu",
        "mesh",
        "faults",
        "allocator",
        "large_table",
        "stream",
        "stream_drift",
        "stream_ettm1",
        "old_world",
    ),
)
DRAWN = ("attention", "local_attention", "mamba", "tcn", "lstm", "selective")  # of the states by position
MARKERS = {
    "linear_scan": "o-",
    "associative_scan": "s--",
    "selective_scan": "^-",
    "ssd": "v-",
    "newton_scan": "D-",
    "lax.scan": "x--",
    "streaming pass": "k:",
}
HEAD = """# Benchmarks

Every number here is read from a record in `records/` by `python benchmarks/readme.py`; a record names the command
that made it, the machine, shapes, dtype and seed. A script is one claim, and runs its peer in the same rounds, so
that a busy machine slows both: a ratio is the median over rounds of peer / ours. `pip install ".[bench]"` installs
the peers (the CPU build of PyTorch will do). No accelerator was at hand: what a record does not have was not
measured.
"""


def main() -> None:
    """Writes the page, its plots, and what the page on gates has of records."""
    records = {path.stem: json.loads(path.read_text()) for path in sorted((FOLDER / "records").glob("*.json"))}
    plot(records["growth"]["growth"]).savefig(FOLDER / "growth.png", dpi=110, metadata={"Software": None})
    figures.save(figures.draw_state_bytes(lines(records["decoding"])), FOLDER / "decoding.png")
    (FOLDER / "README.md").write_text(text(records))
    figures.save(draw_bottleneck(records["bottleneck"]), DOCS / "gates" / "bottleneck.png")
    page = fill(GATES_PAGE.read_text(), MEASURED, gates(records))
    GATES_PAGE.write_text(fill(page, PRICED, shares(records["bottleneck"])))


def text(records: dict[str, dict[str, Any]]) -> str:
    """The page."""
    claims = [claim(records[name]) for name in CLAIMS]
    tables = [
        errors(records["information"]),
        newton(records["newton_scan"]),
        fastest(records),
        carried(records["decoding"]),
        chips(records["tpu"]),
    ]
    smaller = [compressed(records["compress"]), pruned(records["pruning"])]
    return "\n".join(
        [HEAD, *claims, *tables, learned(records["mixers"]), recipes(records), *smaller, remembered(records)]
    )


def claim(record: dict[str, Any]) -> str:
    """A script's ratios beside their targets."""
    machine = record["machine"]
    origin = (
        f"`{record['command']}`, {machine['cpus']} CPU cores, {machine['system']}, {record['dtype']}, JAX "
        f"{machine['jax']}"
    )
    picture = "\n![Time and memory by number of steps](growth.png)\n" if "growth" in record else ""
    rows = [(what, *_verdict(found)) for what, found in record["ratios"].items()]
    return f"## {headline(record)}\n\n{origin}\n{picture}\n{table(('ratio', 'found', 'target', ''), rows)}"


def headline(record: dict[str, Any]) -> str:
    """A script's claim as a title: as a fact where every target is met, else behind how many were missed, or that there
    was none to miss.
    """
    words = record["claim"].removeprefix("Claim: ").rstrip(".")
    verdicts = [verdict for verdict in (_verdict(found)[2] for found in record["ratios"].values()) if verdict]
    if "missed" in verdicts:
        return f"Missed in {verdicts.count('missed')} of {len(verdicts)} targets: {words}"
    if not verdicts:
        return f"Measured without a target: {words}"
    # names of functions stay as they are
    return words[0].upper() + words[1:] if words.startswith(("on ", "a ", "every ")) else words


def _verdict(found: dict[str, Any]) -> tuple[str, str, str]:
    """(value, target, whether it is met) of one ratio."""
    value = next(value for key, value in found.items() if key not in ("at_least", "at_most"))
    least, most = found.get("at_least"), found.get("at_most")
    if least is None and most is None:
        return f"{value:.3g}", "", ""
    met = value >= least if least is not None else value <= most  # a value that is not a number meets nothing
    return (
        f"{value:.3g}",
        f"at least {least:g}" if least is not None else f"at most {most:g}",
        "met" if met else "missed",
    )


def gates(records: dict[str, dict[str, Any]]) -> str:
    """Every gate that was measured, a row; of tasks of recall the difference from sigmoid gates too."""
    noise, recall, complexity = (records[name] for name in ("gate_kinds", "gate_recall", "gate_complexity"))
    over, accuracy, against = noise["over the exact filter's"], recall["accuracy"], recall["less that of sigmoid gates"]
    names = dict.fromkeys(
        [*accuracy["selective copying"], *complexity["gates"], *(gate for found in over.values() for gate in found)]
    )

    def excess(task: str, gate: str) -> str:
        return f"{fmean(over[task][gate]) - 1:.2%}" if gate in over[task] else ""

    def recalled(task: str, gate: str) -> str:
        if gate not in accuracy[task]:
            return ""
        score = f"{fmean(accuracy[task][gate]):.1%}"
        if gate not in against[task]:
            return score
        apart = against[task][gate]
        return f"{score} ({100 * apart['low']:+.1f} to {100 * apart['high']:+.1f})"

    def follows(gate: str) -> str:
        found = complexity["gates"].get(gate)
        return f"{fmean(found['correlation']):.2f}" if found else ""

    columns = ("gate", *accuracy, *(f"{task}: error above the exact filter" for task in over), "bits follow the input")
    rows = [
        (gate, *(recalled(task, gate) for task in accuracy), *(excess(task, gate) for task in over), follows(gate))
        for gate in names
    ]
    words = (
        f"Accuracy at {recall['numbers of the state of a block']} numbers of state a block, the mean of "
        f"{recall['seeds']} seeds, and in brackets the 95 % interval of the difference from sigmoid gates, in points; "
        f"error of forecasts at {noise['numbers of the state']} numbers, {noise['seeds']} seeds; and the correlation, "
        "over steps, of what a gate gains with what the exact filter gains where the information of the input is "
        f"switched, {complexity['seeds']} seeds. Commands: "
        + ", ".join(f"`{record['command']}`" for record in (recall, noise, complexity))
    )
    return f"{words}.\n\n{table(columns, rows)}"


def shares(record: dict[str, Any]) -> str:
    """Of every gate with every noise the share of the bottleneck, a column a price."""
    prices = sorted({point["price"] for point in record["points"]})
    rows: dict[tuple[str, str], list[str]] = {}
    for point in sorted(record["points"], key=lambda point: point["price"]):
        cell = f"{median(point['share']):.1%} at {median(point['complexity']):.2f}"
        rows.setdefault((point["gate"], point["noise"]), []).append(cell)
    columns = ("gate", "noise", *(f"price {price:g}" for price in prices))
    words = (
        f"Relevance as a share of the bottleneck's at the same complexity, and that complexity, nats: the medians of "
        f"{record['seeds']} seeds on the test split, whose chance is about half a percent. Command: "
        f"`{record['command']}`."
    )
    picture = "![Relevance against complexity of every gate and noise, and the bottleneck.](gates/bottleneck.png)"
    return f"{words}\n\n{table(columns, [(*case, *cells) for case, cells in rows.items()])}\n{picture}\n"


@figures.style()
def draw_bottleneck(record: dict[str, Any]) -> Figure:
    """Relevance against complexity: the bottleneck, and a mark for every run, by its noise, a panel each."""
    noises = dict.fromkeys(point["noise"] for point in record["points"])
    drawn = [noise for noise in noises if noise != "of its filter"]
    figure, axes = figures.panels(1, len(drawn), height=3.2)
    gates = dict.fromkeys(point["gate"] for point in record["points"])
    looks = dict(zip(gates, figures.LINES, strict=False))
    curve = record["bottleneck"]
    for ax, noise in zip(axes, drawn, strict=True):
        ax.plot(curve["complexity"], curve["relevance"], color="black", linewidth=1, label="the bottleneck")
        for gate, (color, _, marker) in looks.items():
            among = (noise, "of its filter") if noise == "additive" else (noise,)
            points = [point for point in record["points"] if point["gate"] == gate and point["noise"] in among]
            x, y = ([value for point in points for value in point[key]] for key in ("complexity", "relevance"))
            if points:
                ax.plot(x, y, color=color, marker=marker, markersize=4, fillstyle="none", linestyle="none", label=gate)
        ax.set(title=f"noise: {noise}", xlabel="complexity (nats)", ylabel="relevance (nats)", ylim=(0, None))
    figures.legend(figure, axes[0])
    return figure


def fill(page: str, mark: str, written: str) -> str:
    """The page with what was written between a mark and its end."""
    before, rest = page.split(mark)
    return before + mark + written + END + rest.split(END, 1)[1]


def errors(record: dict[str, Any]) -> str:
    """Error of every estimator on every task, ours and the reference's on the same samples."""
    parts = ["### Estimators of mutual information: mean of estimate - truth, nats\n\n"]
    parts[0] += (
        "The tasks and the reference are those of Czyz et al. 2023 (benchmark-mi); at N=5000 means over three "
        "samples, at N=10000 one sample.\n"
    )
    for count, rows in record["errors"].items():
        ours = [name for name in rows[0] if name not in ("task", "true") and not name.endswith("(reference)")]
        theirs = [name for name in rows[0] if name.endswith("(reference)")]
        for which, names in ((f"N={count}, ours", ours), (f"N={count}, reference", theirs)):
            head = (which, "truth", *(name.removesuffix(" (reference)") for name in names))
            lines = [(row["task"], f"{row['true']:.3f}", *(f"{row[name]:+.3f}" for name in names)) for row in rows]
            parts.append(
                table(
                    head,
                    [
                        *lines,
                        ("mean absolute", "", *(f"{fmean(abs(row[name]) for row in rows):.3f}" for name in names)),
                    ],
                )
            )
    return "\n".join(parts)


def chips(record: dict[str, Any]) -> str:
    """What the compiler says of every program, on the chips of each target."""
    columns = (
        "recipe",
        *(f"{target}, {chips['count']} of {chips['topology']}" for target, chips in record["targets"].items()),
    )
    rows = [
        (recipe, *(_program(targets.get(target)) for target in record["targets"]))
        for recipe, targets in record["programs"].items()
    ]
    words = "Rows of the batch; megabytes of one chip; CPU seconds of the compiler; collectives of a step."
    return f"### Training steps compiled for TPUs, not run on them\n\n{words}\n\n{table(columns, rows)}"


def _program(found: dict[str, Any] | None) -> str:
    if found is None:
        return ""
    if "refused" in found:
        return f"{found['rows']} rows: {found['refused']}"
    collectives = "".join(f", {count} {name}" for name, count in found["collectives"].items())
    seconds = f"{found['cpu_seconds_to_compile']:.0f} s"
    return f"{found['rows']} rows, {found['bytes_a_chip'] / 1e6:.0f} MB, {seconds}{collectives}"


def learned(record: dict[str, Any]) -> str:
    """What every mixer learns of the same text in the same time."""
    runs = sorted(
        ((kind, run) for kind, runs in record["mixers"].items() for run in runs), key=lambda one: one[1]["nats"]
    )
    rows = [
        (
            kind,
            f"{run['nats']:.3f}",
            f"{run['steps']:,}",
            f"{run['cpu_seconds']:.0f}",
            f"{run['parameters']:,}",
            f"{run['state_bytes']:,}",
            str(run["seed"]),
        )
        for kind, run in runs
    ]
    columns = ("mixer", "test nats a character", "steps", "CPU seconds", "parameters", "bytes carried", "seed")
    words = (
        f"Three layers each, {record['budget_cpu_seconds']:.0f} CPU seconds of training; a mixer of cheap steps takes "
        "more of them."
    )
    return f"## What every mixer learns\n\n`{record['command']}`. {words}\n\n{table(columns, rows)}"


def compressed(record: dict[str, Any]) -> str:
    """What compressed runs score, beside themselves in float32 and beside controls of as many bytes."""
    columns = (
        "task, memory",
        "bytes of a sequence",
        "table for all",
        "fewer in all from",
        "seed",
        "metric",
        "float32",
        "compressed",
        "loss",
        "how",
        "a float32 model of so many bytes",
        "scores",
    )
    rows = []
    for run in record["runs"]:
        metric, (before, after) = run["metric"], (run["reference"], run["compressed"])
        rival = control_of(run, record["controls"])
        control = (f"{rival['bytes'][run['scope']]:,}", f"{rival['test'][metric]:.4g}") if rival else ("", "")
        scores = metric, f"{before['test'][metric]:.4g}", f"{after['test'][metric]:.4g}", f"{after['lost']:+.2%}"
        shared, exact = table_of(run)
        sizes = (
            f"{before['bytes']:,} to {after['bytes']:,}",
            f"{'' if exact else 'at most '}{shared:,}",
            f"{pays_from(run):,} sequences",
        )
        rows.append((f"{run['task']}, {run['scope']}", *sizes, str(run["seed"]), *scores, after["method"], *control))
    words = "Memory `all` is everything that is carried, `mixers` the states of the mixers alone; "
    words += (
        "choices were made on the validation split, scores are of the test split. The table of levels is read by all "
        "sequences and counted beside them: "
    )
    words += (
        "these runs gave every component a table of its own, before tables were shared and their bytes were part of "
        "what is asked for."
    )
    return f"## Compressed runs\n\n`{record['command']}`. {words}\n\n{table(columns, rows)}"


def pruned(record: dict[str, Any]) -> str:
    """Loss of components chosen by information less that of components chosen by magnitude."""
    rows = [
        (
            task,
            method,
            share,
            f"{found['mean']:+.4f}",
            "" if found["low"] is None else f"{found['low']:+.4f} to {found['high']:+.4f}",
            str(found["runs"]),
        )
        for task, methods in record["minus_magnitude"].items()
        for method, shares in methods.items()
        for share, found in shares.items()
    ]
    words = (
        "Loss on the test split without fine-tuning, less that of the choice by weights at as many components: below 0 "
        "the method is better."
    )
    columns = ("task", "method", "kept", "mean difference", "95 % interval", "seeds")
    return (
        f"## Components chosen by what they tell, and by their weights\n\n`{record['command']}`. "
        f"{words}\n\n{table(columns, rows)}"
    )


def remembered(records: dict[str, dict[str, Any]]) -> str:
    """What was measured of the memory of whole runs."""
    parts = ["## What trained models remember\n"]
    for record in records.values():
        if "memory" in record:
            parts.append(f"`{record['command']}`\n")
            parts.append(table(("what", "bits", "± standard error", "direction"), list(_memory(record["memory"]))))
    return "\n".join(parts)


def _memory(found: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    for name, block in found["blocks"].items():
        last = block["information"][-1]
        what = f"{name}, step {last['moment']}: all inputs"
        if last["exact"] is not None:
            yield what, f"{last['exact']:.3f}", "0", "exact"
        yield what, f"{last['lower']:.3f}", f"{last['stderr']:.3f}", "lower"
        yield (
            what,
            f"{last['upper']:.3f}",
            f"{last['stderr']:.3f}",
            "upper" if last["resolved"] else "upper; not resolved: more sequences are needed",
        )
        kept = block["retention"]
        most = max(range(len(kept["lags"])), key=lambda lag: kept["lower"][lag])
        yield (
            f"{name}: the input of {kept['lags'][most]} steps ago",
            f"{kept['lower'][most]:.3f}",
            f"{kept['stderr'][most]:.3f}",
            "lower",
        )
    if found["answers"]:
        entropy = found["answers"]["entropy"]
        for who, part in (
            ("the model's own answers", found["answers"]["model"]),
            ("a fitted decoder", found["answers"]["decoder"]),
        ):
            yield f"the {entropy:g} bits asked for, by {who}", f"{part['bits']:.2f}", f"{part['stderr']:.2f}", "lower"


def newton(record: dict[str, Any]) -> str:
    """Every setting of newton_scan."""
    columns = ("steps", "width", "share", "g_min", "drive", "iterations", "converged", "error", "peer_over_ours")
    rows = [tuple(_short(case[name]) for name in columns) for sweep in record["sweeps"].values() for case in sweep]
    return (
        "### newton_scan by length, width and gain\n\n`share` is |W| over the largest that is "
        f"certified.\n\n{table(columns, rows)}"
    )


def fastest(records: dict[str, dict[str, Any]]) -> str:
    """Median milliseconds of value and gradient by method and shape: what `auto` picks by."""
    parts = ["### What `auto` picks by: milliseconds of value and gradient\n"]
    for name, key in (("linear_scan", "methods"), ("selective_scan", "methods"), ("ssd", "chunks")):
        cases = records[name][key]
        columns = [column for column in cases[0] if column.endswith("value_and_grad")]
        rows = [(str(tuple(case["shape"])), *(_short(case[column]["median"]) for column in columns)) for case in cases]
        parts.append(table((name, *(column.removesuffix(" value_and_grad") for column in columns)), rows))
    return "\n".join(parts)


def carried(record: dict[str, Any]) -> str:
    """What each mixer carries by position, and what one step of decoding takes."""
    columns = (
        "mixer",
        "bytes after 256 steps",
        "after 65,536",
        "slope",
        "overtaken at step",
        "peak bytes of a step",
        "after 65,536",
        "ms of a step",
    )
    rows = []
    for kind, sizes in record["state_bytes"].items():
        overtaken = record["crossover"].get(kind)
        ends = (f"{count:,}" for count in (sizes[0], sizes[-1]))
        times = [
            f"{found['median']:.2f} at {int(name.split()[1]):,}"
            for name, found in record["milliseconds"].items()
            if name.split()[0] == kind
        ]
        peaks = (f"{count:,}" for count in record["peak_bytes"][kind])
        rows.append(
            (
                kind,
                *ends,
                f"{record['slopes'][kind]:.3f}",
                "" if overtaken is None else f"{overtaken:,}",
                *peaks,
                "; ".join(times),
            )
        )
    size = record["model"]
    words = (
        f"Two blocks, {size['d_model']} wide, {size['d_state']} state components, float32. Overtaken: the cache of "
        "attention is larger from there on."
    )
    picture = "![State bytes by position](decoding.png)"
    return f"### What is carried, by position\n\n{words}\n\n{picture}\n\n{table(columns, rows)}"


def lines(record: dict[str, Any]) -> list[figures.Curve]:
    """State bytes by position."""
    return [figures.Curve(kind, record["positions"], record["state_bytes"][kind]) for kind in DRAWN]


def recipes(records: dict[str, dict[str, Any]]) -> str:
    """Scores and times of whole runs."""
    rows = [
        (
            f"`{record['command']}`",
            ", ".join(f"{name} {value:.4g}" for name, value in record["metrics"].items()),
            f"{record['parameters']:,}",
            f"{record['machine']['cpus']} CPU cores",
            f"{record['seconds']['training_process']:.0f} s{_of_cores(record)}",
        )
        for record in records.values()
        if "metrics" in record
    ]
    return f"## Scores of whole runs\n\n{table(('command', 'test split', 'parameters', 'hardware', 'training'), rows)}"


def _of_cores(record: dict[str, Any]) -> str:
    """CPU seconds, where they were measured, and how busy the machine was."""
    if "cpu_seconds" not in record:
        return ""
    return f" ({record['cpu_seconds']['training_process']:.0f} CPU s, at a load of {record['load_average_at_start']:g})"


def table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    """A table in Markdown."""
    return "\n".join("| " + " | ".join(row) + " |" for row in (head, ("---",) * len(head), *rows)) + "\n"


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def plot(growth: dict[str, list[dict[str, Any]]]) -> Figure:
    """Milliseconds and bytes of value and gradient by number of steps, one line an op."""
    figure = Figure(figsize=(8.2, 3.2), layout="constrained")
    time, memory = figure.subplots(1, 2)
    for name, cases in growth.items():
        steps = [case["steps"] for case in cases]
        time.plot(
            steps,
            [case["milliseconds"]["value_and_grad"]["median"] for case in cases],
            MARKERS[name],
            label=name,
            markersize=4,
        )
        memory.plot(
            steps, [case["temporary_bytes"]["value_and_grad"] / 1e6 for case in cases], MARKERS[name], markersize=4
        )
    for axes, label in ((time, "value and gradient, ms"), (memory, "temporaries, MB")):
        axes.set(xscale="log", yscale="log", xlabel="steps T", ylabel=label)
        axes.grid(visible=True, alpha=0.3)
    figure.legend(loc="outside right upper", fontsize=8)
    return figure


if __name__ == "__main__":
    main()
