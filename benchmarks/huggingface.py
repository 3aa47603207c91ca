"""Claim: Mamba decodes at least 1.5 times as fast as transformers on a CPU, and reads 2048 tokens at least 3 times as
fast.

Same weights, the random ones of transformers, on both sides: d_model 768, 24 layers, N 16, a vocabulary of 50280,
float32, the size of mamba-130m; one sequence. Decoding is greedy, from a prompt of one token: ours one compiled loop,
and one compiled step called from Python; transformers' `generate`, and its model called step by step with its cache.
Beside them how long it takes to read every weight once, as a sum, which bounds any decoder from below: each token needs
all of them. Forward is one call over 2048 tokens with the logits of all.

transformers runs its PyTorch path, which is what it has on a CPU, with as many threads as there are cores and with one:
on a busy machine its threads wait for each other at every operation, and one may be faster. Ratios are to the faster of
the two. Calls take turns; ratios are medians over rounds.
"""

import copy
import os
import pathlib
import tempfile
from collections.abc import Callable
from statistics import median
from typing import Any

import jax
import jax.numpy as jnp
import measure
import numpy as np
import torch
import transformers

from selssm_jax.interop import huggingface
from selssm_jax.model import SequenceModel

SIZE = {"hidden_size": 768, "num_hidden_layers": 24, "state_size": 16, "vocab_size": 50280}
NEW, FORWARD, CHECKED = 16, 2048, 256  # tokens that are written, are read at once, and are compared with float64
CORES = len(os.sched_getaffinity(0))


def benchmark(rounds: int) -> dict[str, Any]:
    return {"dtype": "float32", "seed": 0, "size": SIZE | {"written": NEW, "read": FORWARD}} | compare(
        rounds, SIZE, FORWARD, CHECKED
    )


