"""Mamba, Falcon Mamba and Mamba-2 checkpoints in the layout of Hugging Face's transformers: config.json and safetensors
in a local folder, never a pickle.

  config, params = load("mamba-130m-hf")          SequenceModel(config).apply({"params": params}, tokens)
  save("copy", config, params)                    the same tensors in the same layout
  python -m selssm_jax.interop.huggingface mamba-130m-hf --workdir runs/mamba-130m --file my_text.txt
  python eval.py --workdir runs/mamba-130m

The command writes a run that `eval.py` reads as it reads those of `train.py`. Text becomes tokens by the folder's
tokenizer.json: characters, where all of its tokens are single ones, else subwords, by the package tokenizers (pip
install 'selssm_jax[subword]'). Without one, a model of 256 tokens or more reads bytes: token b is the byte b of the
text's UTF-8.

Which tensor is which parameter says a table, one a kind of model. Every tensor of the folder is used once and has the
shape that the configuration asks for; what is left over on either side is an error that lists it.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import sys
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from selssm_jax import data, invocation
from selssm_jax.config import Data, Experiment, Model, Optimizer, Task, Training, mixers, sources_of
from selssm_jax.config.fields import flatten, list_fields
from selssm_jax.config.model import MOST_BLOCKS
from selssm_jax.data.vocabulary import BYTES
from selssm_jax.errors import ArgumentError, InputError, report_errors, suggest
from selssm_jax.layers.variables import parameters as parameters_of
from selssm_jax.model import SequenceModel
from selssm_jax.paths import check_regular
from selssm_jax.tasks.registry import kind_of
from selssm_jax.training.checkpoint import Workdir, check_place

PyTree = Any
Weights = dict[str, np.ndarray]
WHOLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
NO_TEXT = "no text: give eval.py one by --file"


class Row(NamedTuple):
    """One tensor, whose first axis holds the parameters `targets` one after another, each by `ours` of its part;
    `theirs` is the way back.

    Braces in `key` and `targets` stand for the number of a layer. `of` is the key of the model's configuration without
    which there is no such tensor.
    """

    key: str
    targets: tuple[str, ...]
    ours: Callable[[np.ndarray], np.ndarray] = lambda value: value
    theirs: Callable[[np.ndarray], np.ndarray] = lambda value: value
    of: str = ""


def _linear(key: str, *targets: str) -> Row:
    """(out, in) there, (in, out) here."""
    return Row(key, targets, np.transpose, np.transpose)


def _taps(key: str, *targets: str) -> Row:
    """(channels, 1, width) there, the newest input last; (width, channels) here, the newest first."""
    return Row(key, targets, lambda value: value[:, 0, ::-1].T, lambda value: value.T[:, None, ::-1])


def _group_channels(key: str, target: str) -> Row:
    """(channels,) there, (1, channels) here."""
    return Row(key, (target,), lambda value: value[None], lambda value: value.reshape(-1))


# as its authors wrote it, and transformers reads it
OLD_NAMES = {"backbone.embedding.weight": "backbone.embeddings.weight"}
LAYER, MIXER = "backbone.layers.{}.", "backbone.layers.{}.mixer."
AROUND = (
    Row("backbone.embeddings.weight", ("encoder/embedding",)),
    Row(f"{LAYER}norm.weight", ("block_{}/norm/scale",)),
    Row("backbone.norm_f.weight", ("norm/scale",)),
)
READOUT = _linear("lm_head.weight", "head/kernel")  # of models that do not tie it to the embedding
MIXERS = {
    "mamba": (
        _linear(f"{MIXER}in_proj.weight", "block_{}/mixer/in"),
        _taps(f"{MIXER}conv1d.weight", "block_{}/mixer/conv/kernel"),
        Row(f"{MIXER}conv1d.bias", ("block_{}/mixer/conv/bias",), of="conv_bias"),
        Row(f"{MIXER}in_proj.bias", ("block_{}/mixer/in_bias",), of="projection_bias"),
        Row(f"{MIXER}out_proj.bias", ("block_{}/mixer/out_bias",), of="projection_bias"),
        _linear(f"{MIXER}x_proj.weight", "block_{}/mixer/down", "block_{}/mixer/B", "block_{}/mixer/C"),
        _linear(f"{MIXER}dt_proj.weight", "block_{}/mixer/up"),
        Row(f"{MIXER}dt_proj.bias", ("block_{}/mixer/dt_bias",)),
        Row(f"{MIXER}A_log", ("block_{}/mixer/A_log",)),
        Row(f"{MIXER}D", ("block_{}/mixer/D",)),
        _linear(f"{MIXER}out_proj.weight", "block_{}/mixer/out"),
    ),
    "mamba2": (
        _linear(f"{MIXER}in_proj.weight", *(f"block_{{}}/mixer/{name}" for name in ("in", "B", "C", "rate"))),
        _taps(f"{MIXER}conv1d.weight", *(f"block_{{}}/mixer/{name}_conv/kernel" for name in "xBC")),
        Row(f"{MIXER}conv1d.bias", tuple(f"block_{{}}/mixer/{name}_conv/bias" for name in "xBC"), of="conv_bias"),
        Row(
            f"{MIXER}in_proj.bias",
            tuple(f"block_{{}}/mixer/{name}_bias" for name in ("in", "B", "C", "rate")),
            of="projection_bias",
        ),
        Row(f"{MIXER}out_proj.bias", ("block_{}/mixer/out_bias",), of="projection_bias"),
        Row(f"{MIXER}dt_bias", ("block_{}/mixer/dt_bias",)),
        Row(f"{MIXER}A_log", ("block_{}/mixer/A_log",)),
        Row(f"{MIXER}D", ("block_{}/mixer/D",)),
        _group_channels(f"{MIXER}norm.weight", "block_{}/mixer/norm/scale"),
        _linear(f"{MIXER}out_proj.weight", "block_{}/mixer/out"),
    ),
}

# Keys of config.json: what they are called here, what they are where they are left out (the defaults of the classes of
# transformers), what they must be, and what changes nothing that a trained model computes in float32.
WHOLE_NUMBERS = {"hidden_size": "d_model", "state_size": "d_state", "expand": "expand", "conv_kernel": "d_conv"}
OTHERS = {
    "layer_norm_epsilon": "norm_epsilon",
    "use_bias": "projection_bias",
    "use_conv_bias": "conv_bias",
    "tie_word_embeddings": "tie_embeddings",
}
KINDS: dict[str, tuple[str, str, dict[str, str], dict[str, Any]]] = {
    "mamba": ("mamba", "MambaForCausalLM", {"time_step_rank": "dt_rank"}, {}),
    "falcon_mamba": (
        "mamba",
        "FalconMambaForCausalLM",
        {"time_step_rank": "dt_rank", "mixer_rms_eps": "inner_norm_epsilon"},
        {"mixer_rms_eps": 1e-6},
    ),
    "mamba2": (
        "mamba2",
        "Mamba2ForCausalLM",
        {"num_heads": "heads", "n_groups": "groups", "time_step_limit": "dt_limit"},
        {
            "vocab_size": 32768,
            "hidden_size": 4096,
            "state_size": 128,
            "num_hidden_layers": 64,
            "num_heads": 128,
            "n_groups": 8,
            "tie_word_embeddings": False,
        },
    ),
}
DEFAULTS = {
    **{
        "vocab_size": 50280,
        "hidden_size": 768,
        "state_size": 16,
        "num_hidden_layers": 32,
        "expand": 2,
        "conv_kernel": 4,
        "layer_norm_epsilon": 1e-5,
    },
    **{
        "use_bias": False,
        "use_conv_bias": True,
        "hidden_act": "silu",
        "time_step_rank": "auto",
        "tie_word_embeddings": True,
    },
    "time_step_limit": [0.0, math.inf],
}
REQUIRED: dict[str, tuple[Any, ...]] = {
    "hidden_act": ("silu", "swish"),
    "rms_norm": (True,),
    "ssm_cfg": ({}, {"layer": "Mamba1"}, {"layer": "Mamba2"}),
    "quantization_config": (None,),
}
READ = {"model_type", "vocab_size", "num_hidden_layers", "intermediate_size", "head_dim", "time_step_rank"}
WITHOUT_EFFECT = {
    *(
        "architectures",
        "bos_token_id",
        "eos_token_id",
        "pad_token_id",
        "sep_token_id",
        "decoder_start_token_id",
        "dtype",
        "torch_dtype",
        "transformers_version",
    ),
    *(
        "use_cache",
        "initializer_range",
        "time_step_floor",
        "time_step_init_scheme",
        "time_step_max",
        "time_step_min",
        "time_step_scale",
        "layer_types",
    ),
    *(
        "rescale_prenorm_residual",
        "residual_in_fp32",
        "use_associative_scan",
        "use_mambapy",
        "use_falcon_mambapy",
        "chunk_size",
        "fused_add_norm",
    ),
    *(
        "d_inner",
        "d_model",
        "n_layer",
        "pad_vocab_size_multiple",
        "name_or_path",
        "auto_map",
        "attn_implementation",
        "tokenizer_class",
        "task_specific_params",
    ),
    *(
        "id2label",
        "label2id",
        "num_labels",
        "problem_type",
        "finetuning_task",
        "return_dict",
        "return_dict_in_generate",
        "output_hidden_states",
    ),
    *(
        "output_attentions",
        "output_scores",
        "torchscript",
        "use_bfloat16",
        "tf_legacy_loss",
        "pruned_heads",
        "prefix",
        "is_decoder",
        "is_encoder_decoder",
    ),
    *("add_cross_attention", "cross_attention_hidden_size", "tie_encoder_decoder", "chunk_size_feed_forward"),
    # How text is drawn from a model, in configurations of older versions.
    *(
        "max_length",
        "min_length",
        "do_sample",
        "early_stopping",
        "num_beams",
        "num_beam_groups",
        "diversity_penalty",
        "temperature",
        "top_k",
        "top_p",
    ),
    *(
        "typical_p",
        "repetition_penalty",
        "length_penalty",
        "no_repeat_ngram_size",
        "encoder_no_repeat_ngram_size",
        "bad_words_ids",
        "num_return_sequences",
    ),
    *(
        "forced_bos_token_id",
        "forced_eos_token_id",
        "remove_invalid_values",
        "exponential_decay_length_penalty",
        "suppress_tokens",
        "begin_suppress_tokens",
    ),
    # Codestral's says true; transformers norms after the gate whatever it says (transformers#32686), and so do the
    # model's own outputs
    "norm_before_gate",
}
# What a saved model need not say.
FREE = {
    "dropout",
    "remat",
    "mamba.method",
    "dtype",
    "task",
    "block_states",
    "d_state",
    "mamba.dt_rank",
    "memory_scope",
    "memory_rounding",
}


def load(folder: str | pathlib.Path) -> tuple[Model, PyTree]:
    """Returns (configuration, parameters in float32) of the checkpoint in a folder.

    Raises:
      InputError: for a folder without config.json or safetensors, one of pickles alone, a setting that is not
        supported, by its name, tensors that are missing or left over, listed, and shapes that do not fit.
    """
    place = _checked_folder(folder)
    settings, weights = _read_json(place / "config.json"), _tensors(place)
    _check_layers(settings, weights)
    config = model_config(settings)
    return config, parameters(config, weights)


def save(folder: str | pathlib.Path, config: Model, params: PyTree) -> None:
    """Writes a model to config.json and model.safetensors of a folder, as `load` and transformers read them.

    Raises:
      InputError: for a model that the layout has no place for, parameters that are not the configuration's, and a
        folder that holds a checkpoint.
    """
    place = pathlib.Path(folder)
    settings, found = settings_of(config), tensors(config, params)
    for name in ("config.json", WHOLE, INDEX):
        if (place / name).exists():
            raise InputError(f"{place / name} exists already: give a new folder, so that nothing is overwritten")
    place.mkdir(parents=True, exist_ok=True)
    save_file(found, str(place / WHOLE), metadata={"format": "pt"})
    (place / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def model_config(settings: Mapping[str, Any]) -> Model:
    """Returns the configuration that a config.json describes. Raises InputError for what is unknown or not supported,
    by its name.
    """
    kind = settings.get("model_type")
    if not isinstance(kind, str) or kind not in KINDS:
        raise InputError(f"config.json has model_type={kind!r}: {suggest(str(kind), KINDS)}")
    mixer, _, names, defaults = KINDS[kind]
    settings = DEFAULTS | defaults | _without_floats_in_words(dict(settings))
    _check_settings(kind, settings)
    values = {name: settings[key] for key, name in (WHOLE_NUMBERS | OTHERS | names).items()}
    if values.get("dt_rank") == "auto":
        values["dt_rank"] = math.ceil(values["d_model"] / 16)
    if "dt_limit" in values:
        limit = tuple(map(float, values["dt_limit"]))
        values["dt_limit"] = () if limit == (0.0, math.inf) else limit
    inner = values["expand"] * values["d_model"]
    for key, implied in {"intermediate_size": inner, "head_dim": inner // values.get("heads", 1)}.items():
        if key in settings and settings[key] != implied and (key, mixer) != ("head_dim", "mamba"):
            raise InputError(
                f"config.json has {key}={settings[key]}, but hidden_size, expand and num_heads make it {implied}: "
                "other values are not supported"
            )
    task = Task("language", vocab=settings["vocab_size"])
    config = mixers.MIXERS[mixer].config
    group = {name: values.pop(name) for name in list_fields(config) if name in values}
    try:
        return Model(
            pattern=(mixer,) * settings["num_hidden_layers"],
            mlp_ratio=0.0,
            task=task,
            **values | {mixer: config(**group)},
        )
    except InputError as error:
        raise InputError(f"config.json describes no model that there is: {error}") from error


def settings_of(config: Model) -> dict[str, Any]:
    """Returns the config.json of a model; the inverse of `model_config`. Raises InputError for a model that the layout
    has no place for.
    """
    mixer, states = config.pattern[0], {part.d_state for part in config.blocks}
    if len(set(config.pattern)) > 1 or mixer not in {there[0] for there in KINDS.values()}:
        raise InputError(
            f"model.pattern={config.pattern} has no place in this layout: it holds mixers of one kind, mamba or mamba2"
        )
    if len(states) > 1:
        raise InputError(
            f"model.block_states={config.block_states} has no place in this layout: it holds one d_state of all blocks"
        )
    known = {"norm_epsilon": config.norm_epsilon, "tie_embeddings": config.tie_embeddings} | config.blocks[0].arguments(
        mixer
    )
    kind = "falcon_mamba" if known.get("inner_norm_epsilon") else mixer
    _, architecture, names, _ = KINDS[kind]
    found = {
        "architectures": [architecture],
        "model_type": kind,
        "vocab_size": config.task.vocab,
        "num_hidden_layers": len(config.pattern),
    }
    found |= {key: known[name] for key, name in (WHOLE_NUMBERS | OTHERS | names).items()}
    inner = known["expand"] * config.d_model
    found |= {"hidden_act": "silu", "dtype": "float32"}
    if mixer == "mamba2":
        found |= {"head_dim": inner // known["heads"], "time_step_limit": list(known["dt_limit"]) or [0.0, math.inf]}
    else:
        found |= {"intermediate_size": inner, "time_step_rank": known["dt_rank"] or math.ceil(config.d_model / 16)}
    _check_place(config, found)
    return found


def _check_place(config: Model, settings: Mapping[str, Any]) -> None:
    """Raises InputError where the model that a config.json describes is not the one that it was made of."""
    if not kind_of(config.task).writes or not config.task.vocab:
        raise InputError(
            f"the task {config.task} has no place in this layout: it holds language models, with the size of the "
            "vocabulary in task.vocab"
        )
    again = dict(flatten(dataclasses.asdict(model_config(settings))))
    idle = {"own", *mixers.MIXERS} - {config.pattern[0]}
    for path, found in flatten(dataclasses.asdict(config)):
        other_task = not {"text", "selective_copying"} & set(sources_of(f"model.{path}"))
        if again.get(path) != found and not other_task and not {path, path.partition(".")[0]} & (FREE | idle):
            raise InputError(f"model.{path}={found!r} has no place in this layout, which knows {again[path]!r} alone")


def parameters(config: Model, weights: Mapping[str, np.ndarray]) -> PyTree:
    """Returns the parameters that tensors of this layout hold.

    Raises InputError for keys that are missing or left over, for other shapes, and for numbers that are not finite.
    """
    shapes, found = _shapes(config), {}
    rest = {OLD_NAMES.get(key, key): value for key, value in weights.items()}
    tied = rest.pop("lm_head.weight", None) if config.tie_embeddings else None
    embeddings = rest.get("backbone.embeddings.weight")
    if tied is not None and (embeddings is None or not np.array_equal(tied, embeddings)):
        raise InputError(
            "lm_head.weight differs from backbone.embeddings.weight, but config.json has tie_word_embeddings=true: set "
            "it to false"
        )
    rows = list(_rows(config))
    _check_keys({row.key for row in rows}, set(rest), asker="config.json")
    for row in rows:
        value, parts = (
            rest[row.key],
            [row.theirs(np.broadcast_to(np.float32(0), shapes[target])).shape for target in row.targets],
        )
        wanted = (sum(part[0] for part in parts), *parts[0][1:])
        if value.shape != wanted:
            raise InputError(
                f"{row.key} has shape {value.shape}, config.json asks for {wanted}: they are not of the same model"
            )
        _check_finite(row.key, value)
        cuts = np.cumsum([part[0] for part in parts])[:-1]
        for target, part in zip(row.targets, np.split(value, cuts), strict=True):
            found[target] = jnp.asarray(row.ours(part).reshape(shapes[target]), jnp.float32)
    return unflatten_dict(found, sep="/")


def tensors(config: Model, params: PyTree) -> Weights:
    """Returns the tensors of this layout that hold these parameters; the inverse of `parameters`.

    Args:
      params: the parameters, or what `init` returned, with them in it.

    Raises:
      InputError: as `parameters` does, and for a model that has parameters without a place in the layout.
    """
    flat, shapes = flatten_dict(dict(parameters_of(params)), sep="/"), _shapes(config)
    _check_keys({target for row in _rows(config) for target in row.targets}, set(shapes), "parameters of such a model")
    _check_keys(set(shapes), set(flat), "parameters")
    for name, shape in shapes.items():
        _check_finite(f"the parameter {name}", np.asarray(flat[name]))
        if flat[name].shape != shape:
            raise InputError(
                f"the parameter {name} has shape {flat[name].shape}, the configuration asks for {shape}: they are not "
                "of the same model"
            )
    joined = {
        row.key: np.concatenate([row.theirs(np.asarray(flat[target], np.float32)) for target in row.targets])
        for row in _rows(config)
    }
    return {key: np.ascontiguousarray(value) for key, value in joined.items()}


def import_run(
    folder: str | pathlib.Path, workdir: str, *, file: str = "", length: int = 256, batch_size: int = 8
) -> Experiment:
    """Writes a run that holds the checkpoint of `folder`, as `train.py` writes its own, and returns its experiment.

    Args:
      workdir: a new folder. file: the text that is the run's data; without one `eval.py` must be given its --file.
      length, batch_size: steps of a window and windows of a batch, when the run is read.

    Raises:
      InputError: for what `load` refuses, a folder without a tokenizer that can be read, a text that has other tokens,
        and a folder that is in use.
    """
    check_place(workdir)
    config, params = load(folder)
    taken = pathlib.Path(workdir)
    if taken.exists() and any(taken.iterdir() if taken.is_dir() else [taken]):
        raise ArgumentError("workdir", f"={workdir} exists already: give a new folder, so that nothing is overwritten")
    known = {"task": config.task.describe()} | vocabulary_of(pathlib.Path(folder), config.task.vocab)
    source = Data(source="text", file=file or NO_TEXT, level=known["level"], length=length, batch_size=batch_size)
    metadata = data.load(source, known).metadata() if file else known
    model = dataclasses.replace(config, task=Task())
    experiment = Experiment(
        pathlib.Path(folder).resolve().name, source, model, Optimizer(warmup_steps=0), Training(steps=1)
    )
    run = Workdir(workdir, experiment, alone=True)
    run.describe(metadata)
    run.save_best(0, params, {})
    run.close()
    return experiment


def vocabulary_of(folder: pathlib.Path, size: int) -> dict[str, Any]:
    """Returns what a run must remember of how text becomes tokens: "vocabulary", "level" and, of subwords,
    "tokenizer".
    """
    path = folder / "tokenizer.json"
    if not path.exists():
        if size < len(BYTES):
            raise InputError(
                f"{folder} has no tokenizer.json, and a vocabulary of {size} tokens is too small for bytes: nothing "
                "says what its tokens mean"
            )
        return {"vocabulary": _name_tokens(enumerate(BYTES), size), "separator": "", "level": "byte"}
    content = _read_json(path)
    added, tokens = _read_added_tokens(content, path), _tokens(content, path)
    special = {token["content"] for token in added if token.get("special")}
    steps = any(content.get(step) for step in ("normalizer", "pre_tokenizer", "post_processor"))
    plain = not steps and all(len(token) == 1 for token in set(tokens) - special)
    every = {token["content"]: token["id"] for token in added} | tokens
    found = {"vocabulary": _name_tokens(((number, token) for token, number in every.items()), size), "separator": ""}
    return found | ({"level": "character"} if plain else {"level": "subword", "tokenizer": path.read_text()})


def _read_added_tokens(content: Mapping[str, Any], path: pathlib.Path) -> list[dict[str, Any]]:
    """The tokens that a tokenizer.json adds to its model's."""
    added = [] if content.get("added_tokens") is None else content["added_tokens"]
    if not isinstance(added, list) or not all(
        isinstance(token, dict) and isinstance(token.get("content"), str) and type(token.get("id")) is int
        for token in added
    ):
        raise InputError(f'{path}: "added_tokens" is no list of {{"id": number, "content": text}}: restore it')
    return added


