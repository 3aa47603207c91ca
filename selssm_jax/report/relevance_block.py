"""Which inputs an answer is owed to, to be explored: pointing at an answer colours the inputs by what they have in it,
pointing at an input colours the answers that it went into. One block of plain HTML, CSS and JavaScript, without
any network; without scripts it shows one answer.
"""

import dataclasses
import itertools
import json
import string
from collections.abc import Sequence

import numpy as np

from selssm_jax.analysis.results import Results
from selssm_jax.report.tables import escape_html, escape_markdown, number

WIDTH, HEIGHT = 720, 120  # of a curve, in its own units
SHOWN = 5  # inputs that Markdown and the line below name
POSITIVE, NEGATIVE = "0,114,178", "213,94,0"  # blue for, orange against
DEEPEST = 0.75  # of a ground, on which black letters are still read
STYLE = """
.why .list { display: flex; flex-wrap: wrap; gap: 2px; margin: .3rem 0; }
.why [role=option] { border: 1px solid #d5d5d5; border-radius: 3px; padding: .15em .3em; font: inherit; color: #000;
  background: #fff; cursor: pointer; min-width: 1.1em; text-align: center; white-space: pre; }
.why .text { gap: 0; line-height: 1.9; display: block; overflow-wrap: anywhere; }
.why .text [role=option] { border: 0; border-bottom: 1px solid #ddd; padding: .1em 0; border-radius: 0;
  white-space: pre-wrap; display: inline; }
.why [aria-selected=true] { outline: 2.5px solid #000; outline-offset: 1px; }
.why rect[aria-selected=true] { outline: none; stroke: #000; stroke-width: 1.5; }
.why svg { width: 100%; height: auto; border: 1px solid #ddd; touch-action: manipulation; }
.why rect { cursor: pointer; }
.why .label { font-weight: 600; font-size: .93rem; margin: .8rem 0 0; }
.why .said { min-height: 3.2em; background: #f6f6f4; padding: .5rem .7rem; font-size: .93rem; max-width: none; }
"""
SCRIPT = string.Template("""
document.querySelectorAll("figure.why").forEach(function (figure) {
  var data = JSON.parse(figure.querySelector("script").textContent), R = data.relevance;
  var outs = Array.from(figure.querySelectorAll("[data-o]")), ins = Array.from(figure.querySelectorAll("[data-i]"));
  var said = figure.querySelector(".said"), pinned = null;
  function tint(element, share) {
    var depth = ($deepest * Math.min(Math.abs(share), 1)).toFixed(3);
    var colour = "rgba(" + (share < 0 ? "$negative" : "$positive") + "," + depth + ")";
    if (element.tagName === "rect") element.style.fill = colour; else element.style.background = colour;
  }
  function paint(elements, values) {
    var most = Math.max.apply(null, values.map(Math.abs)) || 1;
    elements.forEach(function (element, place) { tint(element, values[place] / most); });
  }
  function show(value) { return (value < 0 ? "\\u2212" : "+") + Math.abs(value).toPrecision(3); }
  function best(values, names) {
    return values.map(function (value, place) { return [value, place]; })
      .sort(function (a, b) { return Math.abs(b[0]) - Math.abs(a[0]); }).slice(0, $shown)
      .filter(function (pair) { return pair[0] !== 0; })
      .map(function (pair) { return names[pair[1]] + " " + show(pair[0]); }).join(", ") || "nothing";
  }
  function select(kind, place) {
    var values = kind === "o" ? R[place] : R.map(function (row) { return row[place]; });
    outs.forEach(function (e, k) { e.setAttribute("aria-selected", kind === "o" && k === place); });
    ins.forEach(function (e, k) { e.setAttribute("aria-selected", kind === "i" && k === place); });
    if (kind === "o") {
      outs.forEach(function (e) { tint(e, 0); });
      paint(ins, values);
      var sum = values.reduce(function (a, b) { return a + b; }, 0);
      said.textContent = data.outputs[place] + " (" + data.numbers[place] + ") is owed most to " +
        best(values, data.inputs) + ". All inputs together: " + show(sum) + ".";
    } else {
      ins.forEach(function (e) { tint(e, 0); });
      paint(outs, values);
      var sizes = values.map(Math.abs), given = 0, last = -1;
      var total = sizes.reduce(function (a, b) { return a + b; }, 0);
      sizes.some(function (size, k) { given += size; last = k; return given >= total / 2; });
      said.textContent = data.inputs[place] + " goes most into " + best(values, data.outputs) + "." +
        (total && data.ordered ? " Half of what it gives is given by " + data.outputs[last] + "." : "");
    }
  }
  function listen(elements, kind) {
    elements.forEach(function (element, place) {
      element.tabIndex = place ? -1 : 0;
      element.addEventListener("pointerenter", function (event) {
        if (event.pointerType === "mouse") select(kind, place);
      });
      element.addEventListener("focus", function () { select(kind, place); });
      element.addEventListener("click", function () { pinned = [kind, place]; select(kind, place); });
      element.addEventListener("keydown", function (event) {
        var step = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (event.key === "Enter" || event.key === " ") {
          event.preventDefault(); element.dispatchEvent(new Event("click"));
        }
        var goal = event.key === "Home" ? 0 : event.key === "End" ? elements.length - 1 : place + (step || 0);
        if (goal === place || !elements[goal]) return;
        event.preventDefault();
        element.tabIndex = -1; elements[goal].tabIndex = 0; elements[goal].focus(); pinned = [kind, goal];
      });
    });
  }
  listen(outs, "o"); listen(ins, "i");
  figure.addEventListener("pointerleave", function () { if (pinned) select(pinned[0], pinned[1]); });
  pinned = ["o", data.first]; select("o", data.first);
});
""").substitute(negative=NEGATIVE, positive=POSITIVE, deepest=DEEPEST, shown=SHOWN)


