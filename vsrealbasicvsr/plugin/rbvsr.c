/* core.rbvsr: the bridge between VapourSynth and the Python package vsrealbasicvsr. It computes no pixels.
 *
 * A script calls core.rbvsr.Upscale(clip) and imports nothing: the plugin finds the Python interpreter of its own
 * process, which runs the script, by looking up functions by name (it is not linked against Python).
 *
 *   Upscale, Version   public: forwarded to vsrealbasicvsr.filter.entry.FUNCTIONS.
 *   Register           internal: Python passes the callable for the call in progress on this thread.
 *   Serve              internal: a video filter whose frames come from a Python callable, see serve_frame.
 * Errors: a callable that returns {"error": text} fails with that text; an exception is a bug, shown with a traceback.
 */

#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifdef _WIN32
#define PSAPI_VERSION 2 /* EnumProcessModules lives in kernel32 then, always loaded */
#include <windows.h>
#include <psapi.h>
#else
#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* RTLD_DEFAULT */
#endif
#include <dlfcn.h>
#endif

#include "VapourSynth4.h"

#if defined(_MSC_VER)
#define THREAD_LOCAL __declspec(thread)
#elif defined(__GLIBC__)
#define THREAD_LOCAL __attribute__((tls_model("initial-exec"))) __thread /* needs no symbol of the dynamic linker */
#else
#define THREAD_LOCAL __thread
#endif

#ifndef RBVSR_VERSION_MAJOR
#error "RBVSR_VERSION_MAJOR and RBVSR_VERSION_MINOR are defined by build_hook.py, from vsrealbasicvsr.__version__"
#endif
#define PLUGIN_VERSION VS_MAKE_VERSION(RBVSR_VERSION_MAJOR, RBVSR_VERSION_MINOR)
#define MAX_ERROR_BYTES 512

/* ---- Finding the Python of this process ------------------------------------------------------------------------- */

static intptr_t find_symbol(const char *name)
{
#ifdef _WIN32
    HMODULE modules[1024];
    DWORD num_bytes = 0;
    if (!K32EnumProcessModules(GetCurrentProcess(), modules, sizeof(modules), &num_bytes))
        return 0;
    for (size_t i = 0; i < sizeof(modules) / sizeof(HMODULE) && i < num_bytes / sizeof(HMODULE); i++) {
        FARPROC symbol = GetProcAddress(modules[i], name);
        if (symbol)
            return (intptr_t)symbol;
    }
    return 0;
#else
    return (intptr_t)dlsym(RTLD_DEFAULT, name);
#endif
}

/* Run `program` in the interpreter of this process; return 0 if there is none. Register reports its success. */
static int run_python(const char *program)
{
    int (*is_initialized)(void) = (int (*)(void))find_symbol("Py_IsInitialized");
    int (*ensure)(void) = (int (*)(void))find_symbol("PyGILState_Ensure");
    void (*release)(int) = (void (*)(int))find_symbol("PyGILState_Release");
    int (*run_string)(const char *) = (int (*)(const char *))find_symbol("PyRun_SimpleString");
    if (!is_initialized || !ensure || !release || !run_string || !is_initialized())
        return 0;
    int state = ensure();
    run_string(program);
    release(state);
    return 1;
}

/* One exec() in a dictionary of its own, so that __main__ is not changed. A failed import is returned as an error for
 * the user, as is a vapoursynth.Error of the function itself. `del` breaks the reference cycle call -> globals -> call,
 * which would keep the function alive until a garbage collection. */