def _tokens(content: Mapping[str, Any], path: pathlib.Path) -> dict[str, int]:
    """The number of every token of a tokenizer.json's model."""
    names = _object(content.get("model", {}), f'"model" of {path}').get("vocab", {})
    scored = isinstance(names, list) and all(
        isinstance(token, list) and token and isinstance(token[0], str) for token in names
    )
    found = {token[0]: number for number, token in enumerate(names)} if scored else names
    if not isinstance(found, dict) or not all(type(number) is int and number >= 0 for number in found.values()):
        raise InputError(f'{path}: "vocab" of its model gives no number to every token: restore it')
    return found


def main(argv: list[str] | None = None) -> None:
    """The command: imports a folder as a run."""
    parser = argparse.ArgumentParser(
        prog="python -m selssm_jax.interop.huggingface",
        description="Imports a Mamba, Falcon Mamba or Mamba-2 checkpoint as a run.",
    )
    parser.add_argument("folder", help="a local folder with config.json and safetensors, in the layout of transformers")
    parser.add_argument("--workdir", required=True, help="the run to write, a new folder")
    parser.add_argument(
        "--file", default="", help="a text that is the run's data; without one, eval.py must be given its --file"
    )
    parser.add_argument("--length", type=int, default=256, help="steps of a window (default %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="windows of a batch (default %(default)s)")
    chosen = parser.parse_args(argv)
    with report_errors():
        found = import_run(
            chosen.folder, chosen.workdir, file=chosen.file, length=chosen.length, batch_size=chosen.batch_size
        )
        model = found.model
        print(
            f"{chosen.workdir}: {len(model.pattern)} blocks of {model.pattern[0]}, d_model {model.d_model}; "
            f"{invocation.command('eval')} --workdir ..."
        )


def _rows(config: Model) -> Iterable[Row]:
    """The table of a model, layer by layer."""
    for row in (*AROUND, *MIXERS[config.pattern[0]], *(() if config.tie_embeddings else (READOUT,))):
        if row.of and not getattr(config.mixer(config.pattern[0]), row.of):
            continue
        for layer in range(len(config.pattern)) if "{}" in row.key else (0,):
            yield row._replace(key=row.key.format(layer), targets=tuple(target.format(layer) for target in row.targets))


def _shapes(config: Model) -> dict[str, tuple[int, ...]]:
    """Of all parameters, by their paths."""
    found = jax.eval_shape(
        lambda: SequenceModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"]
    )
    return {name: leaf.shape for name, leaf in flatten_dict(found, sep="/").items()}


def _check_keys(expected: set[str], found: set[str], what: str = "tensors", asker: str = "the configuration") -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing or unknown:
        parts = [
            f"{len(names)} {word}: {', '.join(names)}"
            for word, names in (("missing", missing), ("left over", unknown))
            if names
        ]
        raise InputError(f"the {what} are not those that {asker} asks for, {'; '.join(parts)}")


def _check_settings(kind: str, settings: Mapping[str, Any]) -> None:
    _, _, names, _ = KINDS[kind]
    known = {
        *WHOLE_NUMBERS,
        *OTHERS,
        *READ,
        *REQUIRED,
        *WITHOUT_EFFECT,
        *(key for there in KINDS.values() for key in there[2]),
    }
    for key, value in settings.items():
        if key in REQUIRED and value not in REQUIRED[key]:
            raise InputError(f"config.json has {key}={value!r}, which is not supported: only {REQUIRED[key][0]!r} is")
        if key not in known and not key.startswith("_"):
            raise InputError(
                f"config.json has {key}={value!r}, which is not known: remove it, if it changes nothing that the model "
                "computes"
            )
    counts = [
        *WHOLE_NUMBERS,
        "vocab_size",
        "num_hidden_layers",
        *({"num_heads", "n_groups", "time_step_rank"} & {*names}),
    ]
    for key in counts:
        value, most = settings[key], MOST_BLOCKS if key == "num_hidden_layers" else 2**31 - 1
        if (key, value) != ("time_step_rank", "auto") and not (type(value) is int and 1 <= value <= most):
            raise InputError(f"config.json has {key}={value!r}, expected a whole number from 1 to {most}")
    for key in ("use_bias", "use_conv_bias", "tie_word_embeddings"):
        if type(settings[key]) is not bool:
            raise InputError(f"config.json has {key}={settings[key]!r}, expected true or false")
    for key in ("layer_norm_epsilon", *({"mixer_rms_eps"} & {*names})):
        if type(settings[key]) not in (int, float) or not 0 < settings[key] <= sys.float_info.max:
            raise InputError(f"config.json has {key}={settings[key]!r}, expected a positive number")
    _check_limit(settings["time_step_limit"], any_range="time_step_limit" in names)


def _check_limit(limit: Any, *, any_range: bool) -> None:
    """Of the step sizes of a Mamba-2, or that there is none, of a Mamba."""
    numbers = isinstance(limit, list | tuple) and len(limit) == 2 and all(type(end) in (int, float) for end in limit)
    if not numbers or not 0 <= limit[0] < limit[1] or any(math.inf > end > sys.float_info.max for end in limit):
        raise InputError(
            f"config.json has time_step_limit={limit!r}, expected the smallest and the largest step size, [0.0, "
            "Infinity] for any"
        )
    if not any_range and tuple(limit) != (0.0, math.inf):
        raise InputError(
            f"config.json has time_step_limit={limit!r}, which a Mamba has not: only [0.0, Infinity] is supported"
        )


def _check_layers(settings: Mapping[str, Any], weights: Iterable[str]) -> None:
    """Raises InputError where more layers are asked for than there are, before as many are built."""
    there = len({key.split(".")[2] for key in weights if key.startswith("backbone.layers.")})
    asked = settings.get("num_hidden_layers", 0)
    if type(asked) is int and asked > there:
        raise InputError(
            f"config.json has num_hidden_layers={asked}, but there are tensors of {there} layers: they are not of the "
            "same model"
        )


def _check_finite(name: str, value: np.ndarray) -> None:
    if not jnp.issubdtype(value.dtype, jnp.floating):
        raise InputError(
            f"{name} is of type {value.dtype}, expected floating-point numbers: quantised checkpoints are not read"
        )
    bad = int(value.size - np.isfinite(value.astype(np.float32)).sum())
    if bad:
        raise InputError(
            f"{name} holds {bad} of {value.size} numbers that are not finite: the checkpoint is damaged, or its "
            "training diverged"
        )


def _without_floats_in_words(settings: Any) -> Any:
    """JSON has no infinity: newer versions write {"__float__": "Infinity"}."""
    if isinstance(settings, dict):
        if set(settings) != {"__float__"}:
            return {key: _without_floats_in_words(value) for key, value in settings.items()}
        if (word := settings["__float__"]) not in ("Infinity", "-Infinity", "NaN"):
            raise InputError(
                f'config.json has {{"__float__": {word!r}}}, expected "Infinity", "-Infinity" or "NaN": restore it'
            )
        return float(word)
    return [_without_floats_in_words(value) for value in settings] if isinstance(settings, list) else settings


def _checked_folder(folder: str | pathlib.Path) -> pathlib.Path:
    place = pathlib.Path(folder)
    if not place.is_dir():
        raise InputError(
            f"{folder} is no folder: give a local one, with config.json and {WHOLE}; nothing is downloaded"
        )
    if not (place / "config.json").exists():
        raise InputError(
            f"{folder} holds no config.json: give the folder of a checkpoint in the layout of transformers"
        )
    if not (place / WHOLE).exists() and not (place / INDEX).exists():
        if any(place.glob("*.bin")) or any(place.glob("*.pt")):
            raise InputError(
                f"{folder} holds {PICKLE} or the like alone, a pickle, which can run any code when it is opened, so it "
                "is not read: convert it to safetensors where you trust it, for example with save_pretrained of "
                "transformers"
            )
        raise InputError(f"{folder} holds neither {WHOLE} nor {INDEX}: give the folder of a whole checkpoint")
    return place


def _tensors(folder: pathlib.Path) -> Weights:
    """All tensors of a checkpoint, of one file or of several that an index names."""
    if (folder / WHOLE).exists():
        return _read_tensors(folder / WHOLE)
    placed = _object(_read_json(folder / INDEX).get("weight_map", {}), f"weight_map of {folder / INDEX}")
    if not placed or not all(isinstance(name, str) for name in placed.values()):
        raise InputError(f"weight_map of {folder / INDEX} holds what are no names of files: restore it")
    found: Weights = {}
    for name in sorted(set(placed.values())):
        if pathlib.PurePath(name).name != name or name in ("", "..") or not (folder / name).exists():
            raise InputError(f"{INDEX} names the file {name!r}: expected files of the folder itself, that are there")
        part = _read_tensors(folder / name)
        _check_keys({key for key, file in placed.items() if file == name}, set(part), f"tensors of {name}", INDEX)
        found |= part
    return found


def _read_tensors(path: pathlib.Path) -> Weights:
    try:
        check_regular(path)
        with safetensors.safe_open(path, framework="flax") as file:
            return {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        check_regular(path)
        return _object(json.loads(path.read_text()), str(path))
    except (OSError, ValueError, RecursionError) as error:
        raise (
            error
            if isinstance(error, InputError)
            else InputError(f"{path} cannot be read as JSON ({error}): restore it")
        ) from error


def _object(value: Any, name: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise InputError(f"{name} holds a {type(value).__name__}, expected an object with keys: restore it")
    return value


def _name_tokens(tokens: Iterable[tuple[int, str]], size: int) -> list[str]:
    """The name of every token; those that have none are called by their number."""
    names = [f"<{number}>" for number in range(size)]
    for number, token in tokens:
        if 0 <= number < size:
            names[number] = token
    return names


if __name__ == "__main__":
    main()