@dataclasses.dataclass(frozen=True)
class Relevances:
    """Sequences with their answers and the relevance of each input for each answer (`analysis.explanation`), under a
    caption.
    """

    examples: Sequence[Results]
    caption: str

    def markdown(self) -> str:
        """Returns what the first answer of every sequence is owed to: Markdown has no pointers."""
        lines = [f"- {escape_markdown(say(example, first_shown(example)))}" for example in self.examples]
        return "\n".join(lines) + f"\n\n*{escape_markdown(self.caption)} All answers are in index.html.*"

    def html(self) -> str:
        """Returns a figure for each sequence, and once the style and the script."""
        figures = "".join(_figure(example, place) for place, example in enumerate(self.examples))
        return f"<style>{STYLE}</style>{figures}<p>{escape_html(self.caption)}</p><script>{SCRIPT}</script>"


def first_shown(example: Results) -> int:
    """Returns the answer that is shown before anybody chooses: the last of tokens, the first of others."""
    return len(example["outputs"]) - 1 if "pieces" in example and len(example["outputs"]) > 1 else 0


def name_inputs(example: Results) -> list[str]:
    """Returns what each input is called."""
    if "pieces" in example:
        return [f"{piece!r} at step {step}" for step, piece in enumerate(example["pieces"])]
    stretches = itertools.pairwise(example["edges"])
    return [f"step {a}" if b - a == 1 else f"steps {a} to {b - 1}" for a, b in stretches]


def say(example: Results, place: int) -> str:
    """Returns in words what one answer is owed to most."""
    row, names = np.asarray(example["relevance"][place]), name_inputs(example)
    most = np.argsort(-np.abs(row), kind="stable")[:SHOWN]
    parts = ", ".join(f"{names[index]} {row[index]:+.3g}" for index in most if row[index])
    return (
        f"{example['outputs'][place]!r} ({number(example['numbers'][place])}) is owed most to {parts or 'nothing'}. "
        f"All inputs together: {row.sum():+.3g}."
    )


def _figure(example: Results, place: int) -> str:
    """One sequence: its answers, its inputs, what is said of the chosen one, and the data for the script."""
    first = first_shown(example)
    row = np.asarray(example["relevance"][first])
    shares = row / (np.abs(row).max() or 1)
    is_text = "pieces" in example
    answers = "".join(
        f'<button type="button" role="option" aria-selected="{str(k == first).lower()}" data-o="{k}" '
        f'title="{escape_html(f"right: {truth}")}">{escape_html(_visible(name))}</button>'
        for k, (name, truth) in enumerate(zip(example["outputs"], example["truths"], strict=True))
    )
    inputs = _draw_text(example["pieces"], shares) if is_text else _draw_curves(example["curves"], shares)
    data = {
        "relevance": example["relevance"],
        "numbers": example["numbers"],
        "outputs": [repr(name) for name in example["outputs"]],
        "inputs": name_inputs(example),
        "first": first,
        "ordered": is_text and len(example["outputs"]) > 1,
    }
    content = json.dumps(data, allow_nan=False).replace("<", "\\u003c").replace("&", "\\u0026")
    return (
        f'<figure class="why" aria-label="Sequence {place + 1}"><p class="label" id="why-o{place}">Answers</p>'
        f'<div class="list" role="listbox" aria-labelledby="why-o{place}">{answers}</div>'
        f'<p class="label" id="why-i{place}">Inputs</p>{inputs}'
        f'<p class="said" aria-live="polite">{escape_html(say(example, first))}</p>'
        f'<script type="application/json">{content}</script></figure>'
    )


def _visible(name: str) -> str:
    """A blank as a sign that can be seen."""
    return name if name.strip() else "␣" * max(len(name), 1)


def _draw_text(pieces: Sequence[str], shares: np.ndarray) -> str:
    spans = "".join(
        f'<span role="option" aria-selected="false" data-i="{step}" style="background:{_colour(share)}">'
        f"{escape_html(piece)}</span>"
        for step, (piece, share) in enumerate(zip(pieces, shares, strict=True))
    )
    return f'<div class="list text" role="listbox" aria-label="Inputs" dir="auto">{spans}</div>'


def _draw_curves(curves: Sequence[Sequence[float]], shares: np.ndarray) -> str:
    width = WIDTH / len(shares)
    rects = "".join(
        f'<rect role="option" aria-selected="false" aria-label="input {k}" data-i="{k}" x="{k * width:.2f}" y="0" '
        f'width="{width:.2f}" height="{HEIGHT}" style="fill:{_colour(share)}"></rect>'
        for k, share in enumerate(shares)
    )
    lines = "".join(_draw_line(np.asarray(curve), width) for curve in curves)
    return (
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="listbox" aria-label="Inputs" preserveAspectRatio="none">{rects}'
        f"{lines}</svg>"
    )


def _draw_line(curve: np.ndarray, width: float) -> str:
    low, high = float(curve.min()), float(curve.max())
    heights = HEIGHT - 6 - (curve - low) / ((high - low) or 1) * (HEIGHT - 12)
    points = " ".join(f"{(k + 0.5) * width:.2f},{height:.2f}" for k, height in enumerate(heights))
    return f'<polyline points="{points}" fill="none" stroke="#1a1a1a" stroke-width="1.3" pointer-events="none"/>'


def _colour(share: float) -> str:
    return f"rgba({NEGATIVE if share < 0 else POSITIVE},{DEEPEST * min(abs(float(share)), 1):.3f})"
