"""Serves a trained run over HTTP, many sessions at a time: python -m selssm_jax.serving --workdir RUN.

curl -X POST localhost:8080/v1/predict -d '{"inputs": "the state"}'
curl -X POST localhost:8080/v1/sessions                                   begins a session, {"session": NAME}
curl -X POST localhost:8080/v1/sessions/NAME -d '{"inputs": " of"}'       reads on from its memory
curl -X POST localhost:8080/v1/generate -d '{"prompt": "the state", "tokens": 50}'      also "session": NAME
curl -X DELETE localhost:8080/v1/sessions/NAME
curl localhost:8080/health                                                also /metrics, for Prometheus
"""

from absl import flags

from selssm_jax import cli
from selssm_jax.errors import InputError
from selssm_jax.paths import check_folder

WORKDIR = flags.DEFINE_string("workdir", "", "the folder of the run, as given to train.py")
HOST = flags.DEFINE_string("host", "127.0.0.1", "the address to listen at; 0.0.0.0: at all of this machine")
PORT = flags.DEFINE_integer("port", 8080, "the port; 0: any that is free", lower_bound=0, upper_bound=65535)
SESSIONS = flags.DEFINE_integer("sessions", 1024, "sessions that are held, at most", lower_bound=1)
IDLE = flags.DEFINE_float("idle", 600.0, "seconds after which an unused session may be ended", lower_bound=0.0)
BATCH = flags.DEFINE_integer("batch", 64, "sessions that advance in one program, at most", lower_bound=1)
REQUEST = flags.DEFINE_integer("request_bytes", 1 << 20, "the largest request; a MiB by default", lower_bound=1)
TOKENS = flags.DEFINE_integer("most_tokens", 1024, "tokens that a request may have written, at most", lower_bound=1)
EXTEND = flags.DEFINE_multi_string("extend", [], "a .py file or module of yours that registers own parts; repeatable")


def _main(_: list[str]) -> None:
    """Loads the run, says where it listens, and serves until SIGTERM."""
    with cli.command():
        check_folder(WORKDIR.value)
        from selssm_jax.predict import load
        from selssm_jax.serving.server import Server, Service

        limits = {"capacity": SESSIONS.value, "most_tokens": TOKENS.value, "batch": BATCH.value}
        service = Service(load(WORKDIR.value), idle=IDLE.value, **limits)
        try:
            server = Server(service, HOST.value, PORT.value, request_bytes=REQUEST.value)
        except OSError as error:
            raise InputError(
                f"--host={HOST.value} --port={PORT.value} cannot be listened at ({error.strerror}): name another port"
            ) from error
        cli.show([f"serving {WORKDIR.value} at http://{HOST.value}:{server.server_address[1]}"])
        server.serve_until_signal()


if __name__ == "__main__":
    cli.run(_main, __name__)
