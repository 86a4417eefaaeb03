"""What stands in for CUDA graphs where there is no GPU."""

from collections import Counter


class FakeCapture:
    """Captures as a CUDA graph does, with buffers of its own that replays overwrite; or wrongly, if told to."""

    def __init__(self, wrong=None):
        self.captured, self.num_replays, self.done, self._wrong = [], 0, Counter(), wrong

    def __call__(self, calls):
        self.captured.append([call.name for call in calls])
        buffers = [tuple(x.clone() for x in call.arguments) for call in calls]

        def replay(arguments):
            self.num_replays += 1
            self.done[tuple(call.name for call in calls)] += 1
            for ours, given in zip(buffers, arguments, strict=True):
                for one, x in zip(ours, given, strict=True):
                    assert (one.shape, one.stride(), one.dtype) == (x.shape, x.stride(), x.dtype)
                    one.copy_(x)
            made = [call.step(*ours).clone() for call, ours in zip(calls, buffers, strict=True)]
            return [self._wrong(one, self.num_replays) for one in made] if self._wrong else made

        return replay
