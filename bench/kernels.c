/*
 * The compiled kernels beside what the machine can do: a plain read of the same weights and the peak
 * of fused multiply-adds, by the same threads, interleaved. Random weights of the 124M shape.
 *
 *     kernels [threads [instruction set]]      one JSON object for each measurement; see bench/kernels.py
 */
#define KERNELS_DRIVER
#include "../gpt2core/kernels/_kernels.c"
#include <stdio.h>
#include <sys/mman.h>

enum { EMBD = 768, LAYERS = 12, VOCAB = 50257, RUNS = 15 };
static const int SHAPES[4][2] = {{3 * EMBD, EMBD}, {EMBD, EMBD}, {4 * EMBD, EMBD}, {EMBD, 4 * EMBD}};
static const char *KIND_NAMES[] = {"f32", "f16", "bf16", "int8"};
static volatile uint64_t sink;

static void read_plainly(const void *job, int begin, int end, float *scratch)
{
    (void)scratch;
    uint64_t a[8] = {0};
    const char *p = job;
    for (size_t i = (size_t)begin << 16; i < (size_t)end << 16; i += 64)
        for (int j = 0; j < 8; j++) a[j] += ((const uint64_t *)(p + i))[j];
    for (int j = 1; j < 8; j++) a[0] += a[j];
    sink += a[0];
}

#define PEAK_STEPS 200000
#if defined(__x86_64__)
/* Twice as many sums as an FMA's latency needs; registers, not memory. */
__attribute__((target("avx512f"))) static void fma_avx512(void)
{
    __m512 sum[16], x = _mm512_set1_ps(0.999f);
    for (int j = 0; j < 16; j++) sum[j] = _mm512_set1_ps((float)j);
    for (int i = 0; i < PEAK_STEPS; i++)
#pragma GCC unroll 16
        for (int j = 0; j < 16; j++) sum[j] = _mm512_fmadd_ps(sum[j], x, x);
    for (int j = 1; j < 16; j++) sum[0] = _mm512_add_ps(sum[0], sum[j]);
    sink += (uint64_t)_mm512_cvtss_f32(sum[0]);
}
__attribute__((target("avx2,fma"))) static void fma_avx2(void)
{
    __m256 sum[12], x = _mm256_set1_ps(0.999f);
    for (int j = 0; j < 12; j++) sum[j] = _mm256_set1_ps((float)j);
    for (int i = 0; i < PEAK_STEPS; i++)
#pragma GCC unroll 12
        for (int j = 0; j < 12; j++) sum[j] = _mm256_fmadd_ps(sum[j], x, x);
    for (int j = 1; j < 12; j++) sum[0] = _mm256_add_ps(sum[0], sum[j]);
    sink += (uint64_t)_mm256_cvtss_f32(sum[0]);
}
#endif

static double peak_flops(int is_avx512)
{
#if defined(__x86_64__)
    return is_avx512 ? 2. * 16 * 16 * PEAK_STEPS : 2. * 8 * 12 * PEAK_STEPS;
#else
    (void)is_avx512;
    return 0;
#endif
}

static void peak(const void *job, int begin, int end, float *scratch)
{
    (void)scratch, (void)begin, (void)end;
#if defined(__x86_64__)
    *(const int *)job ? fma_avx512() : fma_avx2();
#else
    (void)job;
#endif
}

static int by_value(const void *a, const void *b) { return (*(double *)a > *(double *)b) - (*(double *)a < *(double *)b); }

static void print(const char *what, const char *kind, int rows, double *ms, double work, const char *unit)
{
    double sorted[RUNS];
    memcpy(sorted, ms, sizeof sorted);
    qsort(sorted, RUNS, sizeof *sorted, by_value);
    printf("{\"what\": \"%s\", \"precision\": \"%s\", \"rows\": %d, \"median_ms\": %.3f, \"min_ms\": %.3f, \"max_ms\": %.3f, \"%s\": %.1f}\n",
           what, kind, rows, sorted[RUNS / 2], sorted[0], sorted[RUNS - 1], unit, work / sorted[RUNS / 2] / 1e6);
    fflush(stdout);
}

