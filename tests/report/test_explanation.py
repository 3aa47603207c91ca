"""Why it said so: what the page shows, of every kind of data, and a browser that points at it."""

import json
import re
import shutil

import pytest

import runs
from selssm_jax.analysis import explanation
from selssm_jax.errors import InputError
from selssm_jax.report import explanation_section
from selssm_jax.report.document import to_html
from selssm_jax.report.relevance_block import Relevances, first_shown
from selssm_jax.runs import open_run
from selssm_jax.training import loop
from small_runs import write_files

BROWSER = next((path for name in ("chromium", "google-chrome", "chrome") if (path := shutil.which(name))), None)
STEPS = {"training__steps": 2, "training__eval_every": 2, "training__checkpoint_every": 2, "optimizer__warmup_steps": 1}
LAYERS = {"model__pattern": ("selective", "gru"), "model__mlp_ratio": 0.0, "model__d_model": 8, "model__d_state": 6}
NASTY = '</script><b>"&'


@pytest.fixture(scope="module")
def places(tmp_path_factory):
    """Folders of small runs on a text, a table and signals."""
    folder = tmp_path_factory.mktemp("explained")
    sources = {}
    for name, data in write_files(folder).items():
        given = {"source": name, "file": data.file, "batch_size": 4, "length": data.length}
        given |= {"horizon": 8} if name == "csv" else {}
        frames = {"model__frame": 4, "model__stride": 4} if name == "npz" else {}
        config = runs.experiment(**{f"data__{key}": value for key, value in given.items()}, **STEPS, **LAYERS, **frames)
        loop.fit(config, str(folder / name))
        sources[name] = folder / name
    return sources


@pytest.mark.parametrize(("source", "answers"), [("text", 16), ("csv", 8), ("npz", 2)])
def test_answers_and_inputs_of_every_kind_are_there(source, answers, places, tmp_path):
    run = open_run(places[source], split="test", override=["explain.examples=2"])
    found = explanation.explain_run(run, "test", None)
    assert len(found["examples"]) == 2 and set(found["attention"]) == {"block_0"}  # a GRU has none
    example = found["examples"][0]
    assert len(example["outputs"]) == len(example["numbers"]) == len(example["relevance"]) == answers
    inputs = example["pieces"] if source == "text" else example["curves"][0]
    assert {len(row) for row in example["relevance"]} == {len(inputs)}
    json.dumps(found, allow_nan=False)
    blocks = explanation_section.describe_explanation({"explanation": found}, tmp_path)
    page = to_html("title", blocks)
    assert page.count("data-o=") == 2 * answers and explanation_section.UNMEASURED in page
    assert "is owed most to" in blocks[1].markdown()


def test_bits_stand_beside_hidden_attention_where_they_were_measured(places, tmp_path):
    run = open_run(places["text"], split="test")
    bits = [2.0, 1.5, 1.0, 0.5, 0.25]
    memory = {"blocks": {"block_0": {"retention": {"lags": [0, 1, 2, 4, 8], "lower": bits}}}}
    found = explanation.explain_run(run, "test", memory)
    lags = found["lags"]["block_0"]
    assert lags["bits"] == bits and -1 <= lags["spearman"] <= 1
    page = to_html("title", explanation_section.describe_explanation({"explanation": found}, tmp_path))
    assert "Do they fade alike?" in page


def test_ranks_of_falling_curves_agree_and_few_lags_have_none():
    retention = {"lags": [0, 1, 2, 3, 50], "lower": [4.0, 3.0, 2.0, 1.0, 0.0]}
    assert explanation._compare_lags([8.0, 4.0, 2.0, 1.0], retention)["spearman"] == pytest.approx(1)
    assert explanation._compare_lags([8.0, 4.0], retention)["spearman"] is None


def test_a_channel_that_is_none_is_refused_before_work(places):
    run = open_run(places["csv"], split="test", override=["explain.channel=2"])
    with pytest.raises(InputError, match=r"explain\.channel=2 is no channel of the run: use a number from 0 to 1"):
        explanation.check_explanation(run)


def text_example():
    """Three tokens that break what is written carelessly, and three answers."""
    R = [[1.0, 0.0, 0.0], [0.5, -1.0, 0.0], [0.0, 0.25, 2.0]]
    names = ["a", NASTY, " "]
    return {
        "pieces": names,
        "steps": 3,
        "outputs": names,
        "truths": names,
        "numbers": [1.0, -0.5, 2.25],
        "relevance": R,
    }


def test_no_text_breaks_the_page():
    page = Relevances([text_example()], "words").html()
    assert NASTY not in page
    data = json.loads(re.search(r'<script type="application/json">(.*?)</script>', page)[1])
    assert data["outputs"][1] == repr(NASTY) and first_shown(text_example()) == 2
    assert "rgba(0,114,178,0.750)" in page  # without scripts the last answer is shown


@pytest.mark.skipif(BROWSER is None, reason="needs Chromium")
def test_pointing_at_an_answer_shows_its_inputs_and_back(tmp_path):
    """In a browser: by click, by keys, at the width of a phone, without an error on the console."""
    playwright = pytest.importorskip("playwright.sync_api")
    curves = {"curves": [[0.0, 1.0, -1.0]], "edges": [0, 2, 4, 6], "outputs": ["yes", "no"], "truths": ["no", "no"]}
    curves |= {"numbers": [1.0, 2.0], "relevance": [[0.0, -2.0, 1.0], [4.0, 0.0, 0.0]]}
    path = tmp_path / "page.html"
    path.write_text(to_html("title", [Relevances([text_example(), curves], "words")]))
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=BROWSER, args=["--no-sandbox"])
        page = browser.new_page(viewport={"width": 390, "height": 800})
        said: list[str] = []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.goto(path.as_uri())
        text, signal = page.locator("figure.why").nth(0), page.locator("figure.why").nth(1)
        grounds = lambda: [  # noqa: E731
            text.locator("[data-i]").nth(place).evaluate("e => getComputedStyle(e).backgroundColor")
            for place in range(3)
        ]
        text.locator("[data-o]").nth(1).click()
        assert grounds()[0].startswith("rgba(0, 114, 178, 0.37")  # half as much as the second has against it
        assert grounds()[1:] == ["rgba(213, 94, 0, 0.75)", "rgba(0, 114, 178, 0)"]
        assert "is owed most to" in text.locator(".said").text_content()
        page.keyboard.press("ArrowRight")
        assert text.locator("[data-o]").nth(2).get_attribute("aria-selected") == "true"
        assert grounds()[2] == "rgba(0, 114, 178, 0.75)"
        text.locator("[data-i]").nth(0).click()
        assert "goes most into" in text.locator(".said").text_content()
        signal.locator("[data-o]").nth(1).click()
        assert "steps 0 to 1 +4.00" in signal.locator(".said").text_content()
        assert page.evaluate("document.documentElement.scrollWidth") <= 390
        browser.close()
    assert said == []


def test_a_report_without_a_question_has_no_section(tmp_path):
    assert explanation_section.describe_explanation({}, tmp_path) == []
