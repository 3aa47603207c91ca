"""The section of a report on what a model's memory holds: words, tables and figures from `memory.measure`."""

import pathlib

from selssm_jax.analysis.results import Results
from selssm_jax.report import memory_figures
from selssm_jax.report.document import Block, Paragraph, Picture
from selssm_jax.report.figures import save
from selssm_jax.report.sections import section
from selssm_jax.report.tables import Cell, Table, block_title, number, tabulate

INTRODUCTION = (
    "Every number is in bits and says what it is: exact; a lower or an upper bound, which holds in expectation, its "
    "standard error aside; or an estimate, which is neither. Lower bounds come from decoders that were judged on "
    "sequences they had not seen: the state holds at least so much. Each sequence was read from an empty memory."
)
OVERLAP = (
    "The sequences are windows of one series and overlap: stretches of the series were held out whole, but standard "
    "errors take the windows for independent, and are too small."
)
NO_NOISE = (
    "All of the past: the states of this model have no noise, and a state without noise knows infinitely much of a "
    "continuous input. There is no finite number; train with model.selective.process_noise for one. The decoders above "
    "hold for any model."
)
CHANCE = (
    "What each component of the state knows of the input k steps ago, by itself (an estimate, from counts, less what "
    "is counted where states are given the inputs of other sequences); components are sorted by the lag of which they "
    "know most."
)
HORIZON = (
    "The memory horizon is the largest lag with at least 0.02 nats (0.03 bits) beyond two standard errors, and beside "
    "it the next lag that was tried, of which so much was not found. Lags are tried on while the longest is still "
    "known; 'at least' is where the sequences begin: the state may know what came before."
)

TELLS = (
    "What each component of the state tells of each answer, by itself (an estimate, from normal scores: of dependence "
    "that they do not show it says nothing). It tells of an answer where it knows 0.02 nats (0.03 bits) of it beyond "
    "two standard errors, and more than chance makes. A component that tells of several answers serves them all, be it "
    "with what they have in common or with a mixture of what each has alone."
)
OVERLAPS = (
    "Their sum less what it knows of all together is redundancy less synergy: above 0 the state tells the same of "
    "several answers. It is an estimate, and no measure of what is shared alone: answers that have a cause in common "
    "can tell more of the state together than apart, and the number is then small, or below 0, although they share it."
)
LISTED = 16  # components of a block whose bits are listed


def describe_memory(results: Results, folder: pathlib.Path) -> list[Block]:
    """What was measured, block by block, and its figures, which are written to `folder`; nothing where nothing was."""
    if "memory" not in results:
        return []
    memory = results["memory"]
    overlap, moments = f" {OVERLAP}" if memory["overlapping"] else "", len(memory["moments"])
    words = (
        f"{INTRODUCTION}{overlap} Measured on {memory['sequences']:,} sequences of the {results['split']} split, at "
        f"{moments} moments of each."
    )
    blocks: list[Block] = [Paragraph(words), _overview(memory), *_by_lag(memory, folder)]
    blocks += [
        *_all_of_the_past(memory, folder),
        *_components(memory, folder),
        *_gates(memory, folder),
        *_answers(memory),
        *_future(memory, folder),
        *_by_answer(memory, folder),
    ]
    return section("What the memory holds", [*blocks, _processing(memory)])


def describe_horizon(block: Results) -> str:
    """Returns the horizon as text: between two lags that were tried, or "at least" where the longest that the sequences
    have is still known.
    """
    horizon = block["horizon"]
    if horizon is None:
        return "none"
    missing = next((lag for lag in block["retention"]["lags"] if lag > horizon), None)
    return f"at least {horizon:,}" if missing is None else f"{horizon:,} (not {missing:,})"


def _overview(memory: Results) -> Table:
    columns = (
        "block",
        "components",
        "at lag",
        "lower bound (bits)",
        "± standard error",
        "of (bits)",
        "decoder's error",
        "Fano: at least",
        "horizon (steps)",
    )
    rows = tuple(_row(name, block) for name, block in memory["blocks"].items())
    return Table(
        "The input of which each block knows most, and the memory horizon: how far back it knows anything",
        columns,
        rows,
    )


def _row(name: str, block: Results) -> tuple[Cell, ...]:
    retention = block["retention"]
    most = max(range(len(retention["lags"])), key=lambda k: retention["lower"][k])
    of = retention["entropy"][most] if retention["entropy"] else None
    fano = retention["fano"][most] if retention["fano"] else None
    bits = retention["lower"][most], retention["stderr"][most]
    return (
        block_title(name),
        block["components"],
        retention["lags"][most],
        *bits,
        of,
        retention["error"][most],
        fano,
        describe_horizon(block),
    )


