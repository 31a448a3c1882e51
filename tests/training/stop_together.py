"""One of several processes that loop until a signal, without training: prints where and why it stops."""

import time

from qualiclip_jax.errors import UserError
from qualiclip_jax.training import parallel, signals


def fail():
    raise UserError("only the primary process knows")


def main():
    """Checks `from_primary`, then loops."""
    parallel.initialize()
    sent = {"text": "x" * parallel.PIECE, "numbers": [1.5, None]}
    assert parallel.from_primary(lambda: sent if parallel.is_primary() else 1 / 0) == sent
    try:
        parallel.from_primary(fail)
    except UserError as error:
        print(f"error: {error}", flush=True)
    step = 0
    with signals.StopSignals() as stop:
        print("ready", flush=True)
        while not (name := stop.asked(step)):
            parallel.from_primary(time.time)  # the processes go in step
            step += 1
            time.sleep(0.02)
    print(f"{name} at {step}", flush=True)


if __name__ == "__main__":
    main()
