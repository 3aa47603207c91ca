"""Mamba and Mamba-2 checkpoints in the layout of Hugging Face's transformers: a local folder of config.json and safetensors, never a pickle.

  config, params = load("mamba-130m-hf")          SequenceModel(config).apply({"params": params}, tokens)
  save("copy", config, params)                    the same tensors in the same layout
  python -m selssm_jax.interop.huggingface mamba-130m-hf --workdir runs/mamba-130m --file my_text.txt
  python eval.py --workdir runs/mamba-130m

The command writes a run that `eval.py` reads as it reads those of `train.py`. Text becomes tokens by the folder's tokenizer.json: characters, where all of its
tokens are single ones, else subwords, by the package tokenizers (pip install 'selssm_jax[subword]'). Without one, a model of 256 tokens or more reads
bytes: token b is the byte b of the text's UTF-8.

Which tensor is which parameter says a table, one a kind of model. Every tensor of the folder is used once and has the shape that the configuration asks
for; what is left over on either side is an error that lists it.
"""

import argparse
import dataclasses
import json
import math
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import safetensors
from flax.traverse_util import flatten_dict, unflatten_dict
from safetensors.numpy import save_file

from selssm_jax import data
from selssm_jax.config import Data, Experiment, Model, Optimizer, Task, Training
from selssm_jax.data.vocabulary import BYTES
from selssm_jax.errors import InputError, reported, suggest
from selssm_jax.model import SequenceModel
from selssm_jax.training.checkpoint import Workdir, check_place

PyTree = Any
Weights = dict[str, np.ndarray]
WHOLE, INDEX, PICKLE = "model.safetensors", "model.safetensors.index.json", "pytorch_model.bin"
NO_TEXT = "no text: give eval.py one by --file"


class Row(NamedTuple):
    """One tensor, whose first axis holds the parameters `targets` one after another, each by `ours` of its part; `theirs` is the way back.

    Braces in `key` and `targets` stand for the number of a layer.
    """

    key: str
    targets: tuple[str, ...]
    ours: Callable[[np.ndarray], np.ndarray] = lambda value: value
    theirs: Callable[[np.ndarray], np.ndarray] = lambda value: value


def _linear(key: str, *targets: str) -> Row:
    """(out, in) there, (in, out) here."""
    return Row(key, targets, np.transpose, np.transpose)


def _taps(key: str, *targets: str) -> Row:
    """(channels, 1, width) there, the newest input last; (width, channels) here, the newest first."""
    return Row(key, targets, lambda value: value[:, 0, ::-1].T, lambda value: value.T[:, None, ::-1])


def _grouped(key: str, target: str) -> Row:
    """(channels,) there, (1, channels) here."""
    return Row(key, (target,), lambda value: value[None], lambda value: value.reshape(-1))


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
        Row(f"{MIXER}conv1d.bias", ("block_{}/mixer/conv/bias",)),
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
        Row(f"{MIXER}conv1d.bias", tuple(f"block_{{}}/mixer/{name}_conv/bias" for name in "xBC")),
        Row(f"{MIXER}dt_bias", ("block_{}/mixer/dt_bias",)),
        Row(f"{MIXER}A_log", ("block_{}/mixer/A_log",)),
        Row(f"{MIXER}D", ("block_{}/mixer/D",)),
        _grouped(f"{MIXER}norm.weight", "block_{}/mixer/norm/scale"),
        _linear(f"{MIXER}out_proj.weight", "block_{}/mixer/out"),
    ),
}