int main(int argc, char **argv)
{
    set_threads(argc > 1 ? atoi(argv[1]) : 2);
    if (!choose_kernels(argc > 2 ? argv[2] : NULL)) return 1;
    const char *only = argc > 3 ? argv[3] : NULL;
    int is_avx512 = !strcmp(chosen->name, "avx512"), list[] = {1, 2, 4, 8, 16, 32, 64, 128, 512}, n_rows = 9;
    if (argc > 4) for (n_rows = 0; n_rows + 4 < argc; n_rows++) list[n_rows] = atoi(argv[n_rows + 4]);
    const size_t n = 12ul * EMBD * EMBD * LAYERS + (size_t)VOCAB * EMBD;
    float *x = new_floats(512ul * 4 * EMBD), *y = new_floats(512ul * 4 * EMBD + 32ul * VOCAB);
    for (size_t i = 0; i < 512ul * 4 * EMBD; i++) x[i] = (float)(i % 251) / 125 - 1;
    printf("{\"what\": \"instruction set\", \"precision\": \"%s\", \"rows\": %d}\n", chosen->name, pool.n_threads);
    for (enum kind kind = F32; kind <= INT8; kind++) {
        if (only && strcmp(only, KIND_NAMES[kind])) continue;
        size_t bytes = n * SIZE[kind];
        char *w = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
        float *scale = new_floats(n / GROUP);
        for (size_t i = 0; i < n; i++) {
            float value = (float)((i * 2654435761u >> 8) % 65536) / 32768 - 1;
            uint32_t bits;
            memcpy(&bits, &value, 4);
            if (kind == F32) ((float *)w)[i] = value;
            else if (kind == F16) ((uint16_t *)w)[i] = (uint16_t)(bits >> 31 << 15 | 0x3000 | (bits >> 13 & 0x3ff));
            else if (kind == BF16) ((uint16_t *)w)[i] = (uint16_t)(bits >> 16);
            else w[i] = (char)(bits >> 8);
        }
        for (size_t i = 0; i < n / GROUP; i++) scale[i] = 0.01f * (1 + i % 5);
        for (int q = 0; q < n_rows; q++) {
            int rows = list[q];
            double product[RUNS], plain[RUNS], fma[RUNS];
            for (int run = -1; run < RUNS; run++) {
                int64_t begun = nanoseconds();
                size_t at = 0;
                for (int i = 0; i < 4 * LAYERS + 1; i++) {
                    int head = i == 4 * LAYERS, n_out = head ? VOCAB : SHAPES[i % 4][0], n_in = head ? EMBD : SHAPES[i % 4][1];
                    Matrix m = {.kind = kind, .n_out = n_out, .n_in = n_in, .w = w + at * SIZE[kind], .scale = scale + at / GROUP};
                    linear(&m, x, head && rows > 32 ? 1 : rows, y, NONE, NULL);
                    at += (size_t)n_out * n_in;
                }
                int64_t done = nanoseconds();
                parallel(read_plainly, w, (int)(bytes >> 16), (int)(bytes >> 16) / 32 + 1, 0, 0);
                int64_t read = nanoseconds();
                parallel(peak, &is_avx512, 8, 1, 0, 0);
                int64_t end = nanoseconds();
                if (run < 0) continue;
                product[run] = (done - begun) / 1e6;
                plain[run] = (read - done) / 1e6;
                fma[run] = (end - read) / 1e6;
            }
            double flops = 2. * (n - (size_t)VOCAB * EMBD) * rows + 2. * VOCAB * EMBD * (rows > 32 ? 1 : rows);
            print("pass", KIND_NAMES[kind], rows, product, flops, "gflops");
            print("plain read", KIND_NAMES[kind], rows, plain, (double)(bytes >> 16 << 16), "gigabytes_per_s");
            print("peak fma", KIND_NAMES[kind], rows, fma, 8 * peak_flops(is_avx512), "gflops");
        }
        munmap(w, bytes);
        free(scale);
    }
    return 0;
}
