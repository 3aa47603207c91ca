"""Checkpoints of transformers: the same logits and the same tokens, and nothing but an exact fit is taken."""

import json
import math
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from runs import command
from selssm_jax.config import Mamba2Config, Model, Task
from selssm_jax.data import vocabulary
from selssm_jax.errors import InputError
from selssm_jax.interop import huggingface
from selssm_jax.model import SequenceModel

SIZES = {"hidden_size": 16, "state_size": 4, "num_hidden_layers": 2, "vocab_size": 40}
SETTINGS = {"mamba": {"time_step_rank": 3}, "mamba2": {"num_heads": 4, "head_dim": 8, "n_groups": 2, "chunk_size": 4}}
TOKENS = np.random.default_rng(0).integers(0, 40, (2, 21))
PROMPT = 9
MODELS = {
    "mamba": Model(
        pattern=("mamba",) * 2, d_model=8, d_state=3, mlp_ratio=0.0, tie_embeddings=True, task=Task(vocab=256)
    ),
    "mamba2": Model(
        pattern=("mamba2",) * 2,
        d_model=8,
        d_state=3,
        mamba2=Mamba2Config(heads=4, groups=2),
        mlp_ratio=0.0,
        task=Task(vocab=256),
    ),
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
    """Makes a copy of `made` with its tensors and settings changed: copied(change(tensors), key=value of
    config.json).
    """

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
    """It reads a prompt, then token by token from its cache; ours reads the prompt, then the rest at once, and step by
    step.
    """
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
    # without the mask token 0 would be left out
    options = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0}
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
    own, expected = ({**model.blocks[0].arguments(model.pattern[0]), "dt_rank": None} for model in (found, config))
    assert own == expected
    kept = ("pattern", "norm_epsilon", "tie_embeddings", "mlp_ratio", "task")
    assert {key: getattr(found, key) for key in kept} == {key: getattr(config, key) for key in kept}


def test_every_tensor_is_used_once(copied):
    with pytest.raises(InputError, match=r"1 missing: backbone\.layers\.1\.mixer\.D$"):
        huggingface.load(
            copied(lambda found: {key: value for key, value in found.items() if key != "backbone.layers.1.mixer.D"})
        )
    (copied() / "model.safetensors").unlink()
    with pytest.raises(InputError, match=r"1 left over: backbone\.layers\.7\.mixer\.D$"):
        huggingface.load(copied(lambda found: found | {"backbone.layers.7.mixer.D": np.ones(16, np.float32)}))


def test_shapes_must_fit(copied):
    with pytest.raises(
        InputError, match=r"backbone.layers.0.mixer.out_proj.weight has shape \(16, 8\), config.json asks for \(8, 16\)"
    ):
        huggingface.load(
            copied(lambda found: found | {"backbone.layers.0.mixer.out_proj.weight": np.zeros((16, 8), np.float32)})
        )
    with pytest.raises(InputError, match=r"config.json asks for \(300, 8\)"):
        huggingface.load(copied(vocab_size=300))


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"use_bias": True}, r"4 missing: backbone\.layers\.0\.mixer\.in_proj\.bias, .*out_proj\.bias"),
        ({"use_conv_bias": False}, r"2 left over: backbone\.layers\.0\.mixer\.conv1d\.bias"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu', which is not supported: only 'silu' is"),
        (
            {"time_step_limit": [0.1, 0.0]},
            r"time_step_limit=\[0.1, 0.0\], expected the smallest and the largest step size",
        ),
        ({"time_step_limit": 3}, "time_step_limit=3, expected"),
        ({"quantization_config": {"load_in_8bit": True}}, "quantization_config=.*not supported"),
        ({"hidden_size": "8"}, "hidden_size='8', expected a whole number"),
        ({"state_size": [3]}, r"state_size=\[3\], expected a whole number"),
        ({"vocab_size": 10**12}, "vocab_size=1000000000000, expected a whole number from 1 to 2147483647"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers=1000000000, but there are tensors of 2 layers"),
        ({"use_conv_bias": "yes"}, "use_conv_bias='yes', expected true or false"),
        ({"layer_norm_epsilon": 0.0}, "layer_norm_epsilon=0.0, expected a positive number"),
        ({"mystery": 1}, "mystery=1, which is not known"),
        ({"model_type": "bamba"}, "model_type='bamba': did you mean 'mamba'.*known: falcon_mamba, mamba, mamba2"),
        ({"expand": 4, "intermediate_size": 16, "head_dim": 4}, "config.json has (intermediate_size|head_dim)="),
    ],
)
def test_settings_that_would_change_the_model_are_refused_by_name(copied, settings, words):
    with pytest.raises(InputError, match=words):
        huggingface.load(copied(**settings))