# Keys of config.json: what they are called here; what they must be; what changes nothing that a trained model computes in float32.
COMMON = {"hidden_size": "d_model", "state_size": "d_state", "expand": "expand", "conv_kernel": "d_conv", "layer_norm_epsilon": "norm_epsilon"}
NAMES = {"mamba": COMMON | {"time_step_rank": "dt_rank"}, "mamba2": COMMON | {"num_heads": "heads", "n_groups": "groups"}}
DEFAULTS = {"layer_norm_epsilon": 1e-5, "tie_word_embeddings": True}  # which older versions leave out
REQUIRED: dict[str, tuple[Any, ...]] = {
    "use_bias": (False,),
    "use_conv_bias": (True,),
    "hidden_act": ("silu", "swish"),
    "time_step_limit": ([0.0, math.inf],),
    "norm_before_gate": (False,),
    "rms_norm": (True,),
    "ssm_cfg": ({}, {"layer": "Mamba1"}, {"layer": "Mamba2"}),
}
READ = {"model_type", "vocab_size", "num_hidden_layers", "tie_word_embeddings", "intermediate_size", "head_dim"}
WITHOUT_EFFECT = {
    *("architectures", "bos_token_id", "eos_token_id", "pad_token_id", "dtype", "torch_dtype", "transformers_version", "use_cache", "initializer_range"),
    *("time_step_floor", "time_step_init_scheme", "time_step_max", "time_step_min", "time_step_scale", "rescale_prenorm_residual", "residual_in_fp32"),
    *("use_associative_scan", "use_mambapy", "chunk_size", "fused_add_norm", "d_inner", "d_model", "n_layer", "pad_vocab_size_multiple"),
}


def load(folder: str | pathlib.Path) -> tuple[Model, PyTree]:
    """Returns (configuration, parameters in float32) of the checkpoint in a folder.

    Raises:
      InputError: for a folder without config.json or safetensors, one of pickles alone, a setting that is not supported, by its name, tensors that are
        missing or left over, listed, and shapes that do not fit.
    """
    place = _checked_folder(folder)
    config = model_config(_read_json(place / "config.json"))
    return config, parameters(config, _tensors(place))


