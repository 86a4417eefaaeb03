/* A program that carries out operations of kernels.c for another process: emulated, or under another system.
 *
 * Standard input, in this machine's byte order, until it ends:
 *     int64 number of threads (once); then int64 number of regions, of operations; for each region int64 address (as
 *     the operations mean it) and bytes, and its bytes; the operations.
 * Standard output: int32 lanes and int32 bytes of an operation (once); then int64 result of rbvsr_run, and the bytes of
 * all regions. Each region has memory of its own, of exactly its size.
 */

#include "../../../vsrealbasicvsr/backends/cpu/kernels.c"

#include <stdio.h>
#ifdef _WIN32
#include <fcntl.h>
#include <io.h>
#endif

typedef struct {
    int64_t address, bytes;
    char *memory;
} region;

static int64_t num_regions;
static region *regions;

static void take(void *to, size_t bytes) {
    if (fread(to, 1, bytes, stdin) != bytes) exit(bytes ? 3 : 0);
}

static void give(const void *from, size_t bytes) {
    if (fwrite(from, 1, bytes, stdout) != bytes) exit(4);
}

static void *moved(const void *pointer) {
    const int64_t address = (int64_t)(intptr_t)pointer;
    if (!address) return NULL;
    for (int64_t i = 0; i < num_regions; i++)
        if (address >= regions[i].address && address < regions[i].address + regions[i].bytes)
            return regions[i].memory + (address - regions[i].address);
    exit(5);
}

int main(void) {
#ifdef _WIN32
    _setmode(_fileno(stdin), _O_BINARY);
    _setmode(_fileno(stdout), _O_BINARY);
#endif
    int64_t num_threads, num_operations;
    int32_t about[2] = {rbvsr_lanes(), rbvsr_operation_bytes()};
    give(about, sizeof about);
    fflush(stdout);
    take(&num_threads, sizeof num_threads);
    pool *threads = rbvsr_open((int)num_threads);
    while (threads && fread(&num_regions, sizeof num_regions, 1, stdin) == 1) {
        take(&num_operations, sizeof num_operations);
        regions = calloc((size_t)num_regions, sizeof *regions);
        for (int64_t i = 0; i < num_regions; i++) {
            take(&regions[i].address, 8);
            take(&regions[i].bytes, 8);
            regions[i].memory = malloc((size_t)regions[i].bytes);
            take(regions[i].memory, (size_t)regions[i].bytes);
        }
        operation *operations = calloc((size_t)num_operations, sizeof *operations);
        take(operations, (size_t)num_operations * sizeof *operations);
        for (int64_t i = 0; i < num_operations; i++) {
            operation *o = operations + i;
            o->source = moved(o->source), o->second = moved(o->second), o->weights = moved(o->weights);
            o->bias = moved(o->bias), o->residual = moved(o->residual);
            o->target = moved(o->target), o->second_target = moved(o->second_target);
        }
        int64_t failed = rbvsr_run(threads, operations, (ptrdiff_t)num_operations);
        give(&failed, sizeof failed);
        for (int64_t i = 0; i < num_regions; i++) {
            give(regions[i].memory, (size_t)regions[i].bytes);
            free(regions[i].memory);
        }
        fflush(stdout);
        free(regions);
        free(operations);
    }
    return threads ? 0 : 6;
}