def compare(rounds: int, size: dict[str, int], length: int, checked: int) -> dict[str, Any]:
    theirs, ours, params = models(size)
    tokens = np.random.default_rng(0).integers(1, size["vocab_size"], (1, length))
    decoders = decoding(theirs, ours, params, tokens[:, :1])
    written = [np.asarray(call(*arguments)).ravel().tolist() for call, arguments in decoders.values()]
    agreement = {"same_greedy_tokens": all(tokens == written[0] for tokens in written)} | errors(
        theirs, ours, params, tokens[:, :checked]
    )
    read = measure.compiled(lambda params: sum(leaf.sum() for leaf in jax.tree.leaves(params)), params)
    times = measure.in_turn(decoders | {"every weight once": (read, (params,))}, rounds)
    times |= measure.in_turn(forward(theirs, ours, params, tokens), max(2, rounds // 3))
    nbytes, once = sum(leaf.nbytes for leaf in jax.tree.leaves(params)), times["every weight once"]
    step = {name: [second / NEW for second in times[name]] for name in decoders} | {"every weight once": once}
    return {
        "weights_megabytes": round(nbytes / 1e6, 1),
        "threads": {"jax": CORES, "torch": sorted({1, CORES})},
        "versions": {"torch": torch.__version__, "transformers": transformers.__version__},
        "ratios": {
            "generate against our loop": {
                "peer_over_ours": measure.ratio(faster(step, "generate"), step["our loop"]),
                "at_least": 1.5,
            },
            "generate against our step called from Python": {
                "peer_over_ours": measure.ratio(faster(step, "generate"), step["our step"])
            },
            "their step called from Python against ours": {
                "peer_over_ours": measure.ratio(faster(step, "transformers' step"), step["our step"])
            },
            "forward": {
                "peer_over_ours": measure.ratio(faster(times, "transformers' forward"), times["our forward"]),
                "at_least": 3.0,
            },
            "our loop against reading every weight once": {"ours_over_floor": measure.ratio(step["our loop"], once)},
        },
        "tokens_per_second": {name: round(1 / median(values), 2) for name, values in step.items()},
        "gigabytes_per_second": {name: round(nbytes / 1e9 / median(values), 2) for name, values in step.items()},
        "milliseconds": measure.milliseconds(times),
        "agreement": agreement,
    }


def faster(times: dict[str, list[float]], name: str) -> list[float]:
    """Of each round, with one thread or with all."""
    return [min(both) for both in zip(times[f"{name}, threads 1"], times[f"{name}, threads {CORES}"], strict=True)]


def errors(theirs: Any, ours: SequenceModel, params: Any, tokens: np.ndarray) -> dict[str, float]:
    """Largest difference from the logits of transformers in float64, over the largest logit."""
    with torch.no_grad():
        exact = copy.deepcopy(theirs).double()(torch.tensor(tokens)).logits.numpy()
        found = {
            "transformers": theirs(torch.tensor(tokens)).logits.numpy(),
            "ours": ours.apply({"params": params}, jnp.asarray(tokens))[0],
        }
    return {
        f"error of {name}": float(np.abs(np.asarray(logits) - exact).max() / np.abs(exact).max())
        for name, logits in found.items()
    }


def threaded(name: str, call: Callable[..., Any], *arguments: Any) -> measure.Calls:
    """A call into torch with one thread, and with all."""

    def run(threads: int) -> Any:
        torch.set_num_threads(threads)
        with torch.no_grad():
            return call(*arguments)

    return {f"{name}, threads {threads}": (run, (threads,)) for threads in sorted({1, CORES})}


def models(size: dict[str, int]) -> tuple[Any, SequenceModel, Any]:
    """(their model, ours, our parameters), of the same weights."""
    torch.manual_seed(0)
    theirs = transformers.MambaForCausalLM(transformers.MambaConfig(**size)).eval()
    theirs.generation_config.eos_token_id = None
    with tempfile.TemporaryDirectory() as folder:
        theirs.save_pretrained(pathlib.Path(folder) / "hub")
        config, params = huggingface.load(pathlib.Path(folder) / "hub")
    return theirs, SequenceModel(config), params


def decoding(theirs: Any, ours: SequenceModel, params: Any, prompt: np.ndarray) -> measure.Calls:
    """What writes NEW tokens after a prompt of one, in NEW steps."""
    state = ours.apply({"params": params}, 1, method="initial_state")
    token = jnp.asarray(prompt[:, 0], jnp.int32)

    def one(params: Any, token: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        logits, state = ours.apply({"params": params}, token, state, method="step")
        return logits.argmax(-1).astype(jnp.int32), state

    def loop(params: Any, token: jax.Array, state: Any) -> jax.Array:
        def body(carry: tuple[jax.Array, Any], _: None) -> tuple[tuple[jax.Array, Any], jax.Array]:
            carry = one(params, *carry)
            return carry, carry[0]

        return jax.lax.scan(body, (token, state), None, NEW)[1]

    step = measure.compiled(one, params, token, state)

    def stepped(params: Any, token: jax.Array, state: Any) -> list[int]:
        found = []
        for _ in range(NEW):
            token, state = step(params, token, state)
            found.append(int(token[0]))
        return found

    return {
        "our loop": (measure.compiled(loop, params, token, state), (params, token, state)),
        "our step": (stepped, (params, token, state)),
        **threaded("generate", generate, theirs, torch.tensor(prompt)),
        **threaded("transformers' step", their_steps, theirs, torch.tensor(prompt)),
    }


def generate(theirs: Any, prompt: torch.Tensor) -> np.ndarray:
    options = {"attention_mask": torch.ones_like(prompt), "pad_token_id": 0, "do_sample": False}
    return theirs.generate(prompt, max_new_tokens=NEW, **options).numpy()[:, prompt.shape[1] :]


def their_steps(theirs: Any, token: torch.Tensor) -> list[int]:
    cache, found = None, []
    for _ in range(NEW):
        seen = theirs(token, cache=cache, use_cache=True)
        cache, token = seen.cache, seen.logits[:, -1:].argmax(-1)
        found.append(int(token))
    return found


def forward(theirs: Any, ours: SequenceModel, params: Any, tokens: np.ndarray) -> measure.Calls:
    """Logits of all tokens of one sequence."""
    program = measure.compiled(
        lambda params, tokens: ours.apply({"params": params}, tokens)[0], params, jnp.asarray(tokens)
    )
    calls = threaded(
        "transformers' forward", lambda tokens: theirs(tokens, use_cache=False).logits.numpy(), torch.tensor(tokens)
    )
    return {"our forward": (program, (params, jnp.asarray(tokens))), **calls}


if __name__ == "__main__":
    measure.run("huggingface", __doc__ or "", benchmark, rounds=9)