def save(folder: str | pathlib.Path, config: Model, params: PyTree) -> None:
    """Writes a model to config.json and model.safetensors of a folder, as `load` and transformers read them.

    Raises:
      InputError: for a model that the layout has no place for, parameters that are not the configuration's, and a folder that holds a checkpoint.
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
    """Returns the configuration that a config.json describes. Raises InputError for what is missing, unknown or not supported, by its name."""
    kind = settings.get("model_type")
    if kind not in NAMES:
        raise InputError(f"config.json has model_type={kind!r}: {suggest(str(kind), NAMES)}")
    settings = DEFAULTS | _without_floats_in_words(dict(settings))
    _check_settings(kind, settings)
    sizes = {name: settings[key] for key, name in NAMES[kind].items()}
    if sizes.get("dt_rank") == "auto":
        sizes["dt_rank"] = math.ceil(sizes["d_model"] / 16)
    inner = sizes["expand"] * sizes["d_model"]
    for key, implied in {"intermediate_size": inner, "head_dim": inner // sizes.get("heads", 1)}.items():
        if key in settings and settings[key] != implied and (key, kind) != ("head_dim", "mamba"):
            raise InputError(f"config.json has {key}={settings[key]}, but hidden_size, expand and num_heads make it {implied}: other values are not supported")
    task = Task("language", vocab=settings["vocab_size"])
    pattern = (kind,) * settings["num_hidden_layers"]
    return Model(pattern=pattern, mlp_ratio=0.0, tie_embeddings=settings["tie_word_embeddings"], task=task, **sizes)


def settings_of(config: Model) -> dict[str, Any]:
    """Returns the config.json of a model; the inverse of `model_config`. Raises InputError for a model that the layout has no place for."""
    kind, states = config.pattern[0], {part.d_state for part in config.blocks}
    if kind not in NAMES or len(set(config.pattern)) > 1:
        raise InputError(f"model.pattern={config.pattern} has no place in this layout: it holds mixers of one kind, mamba or mamba2")
    if len(states) > 1:
        raise InputError(f"model.block_states={config.block_states} has no place in this layout: it holds one d_state of all blocks")
    for key, wanted in (("mlp_ratio", 0.0), ("conv", 0), ("norm", "rms"), ("memory_bits", ())):
        if getattr(config, key) != wanted:
            raise InputError(f"model.{key}={getattr(config, key)!r} has no place in this layout, which knows {wanted!r} alone")
    if config.task.kind != "language" or not config.task.vocab:
        raise InputError(f"the task {config.task} has no place in this layout: it holds language models, with the size of the vocabulary in task.vocab")
    inner, architecture = config.expand * config.d_model, {"mamba": "MambaForCausalLM", "mamba2": "Mamba2ForCausalLM"}[kind]
    found = {"architectures": [architecture], "model_type": kind, "vocab_size": config.task.vocab, "num_hidden_layers": len(config.pattern)}
    found |= {key: getattr(config.blocks[0], name) for key, name in NAMES[kind].items()}
    found |= {"tie_word_embeddings": config.tie_embeddings, "use_bias": False, "use_conv_bias": True, "hidden_act": "silu", "dtype": "float32"}
    if kind == "mamba2":
        return found | {"head_dim": inner // config.heads}
    return found | {"intermediate_size": inner, "time_step_rank": config.dt_rank or math.ceil(config.d_model / 16)}


def parameters(config: Model, weights: Mapping[str, np.ndarray]) -> PyTree:
    """Returns the parameters that tensors of this layout hold. Raises InputError for keys that are missing or left over, and for other shapes."""
    shapes, rest, found = _shapes(config), dict(weights), {}
    tied = rest.pop("lm_head.weight", None) if config.tie_embeddings else None
    if tied is not None and not np.array_equal(tied, rest.get("backbone.embeddings.weight")):
        raise InputError("lm_head.weight differs from backbone.embeddings.weight, but config.json has tie_word_embeddings=true: set it to false")
    rows = list(_rows(config))
    _check_keys({row.key for row in rows}, set(rest))
    for row in rows:
        value, parts = rest[row.key], [row.theirs(np.broadcast_to(np.float32(0), shapes[target])).shape for target in row.targets]
        wanted = (sum(part[0] for part in parts), *parts[0][1:])
        if value.shape != wanted:
            raise InputError(f"{row.key} has shape {value.shape}, config.json asks for {wanted}: they are not of the same model")
        cuts = np.cumsum([part[0] for part in parts])[:-1]
        for target, part in zip(row.targets, np.split(value, cuts), strict=True):
            found[target] = jnp.asarray(row.ours(part).reshape(shapes[target]), jnp.float32)
    return unflatten_dict(found, sep="/")


def tensors(config: Model, params: PyTree) -> Weights:
    """Returns the tensors of this layout that hold these parameters; the inverse of `parameters`. Raises InputError as it does."""
    flat, shapes = flatten_dict(dict(params), sep="/"), _shapes(config)
    _check_keys(set(shapes), set(flat), "parameters")
    for name, shape in shapes.items():
        if flat[name].shape != shape:
            raise InputError(f"the parameter {name} has shape {flat[name].shape}, the configuration asks for {shape}: they are not of the same model")
    joined = {row.key: np.concatenate([row.theirs(np.asarray(flat[target], np.float32)) for target in row.targets]) for row in _rows(config)}
    return {key: np.ascontiguousarray(value) for key, value in joined.items()}


def import_run(folder: str | pathlib.Path, workdir: str, *, file: str = "", length: int = 256, batch_size: int = 8) -> Experiment:
    """Writes a run that holds the checkpoint of `folder`, as `train.py` writes its own, and returns its experiment.

    Args:
      workdir: a new folder. file: the text that is the run's data; without one `eval.py` must be given its --file.
      length, batch_size: steps of a window and windows of a batch, when the run is read.

    Raises:
      InputError: for what `load` refuses, a folder without a tokenizer that can be read, a text that has other tokens, and a folder that is in use.
    """
    check_place(workdir)
    config, params = load(folder)
    taken = pathlib.Path(workdir)
    if taken.exists() and any(taken.iterdir() if taken.is_dir() else [taken]):
        raise InputError(f"--workdir={workdir} exists already: give a new folder, so that nothing is overwritten")
    known = {"task": dataclasses.asdict(config.task)} | vocabulary_of(pathlib.Path(folder), config.task.vocab)
    source = Data(source="text", file=file or NO_TEXT, level=known["level"], length=length, batch_size=batch_size)
    metadata = data.load(source, known).metadata() if file else known
    model = dataclasses.replace(config, task=Task())
    experiment = Experiment(pathlib.Path(folder).resolve().name, source, model, Optimizer(warmup_steps=0), Training(steps=1))
    run = Workdir(workdir, experiment)
    run.describe(metadata)
    run.save_best(0, params, {})
    run.close()
    return experiment


def vocabulary_of(folder: pathlib.Path, size: int) -> dict[str, Any]:
    """Returns what a run must remember of how text becomes tokens: "vocabulary", "level" and, of subwords, "tokenizer"."""
    path = folder / "tokenizer.json"
    if not path.is_file():
        if size < len(BYTES):
            raise InputError(f"{folder} has no tokenizer.json, and a vocabulary of {size} tokens is too small for bytes: nothing says what its tokens mean")
        return {"vocabulary": _named(enumerate(BYTES), size), "separator": "", "level": "byte"}
    content = _read_json(path)
    special = {token["content"] for token in content.get("added_tokens", ()) if token.get("special")}
    names = content.get("model", {}).get("vocab", {})
    tokens = names if isinstance(names, Mapping) else {token[0]: number for number, token in enumerate(names)}
    plain = not content.get("normalizer") and not content.get("pre_tokenizer") and all(len(token) == 1 for token in set(tokens) - special)
    every = {token["content"]: token["id"] for token in content.get("added_tokens", ())} | dict(tokens)
    found = {"vocabulary": _named(((number, token) for token, number in every.items()), size), "separator": ""}
    return found | ({"level": "character"} if plain else {"level": "subword", "tokenizer": path.read_text()})


def main(argv: list[str] | None = None) -> None:
    """The command: imports a folder as a run."""
    parser = argparse.ArgumentParser(prog="python -m selssm_jax.interop.huggingface", description="Imports a Mamba or Mamba-2 checkpoint as a run.")
    parser.add_argument("folder", help="a local folder with config.json and safetensors, in the layout of transformers")
    parser.add_argument("--workdir", required=True, help="the run to write, a new folder")
    parser.add_argument("--file", default="", help="a text that is the run's data; without one, eval.py must be given its --file")
    parser.add_argument("--length", type=int, default=256, help="steps of a window (default %(default)s)")
    parser.add_argument("--batch_size", type=int, default=8, help="windows of a batch (default %(default)s)")
    chosen = parser.parse_args(argv)
    with reported():
        found = import_run(chosen.folder, chosen.workdir, file=chosen.file, length=chosen.length, batch_size=chosen.batch_size)
        print(f"{chosen.workdir}: {len(found.model.pattern)} blocks of {found.model.pattern[0]}, d_model {found.model.d_model}; python eval.py --workdir ...")


def _rows(config: Model) -> Iterable[Row]:
    """The table of a model, layer by layer."""
    for row in (*AROUND, *MIXERS[config.pattern[0]], *(() if config.tie_embeddings else (READOUT,))):
        for layer in range(len(config.pattern)) if "{}" in row.key else (0,):
            yield row._replace(key=row.key.format(layer), targets=tuple(target.format(layer) for target in row.targets))


def _shapes(config: Model) -> dict[str, tuple[int, ...]]:
    """Of all parameters, by their paths."""
    found = jax.eval_shape(lambda: SequenceModel(config).init(jax.random.key(0), jnp.zeros((1, 2), jnp.int32))["params"])
    return {name: leaf.shape for name, leaf in flatten_dict(found, sep="/").items()}


def _check_keys(expected: set[str], found: set[str], what: str = "tensors") -> None:
    missing, unknown = sorted(expected - found), sorted(found - expected)
    if missing or unknown:
        parts = [f"{len(names)} {word}: {', '.join(names)}" for word, names in (("missing", missing), ("left over", unknown)) if names]
        raise InputError(f"the {what} are not those that the configuration asks for, {'; '.join(parts)}")


def _check_settings(kind: str, settings: Mapping[str, Any]) -> None:
    for key in (*NAMES[kind], "vocab_size", "num_hidden_layers"):
        if key not in settings:
            raise InputError(f"config.json has no {key}, which a model_type={kind!r} needs: restore it")
    known = set(NAMES[kind]) | READ | set(REQUIRED) | WITHOUT_EFFECT | {"time_step_rank"}
    for key, value in settings.items():
        if key in REQUIRED and value not in REQUIRED[key]:
            raise InputError(f"config.json has {key}={value!r}, which is not supported: only {REQUIRED[key][0]!r} is")
        if key not in known and not key.startswith("_"):
            raise InputError(f"config.json has {key}={value!r}, which is not known: remove it, if it changes nothing that the model computes")


def _without_floats_in_words(settings: Any) -> Any:
    """JSON has no infinity: newer versions write {"__float__": "Infinity"}."""
    if isinstance(settings, dict):
        return float(settings["__float__"]) if set(settings) == {"__float__"} else {key: _without_floats_in_words(value) for key, value in settings.items()}
    return [_without_floats_in_words(value) for value in settings] if isinstance(settings, list) else settings


def _checked_folder(folder: str | pathlib.Path) -> pathlib.Path:
    place = pathlib.Path(folder)
    if not place.is_dir():
        raise InputError(f"{folder} is no folder: give a local one, with config.json and {WHOLE}; nothing is downloaded")
    if not (place / "config.json").is_file():
        raise InputError(f"{folder} holds no config.json: give the folder of a checkpoint in the layout of transformers")
    if not (place / WHOLE).is_file() and not (place / INDEX).is_file():
        if any(place.glob("*.bin")) or any(place.glob("*.pt")):
            raise InputError(
                f"{folder} holds {PICKLE} or the like alone, a pickle, which can run any code when it is opened, so it is not read: "
                "convert it to safetensors where you trust it, for example with save_pretrained of transformers"
            )
        raise InputError(f"{folder} holds neither {WHOLE} nor {INDEX}: give the folder of a whole checkpoint")
    return place


def _tensors(folder: pathlib.Path) -> Weights:
    """All tensors of a checkpoint, of one file or of several that an index names."""
    if (folder / WHOLE).is_file():
        return _read_tensors(folder / WHOLE)
    placed = _read_json(folder / INDEX).get("weight_map", {})
    found: Weights = {}
    for name in sorted(set(placed.values())):
        if pathlib.PurePath(name).name != name:
            raise InputError(f"{INDEX} names the file {name!r}: expected files of the folder itself")
        part = _read_tensors(folder / name)
        _check_keys({key for key, file in placed.items() if file == name}, set(part), f"tensors of {name}")
        found |= part
    return found


def _read_tensors(path: pathlib.Path) -> Weights:
    try:
        with safetensors.safe_open(path, framework="flax") as file:
            return {key: np.asarray(file.get_tensor(key)) for key in file.keys()}  # noqa: SIM118  no mapping
    except (OSError, safetensors.SafetensorError) as error:
        raise InputError(f"{path} cannot be read ({error}): restore it") from error


def _read_json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{path} cannot be read as JSON ({error}): restore it") from error


def _named(tokens: Iterable[tuple[int, str]], size: int) -> list[str]:
    """The name of every token; those that have none are called by their number."""
    names = [f"<{number}>" for number in range(size)]
    for number, token in tokens:
        if number < size:
            names[number] = token
    return names


if __name__ == "__main__":
    main()
