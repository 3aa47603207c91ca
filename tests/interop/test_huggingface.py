"""Checkpoints of transformers: the same logits and the same tokens, and nothing but an exact fit is taken."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runs import command
from selssm_jax.config import Model, Task
from selssm_jax.errors import InputError
from selssm_jax.interop import huggingface
from selssm_jax.model import SequenceModel

SIZES = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 40}
SETTINGS = {"mamba": {"time_step_rank": 3}, "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}}
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 21))
PROMPT = 9
MODELS = {
    "mamba": Model(pattern=("mamba",) * 2, d_model=8, d_state=3, mlp_ratio=0.0, tie_embeddings=True, task=Task(vocab=256)),
    "mamba2": Model(pattern=("mamba2",) * 2, d_model=8, d_state=3, heads=4, groups=2, mlp_ratio=0.0, task=Task(vocab=256)),
}
TEXT = "a gate says what to keep, née à côté\n" * 60


@pytest.fixture(scope="module", params=MODELS)
def made(request, tmp_path_factory):
    """(folder, configuration, parameters) of a checkpoint of ours."""
    folder, config = tmp_path_factory.mktemp("made") / request.param, MODELS[request.param]
    params = SequenceModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    huggingface.save(folder, config, params)
    return folder, config, params


@pytest.fixture
def copied(made, tmp_path):
    """Makes a copy of `made` with its tensors and settings changed: copied(change(tensors), key=value of config.json)."""

    def make(change=lambda tensors: tensors, **settings):
        save_file(change(load_file(made[0] / "model.safetensors")), tmp_path / "model.safetensors")
        found = json.loads((made[0] / "config.json").read_text())
        (tmp_path / "config.json").write_text(json.dumps(found | settings))
        return tmp_path

    return make


@pytest.fixture(scope="module")
def torch():
    return pytest.importorskip("torch")


@pytest.fixture(scope="module", params=["mamba", "mamba2"])
def pair(request, torch, tmp_path_factory):
    """(model of transformers with random weights, the folder that it was saved to)."""
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    kind = {"mamba": "Mamba", "mamba2": "Mamba2"}[request.param]
    torch.manual_seed(0)
    config = getattr(transformers, f"{kind}Config")(**SIZES, **SETTINGS[request.param])
    model = getattr(transformers, f"{kind}ForCausalLM")(config).eval()
    with torch.no_grad():
        for weight in model.parameters():  # away from ones and zeros, so that each of them matters
            weight += 0.4 * torch.randn_like(weight)
    folder = tmp_path_factory.mktemp("hub") / request.param
    model.save_pretrained(folder)
    return model, folder


def close(found, expected):
    """Within 1e-4 of the largest logit."""
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4 * np.abs(expected).max())


def test_logits_are_those_of_transformers(pair, torch):
    model, folder = pair
    config, params = huggingface.load(folder)
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    close(SequenceModel(config).apply({"params": params}, jnp.asarray(TOKENS))[0], expected)


def test_logits_from_a_carried_cache_are_those_of_transformers(pair, torch):
    """It reads a prompt, then token by token from its cache; ours reads the prompt, then the rest at once, and step by step."""
    model, folder = pair
    config, params = huggingface.load(folder)
    ours = SequenceModel(config)
    with torch.no_grad():
        seen = model(torch.tensor(TOKENS[:, :PROMPT]), use_cache=True)
        expected = [seen.logits.numpy()]
        for t in range(PROMPT, TOKENS.shape[1]):
            seen = model(torch.tensor(TOKENS[:, t : t + 1]), cache=seen.cache, use_cache=True)
            expected.append(seen.logits.numpy())
    first, state = ours.apply({"params": params}, jnp.asarray(TOKENS[:, :PROMPT]))
    rest, _ = ours.apply({"params": params}, jnp.asarray(TOKENS[:, PROMPT:]), state)
    close(np.concatenate([first, rest], axis=1), np.concatenate(expected, axis=1))
    stepped, _ = ours.apply({"params": params}, jnp.asarray(TOKENS[:, PROMPT]), state, method="step")
    close(stepped, expected[1][:, 0])


def test_fifty_greedy_tokens_are_those_of_transformers(pair, torch):
    model, folder = pair
    config, params = huggingface.load(folder)
    ours = SequenceModel(config)
    model.generation_config.eos_token_id = None
    prompt = torch.tensor(TOKENS[:1, :PROMPT])
    options = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}  # without the mask token 0 would be left out
    expected = model.generate(prompt, max_new_tokens=50, do_sample=False, **options).numpy()[0, PROMPT:]
    step = jax.jit(lambda token, state: ours.apply({"params": params}, token, state, method="step"))
    logits, state = ours.apply({"params": params}, jnp.asarray(TOKENS[:1, :PROMPT]))
    token, found = logits[:, -1].argmax(-1), []
    for _ in range(50):
        found.append(int(token[0]))
        logits, state = step(token, state)
        token = logits.argmax(-1)
    assert found == expected.tolist() and len(set(found)) > 1


def test_what_transformers_saved_goes_back_byte_for_byte(pair, tmp_path):
    _, folder = pair
    huggingface.save(tmp_path / "back", *huggingface.load(folder))
    before, after = (load_file(place / "model.safetensors") for place in (folder, tmp_path / "back"))
    assert before.keys() == after.keys() and all(before[key].tobytes() == after[key].tobytes() for key in before)


def test_transformers_reads_what_is_saved(made, torch):
    transformers = pytest.importorskip("transformers")
    folder, config, params = made
    model = transformers.AutoModelForCausalLM.from_pretrained(folder).eval()
    with torch.no_grad():
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    close(SequenceModel(config).apply({"params": params}, jnp.asarray(TOKENS))[0], expected)


def test_saved_and_loaded_is_the_same(made):
    folder, config, params = made
    found, again = huggingface.load(folder)
    assert jax.tree.all(jax.tree.map(np.array_equal, again, params))
    kept = ("pattern", "d_model", "d_state", "expand", "d_conv", "norm_epsilon", "tie_embeddings", "mlp_ratio", "task")
    assert {key: getattr(found, key) for key in kept} == {key: getattr(config, key) for key in kept}


def test_every_tensor_is_used_once(copied):
    with pytest.raises(InputError, match=r"1 missing: backbone\.layers\.1\.mixer\.D$"):
        huggingface.load(copied(lambda found: {key: value for key, value in found.items() if key != "backbone.layers.1.mixer.D"}))
    (copied() / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 left over: backbone\.layers\.7\.mixer\.D$"):
        huggingface.load(copied(lambda found: found | {"backbone.layers.7.mixer.D": np.ones(16, np.float32)}))


def test_shapes_must_fit(copied):
    with pytest.raises(InputError, match=r"backbone.layers.0.mixer.out_proj.weight has shape \(16, 8\), config.json asks for \(8, 16\)"):
        huggingface.load(copied(lambda found: found | {"backbone.layers.0.mixer.out_proj.weight": np.zeros((16, 8), np.float32)}))
    with pytest.raises(InputError, match=r"config.json asks for \(300, 8\)"):
        huggingface.load(copied(vocab_size=300))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_bias": True}, "use_bias=True, which is not supported: only False is"),
        ({"use_conv_bias": False}, "use_conv_bias=False"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', which is not supported: only 'silu' is"),
        ({"time_step_limit": [0.0, 0.1]}, "time_step_limit"),
        ({"norm_before_gate": True}, "norm_before_gate"),
        ({"mystery": 1}, "mystery=1, which is not known"),
        ({"model_type": "falcon_mamba"}, "model_type='falcon_mamba': known: mamba, mamba2"),
        ({"expand": 4, "intermediate_size": 16, "head_dim": 4}, "config.json has (intermediate_size|head_dim)="),
    ],
)
def test_settings_that_would_change_the_model_are_refused_by_name(copied, settings, words):
    with pytest.raises(InputError, match=words):
        huggingface.load(copied(**settings))


def test_settings_that_change_nothing_are_read(copied):
    folder = copied(time_step_limit=[0.0, {"__float__": "Infinity"}], residual_in_fp32=True, _name_or_path="somewhere", hidden_act="swish")
    assert huggingface.load(folder)[0].d_model == 8


def test_a_tied_readout_may_be_there_twice_but_not_differ(tmp_path):
    config = MODELS["mamba"]
    params = SequenceModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    weights = huggingface.tensors(config, params)
    embedding = weights["backbone.embeddings.weight"]
    huggingface.parameters(config, weights | {"lm_head.weight": embedding})
    with pytest.raises(InputError, match=r"lm_head.weight differs"):
        huggingface.parameters(config, weights | {"lm_head.weight": embedding + 1})


def test_pickles_are_refused(copied):
    folder = copied()
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(InputError, match="a pickle, which can run any code when it is opened"):
        huggingface.load(folder)


def test_several_files_and_other_precisions_are_read(made, tmp_path):
    found = load_file(made[0] / "model.safetensors")
    low = {key: jnp.asarray(value, jnp.bfloat16) for key, value in found.items()}
    names = sorted(low)
    parts = {"model-1.safetensors": names[::2], "model-2.safetensors": names[1::2]}
    for name, keys in parts.items():
        save_file({key: np.asarray(low[key]) for key in keys}, tmp_path / name)
    index = {"weight_map": {key: name for name, keys in parts.items() for key in keys}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    (tmp_path / "config.json").write_text((made[0] / "config.json").read_text())
    _, params = huggingface.load(tmp_path)
    np.testing.assert_array_equal(params["encoder"]["embedding"], low["backbone.embeddings.weight"].astype(jnp.float32))
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": dict.fromkeys(names, "../model-1.safetensors")}))
    with pytest.raises(InputError, match="expected files of the folder itself"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Model(pattern=("mamba", "mamba2"), mlp_ratio=0.0, task=Task(vocab=9)), "mixers of one kind"),
        (Model(pattern=("selective",), mlp_ratio=0.0, task=Task(vocab=9)), "mixers of one kind"),
        (Model(pattern=("mamba",), task=Task(vocab=9)), "model.mlp_ratio=2.0"),
        (Model(pattern=("mamba",) * 2, block_states=(2, 3), mlp_ratio=0.0, task=Task(vocab=9)), "one d_state of all blocks"),
        (Model(pattern=("mamba",), mlp_ratio=0.0), "language models"),
    ],
)
def test_models_without_a_place_in_the_layout_are_refused(config, words, tmp_path):
    with pytest.raises(InputError, match=words):
        huggingface.save(tmp_path, config, {})


def test_an_imported_folder_is_a_run_that_reads_bytes(tmp_path):
    config = MODELS["mamba"]
    params = SequenceModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    huggingface.save(tmp_path / "hub", config, params)
    text = tmp_path / "text.txt"
    text.write_text(TEXT)
    run = tmp_path / "run"
    huggingface.main([str(tmp_path / "hub"), "--workdir", str(run), "--length", "16", "--batch_size", "4"])
    assert command("eval.py", f"--workdir={run}") == 2  # no text was given
    assert command("eval.py", f"--workdir={run}", f"--file={text}") == 0
    results = json.loads((run / "report-text" / "results.json").read_text())
    test = np.frombuffer(TEXT.encode(), np.uint8)[int(0.9 * len(TEXT.encode())) :]
    logits = SequenceModel(config).apply({"params": params}, jnp.asarray(test[None, :-1], jnp.int32))[0]
    nats = -jnp.take_along_axis(jax.nn.log_softmax(logits[0]), jnp.asarray(test[1:, None], jnp.int32), axis=1).mean()
    assert results["metrics"]["nats"] == pytest.approx(float(nats), abs=0.05)  # rows of a batch begin with an empty memory


@pytest.mark.parametrize(("tokens", "level"), [({"a": 0, "b": 1, "é": 2}, "character"), ({"a": 0, "ab": 1}, "subword")])
def test_a_tokenizer_says_what_tokens_mean(tmp_path, tokens, level):
    content = {"model": {"vocab": tokens}, "added_tokens": [{"id": 3, "content": "<end>", "special": True}]}
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    found = huggingface.vocabulary_of(tmp_path, 5)
    assert found["level"] == level and found["vocabulary"][3:] == ["<end>", "<4>"] and found["vocabulary"][0] == "a"


def test_tokens_without_a_meaning_are_refused(tmp_path):
    with pytest.raises(InputError, match=r"no tokenizer.json, and a vocabulary of 40 tokens is too small for bytes"):
        huggingface.vocabulary_of(tmp_path, 40)


def test_mistakes_of_the_command_are_one_message(tmp_path, capsys):
    with pytest.raises(SystemExit) as stop:
        huggingface.main([str(tmp_path / "nowhere"), "--workdir", str(tmp_path / "run")])
    assert stop.value.code == 2 and "is no folder: give a local one" in capsys.readouterr().err