def test_settings_that_change_nothing_are_read(copied):
    folder = copied(
        time_step_limit=[0.0, {"__float__": "Infinity"}],
        residual_in_fp32=True,
        _name_or_path="somewhere",
        hidden_act="swish",
    )
    assert huggingface.load(folder)[0].d_model == 8


CODESTRAL = {  # mistralai/Mamba-Codestral-7B-v0.1 but for its sizes
    **{
        "architectures": ["Mamba2ForCausalLM"],
        "bos_token_id": 0,
        "chunk_size": 256,
        "conv_kernel": 4,
        "eos_token_id": 0,
        "expand": 2,
        "head_dim": 8,
    },
    **{
        "hidden_act": "silu",
        "hidden_size": 16,
        "initializer_range": 0.1,
        "intermediate_size": 32,
        "layer_norm_epsilon": 1e-5,
        "model_type": "mamba2",
    },
    **{
        "n_groups": 2,
        "norm_before_gate": True,
        "num_heads": 4,
        "num_hidden_layers": 2,
        "pad_token_id": 0,
        "rescale_prenorm_residual": False,
    },
    **{
        "residual_in_fp32": True,
        "rms_norm": True,
        "state_size": 4,
        "tie_word_embeddings": False,
        "time_step_floor": 1e-4,
        "time_step_init_scheme": "random",
    },
    **{
        "time_step_limit": [0.0, math.inf],
        "time_step_max": 0.1,
        "time_step_min": 0.001,
        "time_step_rank": 1,
        "time_step_scale": 1.0,
    },
    **{"torch_dtype": "bfloat16", "use_bias": False, "use_cache": True, "use_conv_bias": True, "vocab_size": 40},
}


def test_the_configuration_of_codestral_is_read():
    config = huggingface.model_config(CODESTRAL)
    layer = config.mamba2
    assert (config.pattern, layer.heads, layer.groups, config.tie_embeddings, layer.dt_limit) == (
        ("mamba2",) * 2,
        4,
        2,
        False,
        (),
    )


@pytest.mark.parametrize("kind", ["mamba", "falcon_mamba", "mamba2"])
def test_keys_that_are_left_out_are_those_of_their_class(kind):
    """`save_pretrained` leaves out what is at its default."""
    transformers = pytest.importorskip("transformers")
    theirs = {"mamba": "Mamba", "falcon_mamba": "FalconMamba", "mamba2": "Mamba2"}[kind]
    full = getattr(transformers, f"{theirs}Config")().to_dict()
    ours = {key: value for key, value in (huggingface.DEFAULTS | huggingface.KINDS[kind][3]).items() if key in full}
    ours.pop("time_step_rank")  # "auto", which their class resolves
    assert {key: list(full[key]) if key == "time_step_limit" else full[key] for key in ours} == ours
    assert huggingface.model_config({"model_type": kind}) == huggingface.model_config(full)
    assert (
        huggingface.model_config(
            {"model_type": kind, "id2label": {"0": "a"}, "tie_encoder_decoder": False, "top_k": 50}
        ).d_model
        == full["hidden_size"]
    )


VARIANTS = {
    "Mamba": {"time_step_rank": 3, "use_bias": True, "use_conv_bias": False},
    "Mamba2": SETTINGS["mamba2"] | {"use_bias": True, "use_conv_bias": False, "time_step_limit": (0.05, 0.3)},
    "FalconMamba": {"time_step_rank": 3, "mixer_rms_eps": 1e-3},
}


@pytest.mark.parametrize("kind", VARIANTS)
def test_biases_limits_and_norms_are_those_of_transformers_and_go_back(kind, torch, tmp_path):
    transformers = pytest.importorskip("transformers")
    transformers.logging.disable_progress_bar()
    torch.manual_seed(0)
    model = getattr(transformers, f"{kind}ForCausalLM")(
        getattr(transformers, f"{kind}Config")(**SIZES, **VARIANTS[kind])
    ).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight += 0.4 * torch.randn_like(weight)
        expected = model(torch.tensor(TOKENS)).logits.numpy()
    model.save_pretrained(tmp_path / "hub")
    config, params = huggingface.load(tmp_path / "hub")
    ours = SequenceModel(config)
    read = jax.jit(lambda tokens, state: ours.apply({"params": params}, tokens, state))
    close(read(jnp.asarray(TOKENS), None)[0], expected)
    first, state = ours.apply({"params": params}, jnp.asarray(TOKENS[:, :PROMPT]))
    close(
        np.concatenate([first, ours.apply({"params": params}, jnp.asarray(TOKENS[:, PROMPT:]), state)[0]], axis=1),
        expected,
    )
    huggingface.save(tmp_path / "back", config, params)
    before, after = (load_file(tmp_path / place / "model.safetensors") for place in ("hub", "back"))
    assert before.keys() == after.keys() and all(before[key].tobytes() == after[key].tobytes() for key in before)
    assert huggingface.load(tmp_path / "back")[0] == config


