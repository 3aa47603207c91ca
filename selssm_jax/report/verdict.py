"""The verdict in one paragraph: on a run its score in words, what it remembers, whether it certainly forgets, and what
it takes; on a compression its price.
"""

import math

from selssm_jax.analysis.results import Results
from selssm_jax.config.mixers import NONE
from selssm_jax.report.memory_section import describe_horizon
from selssm_jax.report.stability_section import is_useful
from selssm_jax.report.tables import block_title, number, size
from selssm_jax.tasks.scores import is_better, meaning_of

OF_POINTS = "mae"  # by which the median of quantiles stands beside a forecast that has none
OPTIMUM = "optimal"  # of the baselines: what a perfect model scores, and no rival
RIVALS = {
    "repeat last": "repeating the last value",
    "ridge": "ridge regression",
    "ridge by channel": "ridge regression by channel",
    "zero": "forecasting 0",
    "majority class": "always naming the commonest class",
    "unigram entropy": "the frequencies of single tokens",
    "bigram entropy": "the frequencies of pairs of tokens",
    "uniform guess": "guessing",
}
# after the name of a split
SEEN = {"trained": ", data that it was trained on", "chosen": ", by which its parameters were chosen", None: ""}
FLOOR = 0.03  # that is advised: it costs the quickstart nothing


def verdict(results: Results) -> str:
    """Returns the paragraph that stands on top of a report and on the terminal."""
    parts = (_score(results), _memory(results), _forgetting(results), _cost(results), f"Command: {results['command']}")
    return " ".join(parts)


def verdict_on_compression(results: Results) -> str:
    """Returns the paragraph that stands on top of the report of a compression and on the terminal: bytes, what they
    cost in score, when they pay.
    """
    parts = (
        _bytes(results),
        _price(results),
        _pays(results),
        _compressed_in(results),
        f"Command: {results['command']}",
    )
    return " ".join(parts)


def verdict_on_removal(results: Results) -> str:
    """Returns the paragraph that stands on top of the report of a run without parts of its blocks: what went, what that
    cost in score, and what it saves.
    """
    removal, carried = results["removal"], results["carried_bytes"]
    whole, last = removal["remainders"][0], removal["remainders"][-1]
    went = ", ".join(block_title(name) for name in last["gone"])
    tuned = "fine-tuned afterwards" if results["compressed"]["tuned"] else "not fine-tuned"
    saved = (
        f"Carried bytes of one sequence: {carried['before']:,} to {carried['after']:,}; parameters: "
        f"{whole['parameters']:,} to {last['parameters']:,}; time of a step: {last['decode_share']:.0%} of the whole "
        "model's."
    )
    words = (f"Without {went}, {tuned}.", _price(results), saved, _compressed_in(results))
    return " ".join([*words, f"Command: {results['command']}"])


def _bytes(results: Results) -> str:
    before, after, carried = results["reference"]["bytes"], results["compressed"], results["carried_bytes"]
    table = f" and a table of {after['table_bytes']:,} for all sequences"
    words = (
        f"{'Memory' if results['scope'] == 'all' else 'States of the mixers'} of one sequence: {before:,} bytes to "
        f"{after['bytes']:,}{table}"
    )
    return words + (
        "."
        if results["scope"] == "all"
        else f"; all that is carried: {carried['before']:,} bytes to {carried['after']:,}."
    )


def _price(results: Results) -> str:
    """The score after fine-tuning, beside that of the run before."""
    metric, split = results["metric"], results["split"]
    before, after = (results[name]["test"][metric] for name in ("reference", "compressed"))
    if not math.isfinite(after):
        return f"The {metric} on the {split} split is not a finite number: the compressed run is of no use."
    return (
        f"{_format(metric, after)} on the {split} split, {_compare(metric, after, before)} the run before "
        f"({_format(metric, before, name=False)})."
    )


def _pays(results: Results) -> str:
    """From how many sequences on it is any fewer bytes, and how many times fewer for as many as were meant, and for
    one; the table counted.
    """
    before, after, meant = results["reference"]["bytes"], results["compressed"], results["sequences"]
    if after["pays_from"] is None:
        return "It never pays: no number of sequences takes fewer bytes than before."
    alone = before / (after["bytes"] + after["table_bytes"])
    at = (
        "any number of sequences" if after["pays_from"] == 1 else f"{after['pays_from']:,} sequences carried at once on"
    )
    times = f"{_times(after['factor'])} times fewer bytes for {meant:,} of them" + (
        f", {_times(alone)} times for one" if meant > 1 else ""
    )
    return f"It pays {'for' if after['pays_from'] == 1 else 'from'} {at}: {times}."


def _times(factor: float) -> str:
    return f"{factor:,.1f}" if factor >= 1 else number(factor)


def _compressed_in(results: Results) -> str:
    return (
        "Compressed in "
        f"{_duration(results['seconds'])}{', counted since it was resumed' if results['resumed'] else ''}."
    )