static const char PROGRAM[] =
    "exec('''\n"
    "def call(**arguments):\n"
    "    import sys, vapoursynth\n"
    "    try:\n"
    "        import resource\n" /* before torch: it is a library too, and might not fit into memory later */
    "        limit = resource.getrlimit(resource.RLIMIT_AS)[0]\n"
    "    except ImportError:\n" /* Windows */
    "        limit = -1\n"
    "    try:\n"
    "        from vsrealbasicvsr.filter import entry\n"
    "    except Exception as error:\n"
    "        reason = ' '.join(f'{type(error).__name__}: {error}'.split()).rstrip('.: ')\n"
    /* Written here because none of the package's modules can be imported if torch cannot. The dynamic linker says
     * "failed to map segment" both if address space is short and if the file system is mounted noexec. */
    "        unmapped = 'failed to map segment' in reason or 'zero-fill pages' in reason\n"
    "        short = (isinstance(error, MemoryError) or getattr(error, 'errno', None) == 12 or 'bad_alloc' in reason\n"
    "                 or 'start new thread' in reason or 'allocate memory' in reason and 'static TLS' not in reason)\n"
    "        if limit >= 0 and (short or unmapped and 'not permitted' not in reason):\n"
    "            cure = (f'This process is limited to {limit >> 20} MiB of address space, and torch maps more: raise'\n"
    "                    ' that (ulimit -v unlimited).')\n"
    "        elif short:\n"
    "            cure = 'Memory is short: free some, or raise what the container or ulimit allows.'\n"
    "        elif unmapped:\n"
    "            cure = 'Memory is short, or that file system is mounted noexec: free memory, or mount it with exec.'\n"
    "        elif 'WinError 126' in reason or 'DLL load failed' in reason:\n"
    "            cure = 'Install the Visual C++ Redistributable: https://aka.ms/vs/17/release/vc_redist.x64.exe'\n"
    "        else:\n"
    "            cure = (f'Install it into the Python that runs this script ({sys.executable or sys.prefix}):'\n"
    "                    ' pip install vapoursynth-rbvsr')\n"
    "        return {'error': f'rbvsr.{NAME}: cannot import vsrealbasicvsr: {reason}. {cure}'}\n"
    "    try:\n"
    "        result = entry.FUNCTIONS[NAME](**arguments)\n"
    "    except vapoursynth.Error as error:\n"
    "        return {'error': str(error)}\n"
    "    return result if isinstance(result, dict) else {RESULT: result}\n"
    "try:\n"
    "    import vapoursynth\n"
    "    vapoursynth.core.rbvsr.Register(function=call)\n"
    "except Exception:\n"
    "    pass\n"
    "finally:\n"
    "    del call\n"
    "''', {'NAME': '%s', 'RESULT': '%s'})\n";

/* ---- Upscale, Version and Register: a call that goes to Python --------------------------------------------------- */

typedef struct ForwardedFunction {
    const char *name;   /* of the public function, and the key in entry.FUNCTIONS */
    const char *result; /* key of the returned map for a result that is not a dict */
} ForwardedFunction;

static ForwardedFunction upscale_function = {"Upscale", "clip"};
static ForwardedFunction version_function = {"Version", "version"};

typedef struct PendingCall {
    VSCore *core;
    VSFunction *function; /* NULL until Register; owned */
    struct PendingCall *outer;
} PendingCall;

/* The call that waits for Register on this thread, on the stack of that call. */
static THREAD_LOCAL PendingCall *innermost_pending;

static void VS_CC register_callable(const VSMap *in, VSMap *out, void *user_data, VSCore *core, const VSAPI *vsapi)
{
    (void)user_data;
    PendingCall *pending = innermost_pending;
    if (!pending || pending->core != core || pending->function)
        vsapi->mapSetError(out, "rbvsr.Register: internal to the plugin, and no call of this core waits for it here.");
    else
        pending->function = vsapi->mapGetFunction(in, "function", 0, NULL);
}

/* Return the map's own error, or the value of "error" in a map from Python; NULL if neither. The map owns the text. */
static const char *error_of(const VSMap *answer, const VSAPI *vsapi)
{
    const char *error = vsapi->mapGetError(answer);
    if (!error && vsapi->mapGetType(answer, "error") == ptData)
        error = vsapi->mapGetData(answer, "error", 0, NULL);
    return error;
}

static void VS_CC forward_to_python(const VSMap *in, VSMap *out, void *user_data, VSCore *core, const VSAPI *vsapi)
{
    const ForwardedFunction *target = user_data;
    char program[sizeof(PROGRAM) + 64];
    char error[MAX_ERROR_BYTES];
    snprintf(program, sizeof(program), PROGRAM, target->name, target->result);
    PendingCall pending = {core, NULL, innermost_pending};
    innermost_pending = &pending;
    const char *problem = NULL;
    if (!run_python(program))
        problem = "no Python interpreter in this process. Run the script through vspipe, VSScript or python.";
    else if (!pending.function)
        problem = "this core is not the one that Python's vapoursynth.core stands for on this thread. "
                  "Call it from the script itself, or inside `with environment.use():`.";
    innermost_pending = pending.outer;
    if (problem) {
        snprintf(error, sizeof(error), "rbvsr.%s: %s", target->name, problem);
        vsapi->mapSetError(out, error);
    } else {
        VSMap *answer = vsapi->createMap();
        vsapi->callFunction(pending.function, in, answer);
        vsapi->freeFunction(pending.function);
        const char *python_error = error_of(answer, vsapi);
        if (python_error)
            vsapi->mapSetError(out, python_error);
        else
            vsapi->copyMap(answer, out);
        vsapi->freeMap(answer);
    }
}

/* ---- Serve: a filter whose frames come from a callable ----------------------------------------------------------- */

typedef struct Server {
    VSVideoInfo info;
    VSFunction *step;
    VSNode **clips;
    int num_clips;
} Server;

typedef struct FrameRequest {
    int clip, frame;
} FrameRequest;

/* Frames that one output frame waits for; kept in its frame_data from one activation to the next. */
typedef struct Round {
    int num_requests;
    FrameRequest requests[1]; /* num_requests of them */
} Round;

