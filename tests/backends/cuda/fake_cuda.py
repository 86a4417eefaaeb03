"""What stands in for torch.cuda where there is no GPU: streams and graphs that only note what they are asked for."""

import contextlib

import torch

from vsrealbasicvsr.backends.cuda import streams


class FakeStream:
    """Work on it is done at once."""

    def __init__(self, *_, **__):
        pass

    def wait_stream(self, _):
        pass


class FakeCuda:
    """Replaces what capturing asks of torch.cuda. `refuses`: the driver does not end a capture that failed."""

    def __init__(self, monkeypatch, *, refuses=False):
        self.events, self.refuses, self.is_work_failing = [], refuses, False
        cuda = self

        class Graph:
            def __init__(self):
                self.is_ended = False

            def capture_begin(self, pool=None, capture_error_mode="global"):
                assert capture_error_mode == "thread_local"
                cuda.events.append("begin")
                self.is_broken = False
                cuda.capturing = self

            def capture_end(self):
                if self.is_broken and cuda.refuses:
                    cuda.events.append("refused")
                    raise RuntimeError("CUDA error: operation failed due to a previous error during capture")
                cuda.events.append("end")
                self.is_ended = True

            def pool(self):
                if not self.is_ended:
                    raise RuntimeError("Called CUDAGraph::pool() without a preceding successful capture.")
                return (0, 1)

            def replay(self):
                pass

        monkeypatch.setattr(streams, "_streams", {})
        for name, stand_in in {
            "CUDAGraph": Graph,
            "Stream": FakeStream,
            "graph_pool_handle": lambda: (0, 1),
            "current_stream": FakeStream,
            "stream": lambda _: contextlib.nullcontext(),
            "device": lambda _: contextlib.nullcontext(),
            "current_device": lambda: 0,
            "synchronize": lambda *_: None,
            "empty_cache": lambda: self.events.append("device cache emptied"),
        }.items():
            monkeypatch.setattr(torch.cuda, name, stand_in)
        monkeypatch.setattr(
            torch._C, "_host_emptyCache", lambda: self.events.append("host cache emptied"), raising=False
        )
        monkeypatch.setattr(
            torch._C, "_cuda_endAllocateToPool", lambda *_: self.events.append("pool closed"), raising=False
        )

    def invalidate(self):
        """What a step does that waits for the device in a capture."""
        self.capturing.is_broken = True
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")