@pytest.mark.parametrize(
    ("value", "words"), [(np.nan, r"mixer\.D holds 1 of 16 numbers that are not finite"), (np.inf, "1 of 16 numbers")]
)
def test_weights_that_are_no_numbers_are_refused_on_both_ways(copied, made, value, words, tmp_path):
    key = "backbone.layers.1.mixer.D" if made[1].pattern[0] == "mamba" else "backbone.layers.1.mixer.norm.weight"
    spoil = lambda weights: weights | {key: np.where(np.arange(16) == 3, np.float32(value), weights[key])}  # noqa: E731
    with pytest.raises(InputError, match=words.replace(r"mixer\.D", key.removeprefix("backbone.layers.1."))):
        huggingface.load(copied(spoil))
    with pytest.raises(InputError, match="is of type int8, expected floating-point"):
        huggingface.parameters(
            made[1], {key: value.astype(np.int8) for key, value in load_file(made[0] / "model.safetensors").items()}
        )
    params = {**made[2], "norm": {"scale": jnp.full(8, value)}}
    with pytest.raises(InputError, match="the parameter norm/scale holds 8 of 8 numbers"):
        huggingface.save(tmp_path / "new", made[1], params)


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("config.json", "[1, 2]", "config.json holds a list, expected an object"),
        ("model.safetensors.index.json", "[]", "index.json holds a list, expected an object"),
        ("model.safetensors.index.json", '{"weight_map": ["a"]}', "weight_map of .* holds a list, expected an object"),
        ("model.safetensors.index.json", '{"weight_map": {"a": 3}}', "weight_map of .* no names of files"),
        ("config.json", "[" * 100_000, "cannot be read as JSON"),
    ],
)
def test_lists_where_objects_belong_are_named(copied, name, content, words):
    folder = copied()
    if name != "config.json":
        (folder / "model.safetensors").unlink()
    (folder / name).write_text(content)
    with pytest.raises(InputError, match=words):
        huggingface.load(folder)


@pytest.mark.parametrize(
    "content",
    [
        [],
        {"model": []},
        {"model": {"vocab": 3}},
        {"model": {"vocab": {"a": "b"}}},
        {"added_tokens": {}},
        {"added_tokens": ["a"]},
    ],
)
def test_a_tokenizer_of_another_form_is_named(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(json.dumps(content))
    with pytest.raises(InputError, match="restore it"):
        huggingface.vocabulary_of(tmp_path, 5)


@pytest.mark.parametrize(
    "content",
    [
        {"model": {"type": "BPE", "vocab": {"a": 0, "b": 1, "ab": 2}, "merges": [["a", "c"]]}},
        {"model": {"type": "BPE", "vocab": {"aa": 0, "b": 1}, "merges": [["b", "a"]]}},
        {"model": {"type": "WordLevel", "vocab": {"ab": 0}, "unk_token": "<none>"}},
        {"model": {"type": "Unigram", "vocab": [["ab", -1.0], ["b", -2.0]], "unk_id": None}},
    ],
    ids=[
        "a token that is none",
        "a package that gives up",
        "unknown words without a token",
        "unknown characters without a token",
    ],
)
def test_whatever_a_tokenizer_says_of_a_file_of_another_form_is_named(tmp_path, content):
    pytest.importorskip("tokenizers")
    (tmp_path / "tokenizer.json").write_text(json.dumps({"version": "1.0", "added_tokens": [], **content}))
    known = huggingface.vocabulary_of(tmp_path, 5)
    assert known["level"] == "subword"
    with pytest.raises(InputError, match=r"tokenizer cannot be read .*restore tokenizer\.json"):
        vocabulary.tokenise("ab ab zz", known["level"], known["tokenizer"])


HUGE = 10**400  # JSON has numbers of any size
HOSTILE = [
    None,
    [],
    {},
    0,
    -1,
    3.5,
    "x",
    "",
    True,
    [[1]],
    {"a": {"b": []}},
    HUGE,
    math.nan,
    math.inf,
    2**31 - 1,
    {"__float__": []},
    {"__float__": "x"},
]


def places(value, path=()):
    """Paths to every part of a JSON value."""
    yield path
    for key, part in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from places(part, (*path, key))


def replaced(value, path, fresh):
    """A copy of a JSON value with another part at a path."""
    if not path:
        return fresh
    copied = dict(value) if isinstance(value, dict) else list(value)
    copied[path[0]] = replaced(value[path[0]], path[1:], fresh)
    return copied


def refusal(folder, name, content):
    """What refuses a checkpoint with a file of this content; empty where it is read."""
    (folder / name).write_text(json.dumps(content))
    try:
        huggingface.load(folder)
    except InputError as error:
        return str(error)
    return ""


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("architectures", {"__float__": []}),
        ("architectures", {"__float__": "x"}),
        ("layer_norm_epsilon", HUGE),
        ("time_step_limit", [0, HUGE]),
        ("n_groups", 3),
        ("conv_kernel", 2**31 - 1),
        ("num_hidden_layers", 1),
        ("use_bias", True),
    ],
)
def test_a_setting_of_another_form_names_its_file(key, value, tmp_path):
    config = MODELS["mamba2"]
    huggingface.save(
        tmp_path, config, SequenceModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    )
    assert "config.json" in refusal(
        tmp_path, "config.json", json.loads((tmp_path / "config.json").read_text()) | {key: value}
    )