static void VS_CC free_server(void *instance_data, VSCore *core, const VSAPI *vsapi)
{
    (void)core;
    Server *server = instance_data;
    vsapi->freeFunction(server->step);
    for (int i = 0; i < server->num_clips; i++)
        vsapi->freeNode(server->clips[i]);
    free(server->clips);
    free(server);
}

/* Put the requested frames into `arguments` in the order of the requests, and the indices of failed requests into
 * "lost". Release the core's references: the callable keeps the frames that it needs. */
static void hand_over_frames(const Server *server, const Round *round, VSMap *arguments, VSFrameContext *context,
                             const VSAPI *vsapi)
{
    for (int i = 0; i < round->num_requests; i++) {
        FrameRequest request = round->requests[i];
        const VSFrame *frame = vsapi->getFrameFilter(request.frame, server->clips[request.clip], context);
        if (frame)
            vsapi->mapConsumeFrame(arguments, "frames", frame, maAppend);
        else
            vsapi->mapSetInt(arguments, "lost", i, maAppend);
    }
    for (int i = 0; i < round->num_requests; i++) /* after the loop above: a frame may have been requested twice */
        vsapi->releaseFrameEarly(server->clips[round->requests[i].clip], round->requests[i].frame, context);
}

static const VSFrame *internal_error(int n, const char *what, VSFrameContext *context, const VSAPI *vsapi)
{
    char error[MAX_ERROR_BYTES];
    snprintf(error, sizeof(error), "rbvsr.Upscale: internal error at frame %d: the step %s.", n, what);
    vsapi->setFilterError(error, context);
    return NULL;
}

static const VSFrame *accept_frame(const Server *server, int n, const VSMap *answer, VSFrameContext *context,
                                   const VSAPI *vsapi)
{
    const VSFrame *frame = vsapi->mapGetFrame(answer, "val", 0, NULL);
    const VSVideoFormat *wanted = &server->info.format;
    const VSVideoFormat *given = vsapi->getVideoFrameFormat(frame);
    if (given->colorFamily == wanted->colorFamily && given->sampleType == wanted->sampleType &&
        given->bitsPerSample == wanted->bitsPerSample && given->subSamplingW == wanted->subSamplingW &&
        given->subSamplingH == wanted->subSamplingH && vsapi->getFrameWidth(frame, 0) == server->info.width &&
        vsapi->getFrameHeight(frame, 0) == server->info.height)
        return frame;
    vsapi->freeFrame(frame);
    return internal_error(n, "returned a frame whose format or size is not that of the output clip", context, vsapi);
}

/* Read [clip, frame, clip, frame, ...] and request those frames from the core; all of them, or none after an error. */
static void request_frames(const Server *server, int n, const VSMap *answer, void **frame_data, VSFrameContext *context,
                           const VSAPI *vsapi)
{
    int num_requests = vsapi->mapNumElements(answer, "val") / 2;
    const int64_t *numbers = vsapi->mapGetIntArray(answer, "val", NULL);
    Round *round = malloc(sizeof(Round) + (size_t)num_requests * sizeof(FrameRequest));
    if (!round) {
        internal_error(n, "asked for more frames than memory can list", context, vsapi);
        return;
    }
    round->num_requests = num_requests;
    for (int i = 0; i < num_requests; i++) {
        int64_t clip = numbers[2 * i], frame = numbers[2 * i + 1];
        if (clip < 0 || clip >= server->num_clips || frame < 0 ||
            frame >= vsapi->getVideoInfo(server->clips[clip])->numFrames) {
            char what[MAX_ERROR_BYTES / 2];
            snprintf(what, sizeof(what), "asked for frame %lld of clip %lld, which does not exist", (long long)frame,
                     (long long)clip);
            internal_error(n, what, context, vsapi);
            free(round);
            return;
        }
        round->requests[i] = (FrameRequest){(int)clip, (int)frame};
    }
    for (int i = 0; i < num_requests; i++)
        vsapi->requestFrameFilter(round->requests[i].frame, server->clips[round->requests[i].clip], context);
    *frame_data = round;
}

/* Produce frame n in rounds of requests. Several threads may call the step concurrently. It is called with
 *
 *     n                 first. It answers under the key "val" (where a callable's result goes that is no dict) with
 *         [clip, frame, ...]    pairs of numbers: frames to request before it is called again, or
 *         a frame               the output frame n;
 *     n, frames         when they have arrived, in the order of the requests; one frame by itself, several as a list;
 *     n, failed=1       instead, if some of them failed, which ends frame n. `frames` are those that arrived, `lost`
 *                       the indices of the others. An error in the answer replaces the core's message.
 */
