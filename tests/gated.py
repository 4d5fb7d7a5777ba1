"""What runs the batches of an engine in tests: opened and shut by hand."""

import threading
import time

LONG = 30.0  # seconds: only a test that fails waits for so long


class Gate:
    """What runs batches: waits until it is opened, and notes what it ran."""

    def __init__(self, model):
        self.model = model
        self.open = threading.Event()
        self.open.set()
        self.began = threading.Event()
        self.ran = []
        self.threads = []

    def __call__(self, entry, args, kwargs):
        self.ran.append((entry, len(args[0])))
        self.threads.append(threading.current_thread().name)
        self.began.set()
        assert self.open.wait(LONG)
        return self.model(*args, subnet=entry, **kwargs)

    def shut(self):
        self.open.clear()
        self.began.clear()
        self.ran.clear()
        self.threads.clear()

    def open_when(self, condition):
        """Open it as soon as something holds."""
        end = time.monotonic() + LONG
        while not condition() and time.monotonic() < end:
            time.sleep(0.001)
        self.open.set()


def held(engine, gate, x):
    """Return a future whose request the worker is busy with."""
    gate.shut()
    future = engine.submit(x)
    assert gate.began.wait(LONG)
    return future
