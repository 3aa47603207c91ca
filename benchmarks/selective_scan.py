"""Claim: on a CPU selective_scan beats the materialised associative scan of JAX ports of Mamba, and PyTorch's step
loop.

  python benchmarks/selective_scan.py    # with the extra [bench] installed

At B=1 T=2048 D=512 N=16 float32 it reads side by side: ours; the peer that builds (B, T, D, N) factors and drives,
composes them by jax.lax.associative_scan and reads the states out, differentiated by JAX; and a loop over steps in
PyTorch, whose inputs are unbound once and not indexed at every step. A ratio is the median over rounds of peer / ours.
Then both methods of selective_scan run at other shapes: what `auto` picks by.
"""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import measure
import torch
from jax import Array, lax

from selssm_jax.ops import selective_scan

SHAPE = (1, 2048, 512, 16)
SHAPES = [(1, 512, 64, 16), (1, 8192, 128, 16), (8, 256, 256, 16), (1, 2048, 512, 16), (1, 2048, 512, 64)]
TARGETS = {"forward": 8.0, "value_and_grad": 12.0, "temporaries": 20.0}
SEED = 0


def benchmark(rounds: int) -> dict[str, Any]:
    """Ours and both peers at the main shape, then every method at every shape."""
    return {
        "dtype": "float32",
        "seed": SEED,
        "torch": torch.__version__,
        "torch_threads": torch.get_num_threads(),
        **against_peers(rounds),
        "methods": [every_method(shape, -(-rounds // 3)) for shape in SHAPES],
    }


def against_peers(rounds: int) -> dict[str, Any]:
    """Milliseconds, bytes and ratios beside their targets."""
    weights, *given = inputs(SHAPE)
    scans = {"selective_scan": lambda *given: selective_scan(*given)[0], "materialised": materialised}
    programs: measure.Programs = {}
    for name, scan in scans.items():
        programs[name, "forward"] = measure.compiled(scan, *given), tuple(given)
        programs[name, "value_and_grad"] = measure.compiled(measure.weighted(scan), weights, *given), (weights, *given)
    temporaries = {name: measure.temporaries(programs[name, "value_and_grad"][0]) for name in scans}
    times = measure.in_turn(programs | step_loop(weights, given), rounds)
    ratios = {
        f"{kind} against {peer}": {"peer_over_ours": measure.ratio(times[peer, kind], times["selective_scan", kind])}
        | ({"at_least": TARGETS[kind]} if peer == "materialised" else {})
        for peer in ("materialised", "torch")
        for kind in ("forward", "value_and_grad")
    }
    less = round(temporaries["materialised"] / temporaries["selective_scan"], 1)
    ratios["temporaries against materialised"] = {"peer_over_ours": less, "at_least": TARGETS["temporaries"]}
    return {
        "shape": SHAPE,
        "rounds": rounds,
        "ratios": ratios,
        "milliseconds": measure.milliseconds(times),
        "temporary_bytes": temporaries,
    }


def every_method(shape: tuple[int, ...], rounds: int) -> dict[str, Any]:
    """Milliseconds of value and gradient by each method at one shape."""
    weights, *given = inputs(shape)
    calls: measure.Calls = {}
    for method in ("sequential", "chunked"):
        scan = partial(lambda *given, method: selective_scan(*given, method=method)[0], method=method)
        calls[method, "forward"] = measure.compiled(scan, *given), tuple(given)
        calls[method, "value_and_grad"] = measure.compiled(measure.weighted(scan), weights, *given), (weights, *given)
    return {"shape": shape, **measure.milliseconds(measure.in_turn(calls, rounds))}


def inputs(shape: tuple[int, ...]) -> tuple[Array, ...]:
    """Weights of a loss, then x, dt, A, B, C as Mamba has them at the start of training."""
    batch, steps, width, states = shape
    keys = jax.random.split(jax.random.key(SEED), 5)
    weights, x = (jax.random.normal(key, (batch, steps, width)) for key in keys[:2])
    dt = jnp.exp(jax.random.uniform(keys[2], (batch, steps, width), minval=jnp.log(1e-3), maxval=jnp.log(1e-1)))
    A = -jnp.broadcast_to(jnp.arange(1.0, states + 1), (width, states))
    B, C = (jax.random.normal(key, (batch, steps, states)) for key in keys[3:])
    return weights, x, dt, A, B, C


def materialised(x: Array, dt: Array, A: Array, B: Array, C: Array) -> Array:
    """The peer in JAX: all factors, drives and states exist at once."""
    a = jnp.exp(dt[..., None] * A)
    b = (dt * x)[..., None] * B[:, :, None]
    h = lax.associative_scan(lambda left, right: (left[0] * right[0], right[0] * left[1] + right[1]), (a, b), axis=1)[1]
    return jnp.einsum("btdn,btn->btd", h, C)


def step_loop(weights: Array, given: list[Array]) -> measure.Calls:
    """The peer in PyTorch: one step after the other."""
    factors, *inputs = (torch.from_dlpack(value).clone() for value in (weights, *given))
    learnt = [value.clone().requires_grad_() for value in inputs]

    def forward() -> None:
        with torch.no_grad():
            torch_scan(*inputs)

    def value_and_grad() -> None:
        torch.autograd.grad((torch_scan(*learnt) * factors).sum(), learnt)

    return {("torch", "forward"): (forward, ()), ("torch", "value_and_grad"): (value_and_grad, ())}


def torch_scan(x: torch.Tensor, dt: torch.Tensor, A: torch.Tensor, B: torch.Tensor, C: torch.Tensor) -> torch.Tensor:
    """The recurrence of selective_scan in PyTorch."""
    h, outputs = torch.zeros(x.shape[0], *A.shape), []
    for step, u, b, c in zip(dt.unbind(1), (dt * x).unbind(1), B.unbind(1), C.unbind(1), strict=True):
        h = torch.exp(step[..., None] * A) * h + u[..., None] * b[:, None]
        outputs.append((h @ c[..., None])[..., 0])
    return torch.stack(outputs, dim=1)


if __name__ == "__main__":
    measure.run("selective_scan", __doc__, benchmark, rounds=10)