static const VSFrame *VS_CC serve_frame(int n, int reason, void *instance_data, void **frame_data,
                                        VSFrameContext *context, VSCore *core, const VSAPI *vsapi)
{
    (void)core;
    const Server *server = instance_data;
    Round *round = *frame_data;
    *frame_data = NULL;
    VSMap *arguments = vsapi->createMap();
    VSMap *answer = vsapi->createMap();
    vsapi->mapSetInt(arguments, "n", n, maReplace);
    if (reason == arError)
        vsapi->mapSetInt(arguments, "failed", 1, maReplace);
    if (round)
        hand_over_frames(server, round, arguments, context, vsapi);
    free(round);
    vsapi->callFunction(server->step, arguments, answer);
    vsapi->freeMap(arguments);

    const VSFrame *frame = NULL;
    const char *error = error_of(answer, vsapi);
    int type = vsapi->mapGetType(answer, "val");
    int num_values = vsapi->mapNumElements(answer, "val"); /* -1: no such key */
    if (error)
        vsapi->setFilterError(error, context);
    else if (reason == arError)
        ; /* the core's own message stays */
    else if (type == ptVideoFrame && num_values == 1)
        frame = accept_frame(server, n, answer, context, vsapi);
    else if (type == ptInt && num_values > 0 && num_values % 2 == 0)
        request_frames(server, n, answer, frame_data, context, vsapi);
    else
        internal_error(n, "returned neither one video frame nor pairs of clip index and frame number", context, vsapi);
    vsapi->freeMap(answer);
    return frame;
}

static void VS_CC create_server(const VSMap *in, VSMap *out, void *user_data, VSCore *core, const VSAPI *vsapi)
{
    (void)user_data;
    int name_missing, cache_missing;
    const char *name = vsapi->mapGetData(in, "name", 0, &name_missing);
    int cached = vsapi->mapGetIntSaturated(in, "cache", 0, &cache_missing);
    int num_clips = vsapi->mapNumElements(in, "clips");

    VSNode *format = vsapi->mapGetNode(in, "format", 0, NULL);
    VSVideoInfo info = *vsapi->getVideoInfo(format);
    vsapi->freeNode(format);
    if (info.format.colorFamily == cfUndefined || info.width == 0 || info.height == 0) {
        vsapi->mapSetError(out, "rbvsr.Serve: format must be a clip of one format and one size.");
        return;
    }
    Server *server = calloc(1, sizeof(Server));
    VSNode **clips = calloc((size_t)num_clips, sizeof(VSNode *));
    VSFilterDependency *dependencies = calloc((size_t)num_clips, sizeof(VSFilterDependency));
    if (!server || !clips || !dependencies) {
        free(server);
        free(clips);
        free(dependencies);
        vsapi->mapSetError(out, "rbvsr.Serve: out of memory.");
        return;
    }
    server->info = info;
    server->step = vsapi->mapGetFunction(in, "step", 0, NULL);
    server->clips = clips;
    server->num_clips = num_clips;
    for (int i = 0; i < num_clips; i++) {
        clips[i] = vsapi->mapGetNode(in, "clips", i, NULL);
        dependencies[i] = (VSFilterDependency){clips[i], rpGeneral};
    }
    VSNode *node = vsapi->createVideoFilter2(name_missing ? "Serve" : name, &info, serve_frame, free_server,
                                             fmParallel, dependencies, num_clips, server, core);
    free(dependencies);
    if (!node) {
        free_server(server, core, vsapi);
        vsapi->mapSetError(out, "rbvsr.Serve: VapourSynth refused the filter.");
        return;
    }
    if (!cache_missing && !cached)
        vsapi->setCacheMode(node, cmForceDisable);
    vsapi->mapConsumeNode(out, "clip", node, maReplace);
}

VS_EXTERNAL_API(void) VapourSynthPluginInit2(VSPlugin *plugin, const VSPLUGINAPI *vspapi)
{
    vspapi->configPlugin("com.vsrealbasicvsr.rbvsr", "rbvsr", "Real-world video super-resolution with RealBasicVSR",
                         PLUGIN_VERSION, VAPOURSYNTH_API_VERSION, 0, plugin);
    vspapi->registerFunction("Upscale",
                             "clip:vnode;theta:float:opt;model:data:opt;length:int:opt;overlap:int:opt;"
                             "scene_cuts:data:opt;device:data:opt;precision:data:opt;tile:int:opt;"
                             "detail:float:opt;cleaning:float:opt;",
                             "clip:vnode;", forward_to_python, &upscale_function, plugin);
    vspapi->registerFunction("Version", "", "any", forward_to_python, &version_function, plugin);
    vspapi->registerFunction("Register", "function:func;", "", register_callable, NULL, plugin);
    vspapi->registerFunction("Serve", "clips:vnode[];format:vnode;step:func;name:data:opt;cache:int:opt;",
                             "clip:vnode;", create_server, NULL, plugin);
}