def _by_lag(memory: Results, folder: pathlib.Path) -> list[Block]:
    path = save(memory_figures.retention(memory["blocks"]), folder / "retention.png")
    of = next(iter(memory["blocks"].values()))["retention"]["of"]
    words = (
        f"Retention by lag (of {of}): at least so many bits about the input of k steps ago are in the state. Bands are "
        f"two standard errors; the dotted line, if any, is all there is to know. {HORIZON}"
    )
    return [Picture(path, words)]


def _all_of_the_past(memory: Results, folder: pathlib.Path) -> list[Block]:
    known = {name: [one for one in block["information"] if "lower" in one] for name, block in memory["blocks"].items()}
    known = {name: moments for name, moments in known.items() if moments}
    if not known:
        return [_why_not(memory)]
    given = next(iter(known.values()))[0]["given"]
    words = (
        f"I(h; {given}): between the lower and the upper bound, from the exact law of the state given {given}. The "
        "first block's input is a function of the data alone; for later blocks the upper bounds hold for the data too, "
        "the lower ones for the block's own input. The upper bound by covariance is the capacity that the covariance "
        "of the states leaves. ± is a standard error, of both bounds before it or of the one: a bound may stand beyond "
        "the exact value by as much, and hardly by three times that. The last column is all that the tokens so far can "
        "hold, if they are tokens."
    )
    columns = (
        "block",
        "step",
        "lower (bits)",
        "upper (bits)",
        "±",
        "resolved",
        "exact (bits)",
        "upper by covariance (bits)",
        "±",
        "of (bits)",
    )
    keys = (
        "moment",
        "lower",
        "upper",
        "stderr",
        "resolved",
        "exact",
        "gaussian_upper",
        "gaussian_upper_stderr",
        "capacity",
    )
    answers = {True: "yes", False: "no: more"}
    rows = (
        moment | {"resolved": answers[moment["resolved"]], "block": block_title(name)}
        for name, moments in known.items()
        for moment in moments
    )
    picture = Picture(
        save(memory_figures.all_of_the_past(known), folder / "past.png"),
        "Information about all of the past by step: bounds with two standard errors, and the exact value where there "
        "is one.",
    )
    return [
        Paragraph(words),
        Table(
            "Information about all of the past", columns, tuple(tuple(map(row.get, ("block", *keys))) for row in rows)
        ),
        picture,
    ]


def _why_not(memory: Results) -> Paragraph:
    moments = [one for block in memory["blocks"].values() for one in block["information"]]
    skipped = sorted({one["skipped"] for one in moments if "skipped" in one})
    if skipped:
        return Paragraph(f"All of the past was not measured: {skipped[0]}.")
    if not moments:
        return Paragraph(NO_NOISE)
    last = max(moments, key=lambda one: one["moment"])
    return Paragraph(
        f"All of the past: the inputs are tokens, and {last['moment'] + 1:,} of them hold at most "
        f"{number(last['capacity'])} bits, so that no state after step {last['moment']:,} knows more (an upper bound; "
        "noise or not). For a closer one train with model.selective.process_noise."
    )


def _components(memory: Results, folder: pathlib.Path) -> list[Block]:
    maps = {name: block["by_component"] for name, block in memory["blocks"].items()}
    drawn = {name: one for name, one in maps.items() if one["bits"] is not None}
    withheld = [
        Paragraph(f"{block_title(name).capitalize()}: the map of its components is withheld: {one['withheld']}.")
        for name, one in maps.items()
        if one["withheld"]
    ]
    return [
        *([Picture(save(memory_figures.components(drawn), folder / "components.png"), CHANCE)] if drawn else []),
        *withheld,
    ]


def _gates(memory: Results, folder: pathlib.Path) -> list[Block]:
    parts = {name: block["by_gate"] for name, block in memory["blocks"].items() if block["by_gate"]}
    if not parts:
        return []
    words = (
        "What is still known of past inputs, by how open the block's gates were when they were read: tenths of the "
        "steps, lower bounds with two standard errors."
    )
    return [Picture(save(memory_figures.by_gate(parts), folder / "memory_by_gate.png"), words)]


def _answers(memory: Results) -> list[Block]:
    answers = memory["answers"]
    if answers is None:
        return []
    words = (
        f"The task asks for {answers['answers']} symbols, {answers['entropy']:.4g} bits in all, which the states after "
        f"step {answers['moment']} have to hold: what follows says nothing of them."
    )
    if answers["fano"]:
        words += (
            " By Fano's inequality, the upper bounds on what the states know leave no decoder with less than "
            f"{100 * answers['fano']:.3g} % of wrong answers."
        )
    rows = {"the model's own answers": answers["model"], "a decoder of all blocks' states": answers["decoder"]}
    columns = {"bits": "bits", "± standard error": "stderr", "share of all": "share", "accuracy": "accuracy"}
    return [Paragraph(words), tabulate("What the state holds of the answers", rows, columns, first="lower bound from")]


