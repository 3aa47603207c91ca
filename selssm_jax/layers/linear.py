"""Time-invariant state space layers: S4D, S5 and the LRU. One pole of each conjugate pair is kept, and twice the real
part is read.

Their recurrence is h_t = a h_{t-1} + b(x_t), complex and diagonal; what a step does never depends on what it reads.
"""

import math
from functools import partial
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax.typing import DTypeLike
from jaxtyping import Array, Complex, Float, PRNGKeyArray

from selssm_jax.config.fields import check_value
from selssm_jax.config.mixers import PolesConfig, check_layer
from selssm_jax.layers import relevance_rules as rules
from selssm_jax.layers.bounds import Bounds, Inputs
from selssm_jax.layers.contract import Dynamics
from selssm_jax.layers.parameters import Layer
from selssm_jax.layers.projection import Projection, project
from selssm_jax.layers.state_axes import StateAxes
from selssm_jax.ops import linear_scan, shards
from selssm_jax.ops.boundaries import finite, poison, vary_alike
from selssm_jax.ops.discretize import bilinear, zero_order_hold
from selssm_jax.shapes import Activations, Reset, Rows

CHUNK = 64  # steps of S4D that are one convolution
STEP_SIZES = (1e-3, 1e-1)  # between which they start, log-uniformly
RULES = {"zoh": zero_order_hold, "bilinear": bilinear}
RING = (0.9, 0.999)  # of the moduli of the LRU's poles at the start
# of them: the whole circle by default in Orvieto et al. 2023, this slice of it where memories are long (section 3.4)
LARGEST_PHASE = math.pi / 10
LEAST_PHASE = 1e-12  # that its logarithm has

State = Complex[Array, "B ..."]


class Systems(NamedTuple):
    """What time-invariant layers are, S systems side by side: h_t = a h_{t-1} + B x_t, y_t = Re(C h_t), in complex128.

    a: (S, n). B: (S, n, m). C: (S, p, n). A layer returns its own by `systems`, and by `of_systems` the parameters that
    others would have.
    """

    a: Complex[np.ndarray, "S n"]
    B: Complex[np.ndarray, "S n m"]
    C: Complex[np.ndarray, "S p n"]


def exact_gelu(x: Float[Array, "..."]) -> Float[Array, "..."]:
    """x Phi(x), Phi the normal distribution function (Hendrycks and Gimpel 2016), which S4D was published with;
    derivatives of every order.
    """
    return x * _normal_cdf(x)


@jax.custom_jvp  # JAX 0.12 cannot differentiate erfc inside shard_map
def _normal_cdf(x: Array) -> Array:
    return jax.lax.erfc(-x * np.asarray(math.sqrt(0.5), x.dtype)) / 2


@_normal_cdf.defjvp
def _normal_cdf_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,) = primals
    density = jnp.exp(-x * x / 2) * np.asarray(1 / math.sqrt(2 * math.pi), x.dtype)
    return _normal_cdf(x), density * tangents[0]


def hippo_normal(poles: int) -> tuple[np.ndarray, np.ndarray]:
    """Returns (eigenvalues, eigenvectors) of the normal part of HiPPO-LegS of order 2 * poles, those of positive
    imaginary part.

    A_nk = -sqrt((n + 1/2) (k + 1/2)) for n > k, +sqrt(...) for n < k and -1/2 on the diagonal: -1/2 plus a
    skew-symmetric matrix (Gu et al. 2022, Smith et al. 2023, section 3.2). Eigenvalues have real part -1/2.
    """
    half = np.sqrt(np.arange(2 * poles) + 0.5)
    skew = np.triu(np.outer(half, half), 1) - np.tril(np.outer(half, half), -1)
    frequencies, vectors = np.linalg.eigh(-1j * skew)
    order = np.argsort(frequencies)[poles:]
    return -0.5 + 1j * frequencies[order], vectors[:, order]


