"""The propagation through the frames of one scene: hidden states, and the walks that compute them.

Everything here runs on one thread, the device's compute thread.
"""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from vsrealbasicvsr.backends import PropagationInputs, return_freed_memory

from .cleaning import Cleaner
from .memory import spread, spread_to_end
from .source_frame import SourceFrame
from .windows import Window
from .worker import Worker

type Propagate = Callable[[Tensor, Tensor | None, Tensor | None], Tensor]


@dataclass(slots=True)
class SceneStates:
    """The hidden states of the frames of one window that belong to one scene.

    Attributes:
        frames: Consecutive frames of the scene that the window reads.
        kept: Those of them that the window keeps.
        starts_inside: Whether the scene has, or may have, frames before these, which the window does not read.
        ends_inside: The same after these.
        left: Kept frames that were not returned yet.
        next_forward: The frame that the forward walk computes next.
        forward_state: The state of the frame before `next_forward`.
        backward: Cached backward states.
        forward: Cached forward states.
    """

    frames: range
    kept: range
    starts_inside: bool
    ends_inside: bool
    left: set[int]
    next_forward: int
    forward_state: Tensor | None = None
    backward: dict[int, Tensor] = field(default_factory=dict)
    forward: dict[int, Tensor] = field(default_factory=dict)

    @classmethod
    def over(cls, frames: range, window: Window) -> "SceneStates":
        """Create it for frames that a window reads, with nothing computed."""
        kept = range(max(frames.start, window.first), min(frames.stop, window.stop))
        starts_inside = frames.start == window.read_first < window.first
        ends_inside = frames.stop == window.read_stop > window.stop
        return cls(frames, kept, starts_inside, ends_inside, set(kept), frames.start)

    def restart(self) -> None:
        """Forget what was computed and what was returned."""
        self.drop_states()
        self.left = set(self.kept)

    def drop_states(self) -> None:
        """Forget the states; all of them can be computed again."""
        self.backward.clear()
        self.forward.clear()
        self.forward_state, self.next_forward = None, self.frames.start

    def finish(self, n: int) -> None:
        """Note that frame n was returned."""
        self.left.discard(n)
        self.backward.pop(n, None)
        self.forward.pop(n, None)

    def num_states(self) -> int:
        """Return the number of cached states."""
        return len(self.backward) + len(self.forward)

    def is_begun(self) -> bool:
        """Return whether there is a state from which a walk resumes."""
        return self.num_states() > 0 or self.forward_state is not None


