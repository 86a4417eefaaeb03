"""Whole processes: scripts evaluated over and over, long clips, and how much memory they take."""

import os
import subprocess
import sys
import textwrap

import pytest

pytestmark = pytest.mark.long


def run_python(script: str, *arguments: object, threads: str = "1") -> str:
    """Return what the script prints. threads: of OpenMP."""
    passive = {"OMP_WAIT_POLICY": "passive"}  # threads that wait for a core take none
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(script), *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=600,
        env={**os.environ, "OMP_NUM_THREADS": threads, **passive},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


EVALUATE = """
    import gc, sys, weakref
    import vapoursynth as vs

    class Policy(vs.EnvironmentPolicy):
        def on_policy_registered(self, api):
            self.api, self.current = api, None
        def on_policy_cleared(self):
            self.current = None
        def get_current_environment(self):
            return self.current
        def set_environment(self, environment):
            previous, self.current = self.current, environment
            return previous

    def resident_mib():
        with open("/proc/self/statm") as file:
            return int(file.read().split()[1]) * 4096 / 2**20

    policy = Policy()
    vs.register_policy(policy)
    alive, digests = [], set()
    for round in range(30):
        environment = policy.api.create_environment()
        alive.append(weakref.ref(environment))
        with policy.api.wrap_environment(environment).use():
            clip = vs.core.std.BlankClip(format=vs.YUV420P8, width=32, height=24, length=2, color=[90, 100, 160])
            out = clip.rbvsr.Upscale(model=sys.argv[1], length=1, overlap=1)
            for frame in out.frames(close=True):
                digests.add(bytes(frame[0]))
        policy.api.destroy_environment(environment)
        del environment, clip, out, frame
        if round == 9:
            gc.collect()
            start = resident_mib()
    gc.collect()
    print(sum(reference() is not None for reference in alive), len(digests), resident_mib() - start)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_a_script_evaluated_thirty_times_in_one_process_leaves_nothing_behind(tiny_model):
    num_alive, num_pictures, growth_mib = run_python(EVALUATE, tiny_model).split()
    assert int(num_alive) == 0
    assert int(num_pictures) <= 4
    assert float(growth_mib) < 30


PLAY = """
    import resource, sys
    import numpy as np
    import vapoursynth as vs

    core = vs.core
    core.num_threads = 8
    blank = core.std.BlankClip(format=vs.YUV420P8, width=64, height=48, length=int(sys.argv[2]))
    y, x = np.mgrid[0:48, 0:64]

    def fill(n, f):
        frame = f.copy()
        np.copyto(np.asarray(frame[0]), ((3 * x + 2 * y + 2 * n) % 200).astype(np.uint8))
        return frame

    clip = core.std.ModifyFrame(blank, blank, fill).rbvsr.Upscale(model=sys.argv[1])
    for frame in clip.frames(prefetch=16, backlog=16, close=True):
        pass
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss is in kilobytes on Linux")
def test_a_clip_five_times_as_long_takes_no_more_memory(tiny_model):
    short, long = (float(run_python(PLAY, tiny_model, num_frames)) for num_frames in (300, 1500))
    assert long < 1.05 * short


DIGESTS = """
    import hashlib, os, sys
    if sys.argv[2] == "one core":
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    import numpy as np
    import skimage.data
    import vapoursynth as vs

    photograph = np.tile(skimage.data.astronaut(), (1, 2, 1)) / np.float32(255)

    def clip(width, height, num_frames):
        blank = vs.core.std.BlankClip(format=vs.RGBS, width=width, height=height, length=num_frames)

        def fill(n, f):
            frame = f.copy()
            for plane in range(3):
                np.copyto(np.asarray(frame[plane]), photograph[n : n + height, 2 * n : 2 * n + width, plane])
            return frame

        return vs.core.std.ModifyFrame(blank, blank, fill)

    for kernels, largest in (("", (853, 480, 2)), ("off", (427, 241, 2))):
        os.environ["RBVSR_KERNELS"] = kernels
        jobs = [(100, 60, 2, "default")]
        jobs += [(*size, sys.argv[1]) for size in ((180, 120, 2), (160, 112, 3), largest, (1, 97, 3))]
        for width, height, num_frames, model in jobs:
            made = hashlib.md5()
            for frame in clip(width, height, num_frames).rbvsr.Upscale(model=model, device="cpu").frames(close=True):
                for plane in frame:
                    made.update(np.ascontiguousarray(plane))
            print(width, height, os.path.basename(model), kernels or "ours", made.hexdigest(), sep=",")
"""


@pytest.mark.skipif(sys.platform != "linux", reason="chooses the cores")
def test_the_number_of_threads_and_of_cores_changes_no_byte_of_a_process(tiny_model):
    expected = run_python(DIGESTS, tiny_model, "all cores", threads="1").split()
    assert len(set(expected)) == 10
    for threads, cores in (("2", "all cores"), ("3", "all cores"), ("64", "one core")):
        assert run_python(DIGESTS, tiny_model, cores, threads=threads).split() == expected, (threads, cores)