class S4D(Layer):
    """d_model systems of one input each, N poles a system: h_t = a h_{t-1} + b x_t, y_t = 2 Re(C h_t) + D x_t (Gu,
    Gupta, Goel and Re 2022).

    (a, b) are A = -exp(log_decay) + i frequency under the zero-order hold (or the bilinear rule) of a step size a
    channel; the input map is 1. A starts as -1/2 + i pi n (S4D-Lin). The outputs then go, as published, through a GELU,
    that of the error function, and a gated linear map over channels.

    Attributes:
      d_state: 2 N, the real numbers that N complex poles are. rule: "zoh" or "bilinear".

    A sequence without resets is read as convolutions of some steps each, one step or a packed row by the recurrence
    itself: the same numbers.

    The state is h, (B, d_model, N), complex. Its components are the N poles, in all channels at once.
    """

    d_model: int
    d_state: int = 64
    rule: str = "zoh"
    dtype: DTypeLike = jnp.float32

    def setup(self) -> None:
        check_layer(PolesConfig, self)
        check_value(Literal["zoh", "bilinear"], self.rule, "rule")
        shape = (self.d_model, self.d_state // 2)
        self.log_decay = self.param("A_log_decay", nn.initializers.constant(math.log(0.5)), shape)
        self.frequency = self.param("A_frequency", _harmonics, shape)
        self.log_dt = self.param("log_dt", _log_uniform(*STEP_SIZES), (self.d_model,))
        self.C = self.param("C", nn.initializers.normal(math.sqrt(0.5)), (2, *shape))
        self.D = self.param("D", nn.initializers.normal(1.0), (self.d_model,))
        self.outward = Projection(2 * self.d_model, dtype=self.dtype)

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from h_0 = 0 if None, and returns (y, state after the last step); True in
        `reset` forgets.
        """
        start = self.initial_state(x.shape[0]) if state is None else state
        wide = rules.tap(self, "drive", x.astype(jnp.float32))
        if reset is None and x.shape[1] > 1:
            decay = lambda: self._powers(jnp.asarray([x.shape[1]]))  # noqa: E731
            y, last = shards.carry(partial(self._by_chunks, wide), decay, start)
        else:
            y, last = self._by_steps(wide, start, reset)
        y = rules.tap(self, "read", y) + self.D[None, None] * x
        return rules.gate_linear_units(self.outward(rules.activate(exact_gelu, y.astype(self.dtype)))), last

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the poles of all channels, gates of 1, and the largest drive of each."""
        a, b = self._discrete()
        return _invariant(a.ravel(), (jnp.abs(b) * inputs.largest(self.d_model)[:, None]).ravel())

    def state_axes(self) -> StateAxes:
        """Returns where the N poles are in the parameters."""
        return StateAxes(
            self.d_state // 2, {"A_log_decay": (1,), "A_frequency": (1,), "C": (2,)}, drive="", readout="C", size=2
        )

    def systems(self) -> Systems:
        """Returns the systems of all channels, of one input and one output each."""
        a, b = self._discrete()
        return Systems(
            *(np.asarray(part, complex) for part in (a, b[..., None], 2 * jax.lax.complex(*self.C)[:, None]))
        )

    def of_systems(self, systems: Systems) -> dict[str, np.ndarray]:
        """Returns the parameters of these systems, of as many poles as they have, at the step sizes that there are."""
        a, dt = systems.a, np.exp(np.asarray(self.log_dt, np.float64))[:, None]
        A = np.log(a) / dt if self.rule == "zoh" else 2 / dt * (a - 1) / (a + 1)
        b = (a - 1) / A if self.rule == "zoh" else dt / (1 - dt * A / 2)
        C = systems.C[:, 0] * systems.B[..., 0] / (2 * b)
        return {"A_log_decay": np.log(-A.real), "A_frequency": A.imag, "C": np.stack([C.real, C.imag])}

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns h_0 = 0; it does not grow with `steps`."""
        del steps
        return jnp.zeros((batch, self.d_model, self.d_state // 2), jnp.complex64)

    def _by_steps(self, x: Array, start: Array, reset: Array | None) -> tuple[Array, Array]:
        """(2 Re(C h), last state), by the recurrence: all states exist."""
        a, b = self._discrete()
        drive = b[None, None] * x[..., None]
        h, last = linear_scan(jnp.broadcast_to(a, drive.shape), drive, start, reset=reset)
        return self._readout(h), last

    def _by_chunks(self, x: Array, start: Array) -> tuple[Array, Array]:
        """(2 Re(C h), last state), by convolutions of at most `CHUNK` steps, between which the state is carried: no
        other state exists.
        """
        last, looped, parts = vary_alike((start, x))[0], x.shape[1] // CHUNK * CHUNK, []
        if looped > CHUNK:  # XLA aborts the process on the gradient of a loop of one turn over a batch in shards
            whole = x[:, :looped].reshape(x.shape[0], -1, CHUNK, x.shape[2]).swapaxes(0, 1)
            last, y = jax.lax.scan(lambda h, part: self._chunk(h, part), last, whole)
            parts.append(y.swapaxes(0, 1).reshape(x.shape[0], looped, x.shape[2]))
            x = x[:, looped:]
        for first in range(0, x.shape[1], CHUNK):
            last, y = self._chunk(last, x[:, first : first + CHUNK])
            parts.append(y)
        return jnp.concatenate(parts, axis=1), last

    def _chunk(self, h: Array, x: Array) -> tuple[Array, Array]:
        """(state after the chunk, 2 Re(C h) of its steps): sum_s K_{t-s} x_s with K_t = 2 Re(C a^t b), and what is left
        of the state before it.

        Products with masks do not hide what is not finite: they are of what is, and steps after the other are set to
        NaN.
        """
        bad, ill = ~jnp.isfinite(x), ~jnp.isfinite(h).all(axis=-1)
        x, h = finite(x), finite(h)
        _, b = self._discrete()
        powers = self._powers(jnp.arange(x.shape[1] + 1))  # (L + 1, D, N)
        kernel = self._readout((powers[:-1] * b[None])[None])[0]
        later = powers[1:] * jax.lax.complex(*self.C)[None]
        kept = jnp.einsum("tdn,bdn->btd", later.real, h.real) - jnp.einsum("tdn,bdn->btd", later.imag, h.imag)
        y = jnp.einsum("tsd,bsd->btd", _toeplitz(kernel), x) + 2 * kept
        late = powers[-2::-1] * b[None]
        own = jax.lax.complex(*(jnp.einsum("sdn,bsd->bdn", part, x) for part in (late.real, late.imag)))
        bad = jnp.einsum("ts,bsd->btd", jnp.tri(x.shape[1], dtype=x.dtype), bad.astype(x.dtype)) + ill[:, None] > 0
        return poison(powers[-1][None] * h + own, bad[:, -1, :, None]), poison(y, bad)

    def _powers(self, steps: Array) -> Array:
        """a^k for k of `steps`, (K, D, N)."""
        a, _ = self._discrete()
        # of a pole that decays below what float32 has, too
        logarithm = jnp.log(jnp.where(a == 0, jnp.finfo(jnp.float32).tiny, a))
        return jnp.exp(logarithm[None] * steps[:, None, None])

    def _readout(self, h: Array) -> Array:
        """2 Re(C h)."""
        return 2 * (jnp.einsum("btdn,dn->btd", h.real, self.C[0]) - jnp.einsum("btdn,dn->btd", h.imag, self.C[1]))

    def _discrete(self) -> tuple[Array, Array]:
        A = jax.lax.complex(-jnp.exp(self.log_decay), self.frequency)
        return RULES[self.rule](A, jnp.broadcast_to(jnp.exp(self.log_dt)[:, None], A.shape))


class _Shared(Layer):
    """What S5 and the LRU share: h_t = a h_{t-1} + b B x_t, P poles for all channels, with (a, b) of `_discrete`, B (D,
    2 P) and C (2 P, D).
    """

    d_model: int
    d_state: int = 64
    dtype: DTypeLike = jnp.float32

    READ = 1.0  # y = READ Re(C h)

    def dynamics(self, x: Activations) -> Dynamics:
        """Returns A_t and B_t of every step, which are the same at all of them."""
        a, b = self._discrete()
        return _constant_dynamics(a, b[:, None] * _complex(self.B.T, axis=0), x)

    def bounds(self, inputs: Inputs) -> Bounds:
        """Returns the poles, gates of 1, and the largest drive of each."""
        a, b = self._discrete()
        return _invariant(a, jnp.abs(b) * _reach(inputs, self.B))

    def systems(self) -> Systems:
        """Returns the one system of all channels."""
        a, b = self._discrete()
        return Systems(
            *(
                np.asarray(part, complex)[None]
                for part in (a, b[:, None] * _complex(self.B.T, axis=0), self.READ * _complex(self.C, axis=0).T)
            )
        )

    def of_systems(self, systems: Systems) -> dict[str, np.ndarray]:
        """Returns the parameters of such a system, of as many poles as it has."""
        poles, b = self._of_poles(systems.a[0])
        B, C = systems.B[0].T / b, systems.C[0].T / self.READ
        return poles | {"B": np.concatenate([B.real, B.imag], axis=1), "C": np.concatenate([C.real, C.imag])}

    def state_axes(self) -> StateAxes:
        """Returns where the P poles are in the parameters of either layer."""
        own = dict.fromkeys(("A_log_decay", "A_frequency", "log_dt", "nu", "theta", "gamma_log"), (0,))
        return StateAxes(self.d_state // 2, own | {"B": (1,), "C": (0,)}, drive="B", readout="C", size=2)

    def initial_state(self, batch: Rows, steps: int | None = None) -> State:
        """Returns h_0 = 0; it does not grow with `steps`."""
        del steps
        return jnp.zeros((batch, self.d_state // 2), jnp.complex64)

    def _states(
        self, x: Activations, state: State | None, reset: Reset | None
    ) -> tuple[Complex[Array, "B T P"], State]:
        """(states of all steps, the last one); the first are sown."""
        a, b = self._discrete()
        drive = b[None, None] * rules.tap(
            self, "drive", _complex(project(x.astype(self.dtype), self.B).astype(jnp.float32))
        )
        h, last = linear_scan(jnp.broadcast_to(a, drive.shape), drive, _start(state, drive), reset=reset)
        h = rules.tap(self, "read", h)
        self.sow("intermediates", "state", h)
        return h, last


class S5(_Shared):
    """One system for all channels, P poles: h_t = a h_{t-1} + b B x_t, y_t = 2 Re(C h_t) + D x_t (Smith, Warrington and
    Linderman 2023).

    (a, b) are A = -exp(log_decay) + i frequency under the zero-order hold of a step size a pole. A starts as the
    eigenvalues of HiPPO's normal matrix of order 2 P, one of each conjugate pair, B and C as random maps in its
    eigenvectors. The outputs then go, as published, through y * sigmoid(W y) of y = gelu(y).

    Attributes:
      d_state: 2 P, the real numbers that P complex poles are.

    The state is h, (B, P), complex. Sown as intermediates: "state", (B, T, P).
    """

    READ = 2.0

    def setup(self) -> None:
        check_layer(PolesConfig, self)
        poles = self.d_state // 2
        start, vectors = hippo_normal(poles)
        self.log_decay = self.param("A_log_decay", nn.initializers.constant(math.log(0.5)), (poles,))
        self.frequency = self.param(
            "A_frequency", lambda _, shape: jnp.asarray(start.imag, jnp.float32).reshape(shape), (poles,)
        )
        self.log_dt = self.param("log_dt", _log_uniform(*STEP_SIZES), (poles,))
        self.B = self.param("B", _in_basis(vectors.conj().T), (self.d_model, 2 * poles))
        self.C = self.param("C", _out_of_basis(vectors), (2 * poles, self.d_model))
        self.D = self.param("D", nn.initializers.normal(1.0), (self.d_model,))
        self.gate = Projection(self.d_model, use_bias=False, dtype=self.dtype)

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from h_0 = 0 if None, and returns (y, state after the last step); True in
        `reset` forgets.
        """
        h, last = self._states(x, state, reset)
        y = rules.activate(nn.gelu, _read(h, self.C, self.dtype) + self.D.astype(self.dtype)[None, None] * x)
        return y * rules.detach(nn.sigmoid(self.gate(y))), last

    def _discrete(self) -> tuple[Array, Array]:
        return zero_order_hold(jax.lax.complex(-jnp.exp(self.log_decay), self.frequency), jnp.exp(self.log_dt))

    def _of_poles(self, a: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The parameters of poles, at steps of 1, and b."""
        A = np.log(a)
        return {"A_log_decay": np.log(-A.real), "A_frequency": A.imag, "log_dt": np.zeros(len(a))}, (a - 1) / A


class LRU(_Shared):
    """h_t = lambda h_{t-1} + gamma B x_t, y_t = Re(C h_t) + D x_t, lambda = exp(-exp(nu) + i exp(theta)) (Orvieto et
    al. 2023, section 3).

    Moduli of lambda start uniform in area on the ring `RING`, phases uniform up to `LARGEST_PHASE`; gamma starts as
    sqrt(1 - |lambda|^2), so that a white input makes states of its own size. Blocks give the nonlinearity: their MLP.

    Attributes:
      d_state: 2 P, the real numbers that P complex poles are.

    The state is h, (B, P), complex. Sown as intermediates: "state", (B, T, P).
    """

    def setup(self) -> None:
        check_layer(PolesConfig, self)
        poles = self.d_state // 2
        self.nu = self.param("nu", _log_decays, (poles,))
        self.theta = self.param(
            "theta", lambda key, shape: jnp.log(LARGEST_PHASE * jax.random.uniform(key, shape, minval=1e-3)), (poles,)
        )
        decay = self.nu
        self.gamma_log = self.param(
            "gamma_log", lambda _, shape: (jnp.log(-jnp.expm1(-2 * jnp.exp(decay))) / 2).reshape(shape), (poles,)
        )
        self.B = self.param("B", nn.initializers.normal(1 / math.sqrt(2 * self.d_model)), (self.d_model, 2 * poles))
        self.C = self.param("C", nn.initializers.normal(1 / math.sqrt(poles)), (2 * poles, self.d_model))
        self.D = self.param("D", nn.initializers.normal(1.0), (self.d_model,))

    def __call__(
        self, x: Activations, state: State | None = None, *, reset: Reset | None = None
    ) -> tuple[Activations, State]:
        """Reads a sequence from `state` on, from h_0 = 0 if None, and returns (y, state after the last step); True in
        `reset` forgets.
        """
        h, last = self._states(x, state, reset)
        return _read(h, self.C / 2, self.dtype) + self.D.astype(self.dtype)[None, None] * x, last

    def _discrete(self) -> tuple[Array, Array]:
        return jnp.exp(jax.lax.complex(-jnp.exp(self.nu), jnp.exp(self.theta))), jnp.exp(self.gamma_log)

    def _of_poles(self, a: np.ndarray) -> tuple[dict[str, np.ndarray], np.ndarray]:
        """The parameters of poles, phases from 0 to 2 pi, and gamma, 1."""
        phase = np.maximum(np.angle(a) % (2 * np.pi), LEAST_PHASE)
        return {"nu": np.log(-np.log(np.abs(a))), "theta": np.log(phase), "gamma_log": np.zeros(len(a))}, np.ones(
            len(a)
        )


def _toeplitz(kernel: Float[Array, "L D"]) -> Float[Array, "L L D"]:
    """K_{t-s}, 0 for s > t: rows of one circle of 2 L numbers, each a step further round. Copies alone: gathering would
    make the gradient scatter.
    """
    length = len(kernel)
    circle = jnp.concatenate([kernel[:1], jnp.zeros_like(kernel), kernel[:0:-1]])
    rows = jnp.tile(circle, (length, 1))[: length * (2 * length - 1)]
    return rows.reshape(length, 2 * length - 1, -1)[:, :length]


def _start(state: State | None, drive: Array) -> State:
    return jnp.zeros((drive.shape[0], *drive.shape[2:]), drive.dtype) if state is None else state


def _complex(parts: Array, axis: int = -1) -> Array:
    return jax.lax.complex(*jnp.split(parts, 2, axis=axis))


def _read(h: Array, C: Array, dtype: DTypeLike) -> Array:
    """2 Re(C h) with C = C_re + i C_im given as (C_re; C_im)."""
    real, imaginary = jnp.split(C, 2)
    return project(jnp.concatenate([h.real, h.imag], axis=-1).astype(dtype), 2 * jnp.concatenate([real, -imaginary]))


def _invariant(a: Array, drive: Array) -> Bounds:
    ones = jnp.ones(a.shape)
    return Bounds(a, ones, ones, drive_bound=drive)


def _reach(inputs: Inputs, B: Array) -> Array:
    """The largest modulus of B x."""
    return jnp.hypot(*jnp.split(inputs.reach(B), 2))


def _constant_dynamics(a: Array, B: Array, x: Array) -> Dynamics:
    leading = x.shape[:2]
    return Dynamics(jnp.broadcast_to(a, (*leading, *a.shape)), jnp.broadcast_to(B, (*leading, *B.shape)))


def _harmonics(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "D N"]:
    del key
    return jnp.broadcast_to(jnp.pi * jnp.arange(shape[-1], dtype=jnp.float32), shape)


def _log_uniform(low: float, high: float) -> Any:
    return lambda key, shape: jax.random.uniform(key, shape, minval=math.log(low), maxval=math.log(high))


def _log_decays(key: PRNGKeyArray, shape: tuple[int, ...]) -> Float[Array, "P"]:
    """nu with |lambda|^2 = exp(-2 exp(nu)) uniform between the squares of `RING`."""
    low, high = (radius**2 for radius in RING)
    return jnp.log(-0.5 * jnp.log(jax.random.uniform(key, shape, minval=low, maxval=high)))


def _in_basis(rotation: np.ndarray) -> Any:
    """Initialises B, (D, 2 P), as V* B' of a random real B' with entries of variance 1 / D."""

    def init(key: PRNGKeyArray, shape: tuple[int, int]) -> Array:
        real = jax.random.normal(key, (rotation.shape[1], shape[0]), jnp.float32) / math.sqrt(shape[0])
        B = jnp.asarray(rotation, jnp.complex64) @ real
        return jnp.concatenate([B.real, B.imag]).T

    return init


def _out_of_basis(vectors: np.ndarray) -> Any:
    """Initialises C, (2 P, D), as C' V of a random real C' with entries of variance 1 / 2 P."""

    def init(key: PRNGKeyArray, shape: tuple[int, int]) -> Array:
        real = jax.random.normal(key, (shape[1], len(vectors)), jnp.float32) / math.sqrt(len(vectors))
        C = real @ jnp.asarray(vectors, jnp.complex64)
        return jnp.concatenate([C.real.T, C.imag.T])

    return init