def _score(results: Results) -> str:
    """The score of the split beside the best simple baseline."""
    metric = results["primary"]
    score = results["metrics"].get(metric)
    if score is None:
        return f"The {metric} on the {results['split']} split is not a finite number: the parameters are of no use."
    words = f"{_format(metric, score)} on the {results['split']} split{SEEN[results['seen']]}"
    rivals = _find_rivals(results, metric)
    if not rivals and (rivals := _find_rivals(results, OF_POINTS)):  # baselines have no quantiles
        metric, score = OF_POINTS, results["metrics"][OF_POINTS]
        words = f"{words}; {_format(metric, score)}"
    if not rivals:
        return f"{words}; there is no simple baseline to hold it against."
    best = next(iter(rivals))
    for name, value in rivals.items():
        best = name if is_better(metric, value, rivals[best]) else best
    return (
        f"{words}, {_compare(metric, score, rivals[best])} {RIVALS.get(best, best)} "
        f"({_format(metric, rivals[best], name=False)}), the best simple baseline."
    )


def _find_rivals(results: Results, metric: str) -> dict[str, float]:
    """The scores of the simple baselines that have one."""
    scores = {name: values.get(metric) for name, values in results["baselines"].items() if name != OPTIMUM}
    return {name: score for name, score in scores.items() if score is not None}


def _compare(metric: str, score: float, rival: float) -> str:
    """How the score stands to the rival's: in percent of an error, in points of a share."""
    if score == rival:
        return "just as good as"
    better = "better" if is_better(metric, score, rival) else "worse"
    if meaning_of(metric).share:
        return f"{number(100 * abs(score - rival))} points {better} than"
    if rival == 0:
        return f"{better} than"
    percent = 100 * abs(score - rival) / abs(rival)
    return f"{percent:.0f} % {better} than" if 0.5 <= percent < 1000 else f"{number(percent)} % {better} than"


def _format(metric: str, value: float, *, name: bool = True) -> str:
    text = f"{number(100 * value)} %" if meaning_of(metric).share else number(value)
    return f"{metric} {text}" if name else text


def _memory(results: Results) -> str:
    if "memory" not in results:
        return "What it remembers was not measured: add --measure."
    blocks, answers = results["memory"]["blocks"], results["memory"]["answers"]
    best, retention = max(
        ((name, block["retention"]) for name, block in blocks.items()), key=lambda one: max(one[1]["lower"])
    )
    place = max(range(len(retention["lags"])), key=lambda k: retention["lower"][k])
    if retention["lower"][place] <= 2 * retention["stderr"][place]:
        words = "It remembers nothing that decoders find"
    else:
        lag = retention["lags"][place]
        known = (
            f"{retention['lower'][place]:.2f} ± {retention['stderr'][place]:.2f} bits of the input {lag:,} "
            f"step{'s' if lag != 1 else ''} ago"
        )
        furthest = max(blocks.values(), key=lambda block: -1 if block["horizon"] is None else block["horizon"])
        words = (
            f"It remembers at least {known} ({block_title(best)}), and something of inputs "
            f"{describe_horizon(furthest)} steps back"
        )
    if answers:
        held = max((answers["model"], answers["decoder"]), key=lambda one: one["bits"])
        words += f"; of the {number(answers['entropy'])} bits asked for at least {number(held['bits'])}"
    return f"{words}."


def _forgetting(results: Results) -> str:
    """Whether every block is certified at a rate that is of use, and what to set where one is not."""
    blocks = results["stability"]
    missing = [name for name, block in blocks.items() if not is_useful(block)]
    if not missing:
        longest = max(block["horizon"] for block in blocks.values())
        return (
            "It certainly forgets: two states of a block that read the same inputs meet, to a thousandth, within "
            f"{longest:,.0f} steps."
        )
    which = "" if len(missing) == len(blocks) else f" ({', '.join(map(block_title, missing))})"
    rates = [blocks[name]["step"]["rate"] for name in missing]
    slowly = all(rate is not None and rate < 1 for rate in rates)
    claim = "It is certain to forget, but at no useful rate" if slowly else "It is not certain to forget"
    return f"{claim}{which}: {_advice(results['config']['model'], list(blocks), missing)}."


def _advice(model: Results, blocks: list[str], missing: list[str]) -> str:
    of_blocks = dict(zip(blocks, (mixer for mixer in model["pattern"] if mixer != NONE), strict=True))
    mixers = sorted({of_blocks[name] for name in missing})
    if mixers == ["kalman"] and model.get("kalman", {}).get("sampled"):
        return (
            "the noise of samples has no bound, so neither has what they owe to their variance; with "
            "model.kalman.sampled=False it is certified"
        )
    if mixers != ["selective"]:
        return (
            f"of {' and '.join(mixers)} no useful rate is certified; selective blocks with a "
            "model.selective.gate_floor have one"
        )
    layer = model["selective"]
    if layer["update"] == "retain" and not layer["gate_floor"]:
        return (
            "gates may shut, or as good as shut, for as long as they like; train with "
            f"model.selective.gate_floor={FLOOR}"
            + (" and model.selective.certified=True" if layer["gate_state"] != "none" else "")
        )
    return (
        "train with model.selective.certified=True"
        if not layer["certified"]
        else f"raise model.selective.gate_floor={layer['gate_floor']}"
    )


def _cost(results: Results) -> str:
    seconds = results["training_seconds"]
    trained = "training time not recorded" if seconds is None else f"trained in {_duration(seconds)}"
    return (
        f"State of one sequence: {size(results['costs']['state_bytes'])}; {trained}, this report in "
        f"{_duration(results['seconds'])}."
    )


def _duration(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 120
        else f"{seconds / 60:.0f} minutes"
        if seconds < 7200
        else f"{seconds / 3600:.1f} hours"
    )