def _future(memory: Results, folder: pathlib.Path) -> list[Block]:
    points = {name: block["future"] for name, block in memory["blocks"].items() if block["future"]}
    if not points:
        needed = memory.get("curve_needs")
        words = f"A curve of the bottleneck needs {needed} sequences, found {memory['sequences']}: none is drawn."
        return [Paragraph(words)] if needed else []
    steps = next(iter(points.values()))["steps"]
    words = (
        f"What the state knows of the next {steps['future']} values (a lower bound, ± two standard errors), and the "
        f"most that any memory of the last {steps['past']} values could know that holds as many bits of them, for a "
        "Gaussian process with the covariances of the data: an estimate, its bias taken off. A point without noise "
        "lies at the right edge."
    )
    words += "".join(
        f" {block_title(name).capitalize()}: {note}." for name, one in points.items() for note in one["notes"]
    )
    columns = {
        "of the past, at most (bits)": "past",
        "of the future, at least (bits)": "future",
        "± standard error": "stderr",
    }
    table = tabulate(
        "Under the bottleneck curve", points, columns | {"the curve (bits)": "bound", "efficiency": "efficiency"}
    )
    return [Picture(save(memory_figures.bottleneck(points), folder / "bottleneck.png"), words), table]


def _by_answer(memory: Results, folder: pathlib.Path) -> list[Block]:
    tables = {name: block["by_answer"] for name, block in memory["blocks"].items() if block["by_answer"]}
    if not tables:
        return []
    first = next(iter(tables.values()))
    words = (
        f"{len(first['answers'])} answers are read from one state. Of the next {first['steps']} values of each by "
        f"itself it knows at least so many bits. {OVERLAPS}"
    )
    words += "".join(
        f" {block_title(name).capitalize()}: {note}." for name, one in tables.items() for note in one["notes"]
    )
    picture = Picture(save(memory_figures.by_answer(tables), folder / "answers.png"), TELLS)
    return [Paragraph(words), _answer_table(tables), picture, *_component_tables(tables)]


def _answer_table(tables: dict[str, Results]) -> Table:
    columns = ("block", "answer", "known (bits)", "± standard error", "of (bits)", "private components")
    rows: list[tuple[Cell, ...]] = []
    for name, one in tables.items():
        title, known, parts = block_title(name), one["known"], one["components"]
        of = known["bits"] if known else [None] * len(one["answers"])
        rows += [
            (title, *row) for row in zip(one["answers"], one["bits"], one["stderr"], of, parts["private"], strict=True)
        ]
        for key, words in (("together", "all together"), ("overlap", "sum less together")):
            rows.append((title, words, one[key]["bits"], one[key]["stderr"], known[key] if known else None, None))
    return Table("What the state knows of each answer", columns, tuple(rows))


def _component_tables(tables: dict[str, Results]) -> list[Block]:
    """What each component tells of each answer, of blocks that have few of them; of others how many are shared."""
    blocks: list[Block] = []
    for name, one in tables.items():
        parts, title = one["components"], block_title(name).capitalize()
        count = len(parts["bits"])
        blocks.append(
            Paragraph(
                f"{title}: of {count:,} components {parts['shared']:,} tell of several answers, "
                f"{sum(parts['private']):,} of one, {parts['silent']:,} of none by itself."
            )
        )
        if count > LISTED:
            continue
        columns = ("component", *(cell for answer in one["answers"] for cell in (answer, "±")), "tells of")
        rows = tuple(
            (index, *(cell for pair in zip(bits, error, strict=True) for cell in pair), " and ".join(told) or "none")
            for index, (bits, error, told) in enumerate(
                zip(parts["bits"], parts["stderr"], parts["tells"], strict=True)
            )
        )
        blocks.append(Table(f"{title}: what each component tells of each answer (bits, estimates)", columns, rows))
    return blocks


def _processing(memory: Results) -> Block:
    rows = tuple(
        (f"{block_title(name)}: state to decoder", block["verdict"]["status"], block["verdict"]["reason"])
        for name, block in memory["blocks"].items()
        if block["verdict"]
    )
    if not rows:
        return Paragraph(
            "Data processing: nothing here has an upper bound that a decoder could break, for no state has noise, and "
            "no compression was applied."
        )
    return Table(
        "Data processing: nothing that is made of a state may know more than it", ("chain", "verdict", "why"), rows
    )