@dataclass(frozen=True, slots=True)
class ScenePropagator:
    """Computes the states of one scene on one device, as far as they are asked for."""

    worker: Worker
    cleaner: Cleaner
    scene: SceneStates
    sources: Mapping[int, SourceFrame]

    def cleaned(self, i: int) -> Tensor:
        """Return frame i, cleaned."""
        return self.cleaner.cleaned(self.sources[i])

    def states(self, n: int) -> tuple[Tensor, Tensor]:
        """Return the backward and the forward state of frame n."""
        self._begin()
        return self._backward_state(n), self._forward_state(n)

    # ---- several frames concurrently ---------------------------------------------------------------------------------

    def _begin(self) -> None:
        """Before the first frame of the scene: process concurrently what the backend wants to process so.

        The results are those of one frame after the other, bit for bit.
        """
        if self.scene.is_begun():
            return
        frames, worker = self.scene.frames, self.worker
        size = self.cleaned(frames.stop - 1).shape[-2:]
        num, num_cleaned = worker.backend.num_concurrent_frames(*size), worker.backend.num_cleaned_together(*size)
        budget = worker.budget
        if num_cleaned == 1 or budget is None:
            return
        self.cleaner.clean_concurrently([self.sources[i] for i in frames], num_cleaned)
        if num == 1:
            return
        if budget.holds_flows:
            self._compute_flows(num)
        if budget.num_states >= 2 * len(self.scene.left):
            self._walk_both_ways()

    def _compute_flows(self, num: int) -> None:
        """Compute the flows of both walks, `num` at a time."""
        frames, kept = self.scene.frames, self.scene.kept
        after = [i for i in range(kept.start, frames.stop - 1) if self.sources[i].flow_from_next is None]
        before = [i for i in range(frames.start, kept.stop - 1) if self.sources[i].flow_to_next is None]
        pairs = [(i, i + 1) for i in after] + [(i + 1, i) for i in before]  # (ref, supp)
        for group in itertools.batched(pairs, num):
            refs, supps = (torch.cat([self.cleaned(i) for i in numbers]) for numbers in zip(*group, strict=True))
            for (ref, supp), flow in zip(group, torch.split(self.worker.backend.flow(refs, supps), 1), strict=True):
                if ref < supp:
                    self.sources[ref].flow_from_next = flow.clone()
                else:
                    self.sources[supp].flow_to_next = flow.clone()
            self.worker.statistics.flows += len(group)

    def _walk_both_ways(self) -> None:
        """Compute backward states from the last frame down, and with each step a forward state from the first frame up.

        These are the states of the frames that are left. Forward states that are missing then are computed when needed.
        """
        scene, state = self.scene, None
        for i in reversed(range(min(scene.left), scene.frames.stop)):
            backward, k = self._backward_inputs(i, state), scene.next_forward
            if k <= max(scene.left):
                state, scene.forward_state = self.worker.backend.propagate_both(backward, self._forward_inputs(k))
                scene.next_forward = k + 1
                if k in scene.left:
                    scene.forward[k] = scene.forward_state
                self._after_step(num_backward=1, num_forward=1)
            else:
                state = self.worker.backend.propagate_backward(*backward)
                self._after_step(num_backward=1)
            if i in scene.left:
                scene.backward[i] = state

    # ---- one frame after the other -----------------------------------------------------------------------------------

    def _backward_state(self, n: int) -> Tensor:
        """Return the backward state of frame n; walk down from the nearest cached state above it, or from the end.

        On the way as many states are cached as the budget allows, of the kept frames from the first one that is left:
        the frames will be wanted in ascending order.

            cached before    . . . . . . . c         (c: the state to start from)
            wanted               n
            cached then      . c . n . c . c         capacity for two more, besides n
        """
        cached = self.scene.backward
        if n in cached:
            return cached[n]
        begin = min((i for i in cached if i > n), default=self.scene.frames.stop)
        state = cached.get(begin)
        below = max((i for i in cached if i < n), default=None)
        lowest = min(self.scene.left) if below is None else below + 1
        self.cleaned(begin - 1)  # the budget is known from the first frame on
        capacity = max(self.worker.budget.num_states - self.scene.num_states(), 0) if self.worker.budget else 0
        if state is not None:
            wanted = spread(lowest, begin, capacity)
        else:
            wanted = spread_to_end(lowest, self.scene.kept.stop, capacity)
        wanted.add(n)
        if below is None:  # threads jumble neighbouring requests
            wanted.add(lowest)
        for i in reversed(range(lowest, begin)):
            state = self.worker.backend.propagate_backward(*self._backward_inputs(i, state))
            if i in wanted and i in self.scene.left:
                cached[i] = state
            self._after_step(num_backward=1)
        return cached[n]

    def _forward_state(self, n: int) -> Tensor:
        """Return the forward state of frame n; walk on from the last frame that was reached."""
        scene = self.scene
        if n in scene.forward:
            return scene.forward[n]
        if n < scene.next_forward:  # passed, and no longer cached
            scene.forward_state, scene.next_forward = None, scene.frames.start
        while scene.next_forward <= n:
            i = scene.next_forward
            scene.forward_state = self.worker.backend.propagate_forward(*self._forward_inputs(i))
            scene.next_forward = i + 1
            self._after_step(num_forward=1)
            if i in scene.left:
                scene.forward[i] = scene.forward_state
                passed = [k for k in scene.forward if k != i]
                if passed and self.worker.budget and scene.num_states() > self.worker.budget.num_states:
                    del scene.forward[min(passed)]
        return scene.forward[n]

    # ---- the inputs of a step ----------------------------------------------------------------------------------------

    def _backward_inputs(self, i: int, state: Tensor | None) -> PropagationInputs:
        """Return the inputs of frame i's backward step, where `state` is that of the frame after it."""
        if state is not None:
            return self.cleaned(i), state, self._flow_from_next(i)
        passes = self._num_start_passes(inside=self.scene.ends_inside)
        return self.cleaned(i), self._start(self.worker.backend.propagate_backward, i, passes), None

    def _forward_inputs(self, i: int) -> PropagationInputs:
        """Return the inputs of frame i's forward step."""
        state = self.scene.forward_state
        if state is not None:
            return self.cleaned(i), state, self._flow_to_next(i - 1)
        passes = self._num_start_passes(inside=self.scene.starts_inside)
        return self.cleaned(i), self._start(self.worker.backend.propagate_forward, i, passes), None

    def _num_start_passes(self, *, inside: bool) -> int:
        """Return how often to process the first frame before the pass that counts.

        Where a window starts inside a scene, one pass is enough: its context lies before the frames that are shown.
        """
        return min(self.worker.start_passes, 1) if inside else self.worker.start_passes

    def _start(self, propagate: Propagate, i: int, num_passes: int) -> Tensor | None:
        """Return the hidden state from which a walk starts at frame i: as if the frame had been seen before."""
        state = None
        for _ in range(num_passes):
            state = propagate(self.cleaned(i), state, None)
        return state

    def _flow_to_next(self, i: int) -> Tensor:
        """Return the flow that aligns the state of frame i to frame i + 1."""
        source = self.sources[i]
        cached = source.flow_to_next  # read once: another device's worker may drop it
        if cached is not None:
            return cached.to(self.worker.device.device)
        flow = self._flow(ref=i + 1, supp=i)
        if self.worker.budget and self.worker.budget.holds_flows:
            source.flow_to_next = flow
        return flow

    def _flow_from_next(self, i: int) -> Tensor:
        """Return the flow that aligns the state of frame i + 1 to frame i."""
        source = self.sources[i]
        cached = source.flow_from_next
        if cached is not None:
            return cached.to(self.worker.device.device)
        flow = self._flow(ref=i, supp=i + 1)
        if self.worker.budget and self.worker.budget.holds_flows:
            source.flow_from_next = flow
        return flow

    def _flow(self, *, ref: int, supp: int) -> Tensor:
        self.worker.statistics.flows += 1
        return self.worker.backend.flow(self.cleaned(ref), self.cleaned(supp))

    def _after_step(self, *, num_backward: int = 0, num_forward: int = 0) -> None:
        self.worker.statistics.backward_steps += num_backward
        self.worker.statistics.forward_steps += num_forward
        if self.worker.budget and self.worker.budget.trims:
            return_freed_memory()  # planes of large frames, otherwise kept in the heap of this thread
