/* Lower bounds of the machine: reading memory, and multiply-adds. See kernels.py.
   cc -O3 -march=native -ffp-contract=fast -shared -fPIC -pthread -o floor.so floor.c */
#include <pthread.h>
#include <stdatomic.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

/* A register: twelve sums and two operands of it fit the registers of every processor. */
#if defined(__AVX512F__)
#define VECTOR 64
#elif defined(__AVX__)
#define VECTOR 32
#else
#define VECTOR 16
#endif

enum { MAX_THREADS = 64, CHUNK = 1 << 18, CHAINS = 12, LANES = VECTOR / sizeof(float) };

typedef uint64_t words __attribute__((vector_size(64)));
typedef float lanes __attribute__((vector_size(VECTOR)));

static struct {
    const char *data;
    size_t size;
    long rounds;
    atomic_size_t next;
    atomic_ullong sink; /* keeps the loops from being optimized away */
} work;

/* Threads take chunks, so that a thread that starts late does less work. */
static void *read_chunks(void *unused) {
    words a = {0}, b = {0}, c = {0}, d = {0}, part[4];
    for (size_t at; (at = atomic_fetch_add(&work.next, CHUNK)) + CHUNK <= work.size;)
        for (size_t i = at; i < at + CHUNK; i += sizeof part) {
            memcpy(part, work.data + i, sizeof part);
            a += part[0], b += part[1], c += part[2], d += part[3];
        }
    a += b + c + d;
    atomic_fetch_add(&work.sink, a[0] + a[1] + a[2] + a[3] + a[4] + a[5] + a[6] + a[7]);
    return unused;
}

static void *multiply_add(void *unused) {
    lanes sums[CHAINS], x, y;
    for (int i = 0; i < LANES; i++) x[i] = 0.5f + (float)work.size, y[i] = 1.0f;
#pragma GCC unroll 12
    for (int i = 0; i < CHAINS; i++) sums[i] = x * (float)i;
    for (long round = work.rounds * 16 / LANES; round > 0; round--) {
#pragma GCC unroll 12
        for (int i = 0; i < CHAINS; i++) sums[i] = sums[i] * x + y;
    }
#pragma GCC unroll 12
    for (int i = 1; i < CHAINS; i++) sums[0] += sums[i];
    atomic_fetch_add(&work.sink, (uint64_t)sums[0][0]);
    return unused;
}

static void on_threads(int n, void *(*task)(void *)) {
    pthread_t threads[MAX_THREADS];
    for (int i = 1; i < n; i++) pthread_create(&threads[i], 0, task, 0);
    task(0);
    for (int i = 1; i < n; i++) pthread_join(threads[i], 0);
}

void read_bytes(const char *data, size_t size, int threads) {
    work.data = data, work.size = size, work.next = 0;
    on_threads(threads, read_chunks);
}

/* 32 * CHAINS floating-point operations per round and thread. */
void multiply_adds(long rounds, int threads) {
    work.rounds = rounds, work.size = 0;
    on_threads(threads, multiply_add);
}