@pytest.mark.parametrize("place", ["", "..", "nowhere", "config.json\0"])
def test_an_index_that_leads_elsewhere_names_its_file(place, tmp_path):
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": place}}))
    with pytest.raises(InputError, match=r"model\.safetensors\.index\.json names the file"):
        huggingface.load(tmp_path)


@pytest.mark.exhaustive
def test_no_json_of_another_form_ends_in_a_traceback(made, tmp_path, capsys):
    """Every part of config.json and of an index in place of every hostile value."""
    folder = shutil.copytree(made[0], tmp_path / "copied")
    settings, keys = json.loads((folder / "config.json").read_text()), sorted(load_file(folder / "model.safetensors"))
    said = [
        refusal(folder, "config.json", replaced(settings, path, value))
        for path in places(settings)
        for value in HOSTILE
    ]
    (folder / "config.json").write_text(json.dumps(settings))
    (folder / "model.safetensors").rename(folder / "one.safetensors")
    index = {"metadata": {"total_size": 3}, "weight_map": dict.fromkeys(keys, "one.safetensors")}
    parts = [path for path in places(index) if not path[1:] or path[1] in ("total_size", keys[0])]
    named = [not words or "config.json" in words for words in said]
    told = [
        refusal(folder, "model.safetensors.index.json", replaced(index, path, value))
        for path in parts
        for value in HOSTILE
    ]
    named += [not words or "model.safetensors.index.json" in words for words in told]
    with capsys.disabled():
        print(
            f"\n{len(named)} values: {sum(not words for words in said + told)} read, {named.count(False)} refused "
            "without the name of the file"
        )
    assert all(named)


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
    (tmp_path / "model.safetensors.index.json").write_text(
        json.dumps({"weight_map": dict.fromkeys(names, "../model-1.safetensors")})
    )
    with pytest.raises(InputError, match="expected files of the folder itself"):
        huggingface.load(tmp_path)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (Model(pattern=("mamba", "mamba2"), mlp_ratio=0.0, task=Task(vocab=9)), "mixers of one kind"),
        (Model(pattern=("selective",), mlp_ratio=0.0, task=Task(vocab=9)), "mixers of one kind"),
        (Model(pattern=("mamba",), task=Task(vocab=9)), "model.mlp_ratio=2.0"),
        (
            Model(pattern=("mamba",) * 2, block_states=(2, 3), mlp_ratio=0.0, task=Task(vocab=9)),
            "one d_state of all blocks",
        ),
        (Model(pattern=("mamba",), mlp_ratio=0.0), "language models"),
        (Model(pattern=("mamba",), mlp_ratio=0.0, bidirectional=True, task=Task(vocab=9)), "model.bidirectional=True"),
        (Model(pattern=("mamba",), mlp_ratio=0.0, norm="none", task=Task(vocab=9)), "model.norm='none'"),
        (
            Model(pattern=("mamba",), mlp_ratio=0.0, memory_bits=("4",), task=Task(vocab=9)),
            "model.memory_bits=.* has no place",
        ),
        (Model(pattern=("mamba",), mlp_ratio=0.0, conv=4, task=Task(vocab=9)), "model.conv=4"),
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
    # rows of a batch begin with an empty memory
    assert results["metrics"]["nats"] == pytest.approx(float(nats), abs=0.05)


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
