/*
 * GPT-2's arithmetic on float32 activations and memory-mapped weights of any type and alignment.
 *
 * The file has four parts: declarations shared by all instruction sets, the threads, the kernels (a
 * template that this file includes once for each instruction set), the Python module.
 * KERNELS_DRIVER omits the module: the test driver includes this file and does not need Python.
 *
 * Results are bit-identical everywhere. An output of a product is a sum over k in chunks of K_CHUNK.
 * A chunk has sixteen partial sums, one for each value of k modulo 16, computed with fused
 * multiply-adds in the order of k. A fixed tree adds the sixteen (see `fold` and `sum4`), and the
 * chunks are added in order. This does not depend on the number of rows or threads, the instruction
 * set or the split of a prompt, so a sequence gets the same tokens alone, in a batch and on any
 * machine. `exp` is our own polynomial for the same reason. Compile with -ffp-contract=off and
 * never with -ffast-math.
 *
 * n_out, n_in: outputs and inputs of a product. x: activations [rows][n_in]. w: weights. y: results
 * [rows][n_out].
 */
#ifndef ISA /* ================ shared by all instruction sets ================ */

#define _GNU_SOURCE
#include <linux/futex.h>
#include <math.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#include <arm_neon.h>
#else
#error "kernels exist for x86-64 and AArch64 only; use NumPy elsewhere"
#endif
#if __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "model files are little-endian"
#endif

#define K_CHUNK 768     /* part of the order of summation: another value changes the last bits */
#define GROUP 64        /* int8 weights that share a scale */
#define PANEL_OUTS 60   /* outputs converted to float32 together, a multiple of each PANEL_O: K_CHUNK weights of each, in L2 */
#define COLUMN_ROWS 8   /* up to this many rows, w [n_in][n_out] is used without a transpose */
#define COLUMN_INPUTS 4 /* inputs added to a sum at a time: fewer loads and stores of the sums */
#define COLUMN_SUMS 2048 /* rows times outputs of such a product together: one partial sum of each, in L1 */
#define BLOCK_ROWS 6    /* rows of a register block; INT8_ROWS for int8 */
#define MAX_ROWS 8      /* the larger of the two */
#define PANEL_PIECE 48  /* outputs of a piece of work that uses panels */
#define GREEDY_ROWS 64  /* rows of logits that are searched together */
#define GREEDY_PIECE 480 /* outputs of a piece of such a search, at most */
#define ROWS_PIECE 1536 /* outputs of other pieces, at most: the results of many rows are still in L2 when the bias is added */
#define UNIT_ROWS 24    /* rows of a sequence in one unit of attention work */
#define MAX_THREADS 64
#define SMALL_WORK 40000 /* fewer multiply-adds run on one thread: a few microseconds */

_Static_assert(16 * COLUMN_SUMS <= PANEL_OUTS * K_CHUNK, "the sums of columns fit the scratch of a panel");
_Static_assert(16 * COLUMN_INPUTS == GROUP, "inputs that are added together share a scale");

enum kind { F32, F16, BF16, INT8 };
static const int SIZE[] = {4, 2, 2, 1};
static const int PANEL_ROWS[] = {96, 96, 96, 48}; /* from this many rows on, weights are converted once, not for each block */

enum activation { NONE, GELU_TANH, GELU_ERF, QUICK_GELU, RELU, RELU2, SILU, SIGMOID, TANH, N_ACTIVATIONS };

typedef struct {
    enum kind kind;
    int columns; /* 0: w is [n_out][n_in]; 1: [n_in][n_out] */
    size_t n_out, n_in;
    const char *w;
    const float *scale; /* of int8: [n_out][ceil(n_in / GROUP)], or [ceil(n_in / GROUP)][n_out] */
    const float *bias;  /* [n_out] or NULL */
} Matrix;

typedef struct {
    Matrix m;
    const float *x;
    size_t x_stride;
    int rows;
    float *y;
    enum activation activation;
    const float *residual; /* [rows][n_out], added last, or NULL */
} Product;

typedef struct {
    Product product;
    struct best { float value; int64_t id; int is_nan; } *best; /* [piece][rows] */
    int piece; /* outputs of a piece */
} Greedy;

typedef struct {
    const float *x, *weight, *bias;
    float *y;
    size_t n;
    float epsilon;
} Norm;

typedef struct {
    int rows, n_past;     /* new positions, and positions already in the cache */
    int n_last;           /* rows at the end whose result is needed */
    float *keys, *values; /* of the layer: [n_head][capacity][head_dim] */
    size_t capacity;
    /* Of the present operation: the rows before `begin` only store keys and values. */
    int begin, first_row, first_head, first_unit;
} Sequence;

typedef struct {
    const float *qkv; /* [rows][3][n_head][head_dim] */
    float *heads;     /* [rows from each sequence's `begin` on][n_head][head_dim] */
    const Sequence *sequences;
    int n_sequences, n_head, head_dim, n_units;
    int max_kv; /* maximum number of positions of a sequence, rounded up to 16 */
    float scale;
} Attention;

/* A piece of work: items begin..end of a job. `scratch` is the thread's own. */
typedef void Work(const void *job, int begin, int end, float *scratch);

/* What an instruction set provides. */
typedef struct {
    const char *name;
    Work *product, *greedy, *norm, *attention;
    void (*activate)(float *x, size_t n, enum activation activation);
    void (*row)(const Matrix *m, size_t at, float *y, int add);
} Kernels;

static size_t round_up(size_t n, size_t unit) { return (n + unit - 1) / unit * unit; }
static int least(int a, int b) { return a < b ? a : b; }

/* Round to nearest, keep denormals, mask exceptions, independently of the caller's settings. */
#if defined(__x86_64__)
static unsigned float_mode(void) { unsigned old = _mm_getcsr(); _mm_setcsr(0x1F80); return old; }
static void restore_float_mode(unsigned mode) { _mm_setcsr(mode); }
static void cpu_relax(void) { _mm_pause(); }
#else
static unsigned float_mode(void)
{
    uint64_t old, standard = 0;
    __asm__ volatile("mrs %0, fpcr\n\tmsr fpcr, %1" : "=&r"(old) : "r"(standard));
    return (unsigned)old;
}
static void restore_float_mode(unsigned mode)
{
    uint64_t wide = mode;
    __asm__ volatile("msr fpcr, %0" : : "r"(wide));
}
static void cpu_relax(void) { __asm__ volatile("yield"); }
#endif

/* ================ threads ================ */

/*
 * The calling thread and the workers claim one piece of a job after another, so a late worker does
 * less and no thread waits for a worker that has not started. A piece is the thread's share of the
 * items that are left, in whole steps and within limits: large pieces first, small ones at the end, so
 * that all threads finish at nearly the same time (guided self-scheduling, Polychronopoulos and Kuck
 * 1987). `claims` holds the number of the job and of its remaining items. A thread that claims a piece
 * by compare-and-swap may read the job's fields until it counts the items in `finished`. It reads
 * `step` and `most` before: if they are those of a later job, the claim fails.
 */
static struct {
    pthread_mutex_t busy; /* held by the thread that submitted the job */
    int n_threads;        /* including the calling thread */
    int n_workers;        /* running */
    pthread_t workers[MAX_THREADS];
    float *scratch[MAX_THREADS];
    size_t scratch_bytes;
    _Atomic uint64_t claims; /* job << 32 | items left */
    _Atomic uint32_t published, finished;
    _Atomic int sleepers, caller_sleeps, stopping;
    Work *work;
    const void *job;
    int n_items;
    _Atomic int step, most; /* a piece has from `step` to `most` items, the last one may have fewer */
} pool = {.busy = PTHREAD_MUTEX_INITIALIZER, .n_threads = 1};

static int64_t nanoseconds(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return now.tv_sec * 1000000000LL + now.tv_nsec;
}

static void futex_wait(_Atomic uint32_t *word, uint32_t value)
{
    syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, value, NULL, NULL, 0);
}

static void futex_wake(_Atomic uint32_t *word, int n)
{
    syscall(SYS_futex, word, FUTEX_WAKE_PRIVATE, n, NULL, NULL, 0);
}

/* Called repeatedly while waiting: spins for 5 us, then yields; returns 0 after 50 us. */
static int keep_waiting(int64_t *since)
{
    if (!*since) *since = nanoseconds();
    cpu_relax();
    cpu_relax();
    int64_t waited = nanoseconds() - *since;
    if (waited > 5000) sched_yield();
    return waited < 50000;
}

/* Run one piece of the current job; returns 0 if none is left. */
static int do_piece(int worker)
{
    uint64_t claims = atomic_load_explicit(&pool.claims, memory_order_acquire);
    int n;
    do {
        const int left = (int)(uint32_t)claims;
        if (!left) return 0;
        const int step = pool.step, most = pool.most, share = least(left / pool.n_threads / step * step, most);
        n = least(share < step ? step : share, left);
    } while (!atomic_compare_exchange_weak_explicit(&pool.claims, &claims, claims - n,
                                                    memory_order_acq_rel, memory_order_acquire));
    const int n_items = pool.n_items, begin = n_items - (int)(uint32_t)claims;
    pool.work(pool.job, begin, begin + n, pool.scratch[worker]);
    uint32_t finished = atomic_fetch_add(&pool.finished, n) + n;
    if (finished == (uint32_t)n_items && atomic_load(&pool.caller_sleeps)) futex_wake(&pool.finished, 1);
    return 1;
}

static void *worker_main(void *number)
{
    float_mode();
    int64_t since = 0;
    while (!atomic_load(&pool.stopping)) {
        uint32_t published = atomic_load(&pool.published);
        if (do_piece((int)(intptr_t)number)) {
            since = 0;
        } else if (!keep_waiting(&since)) {
            atomic_fetch_add(&pool.sleepers, 1);
            if (!(uint32_t)atomic_load(&pool.claims) && !atomic_load(&pool.stopping))
                futex_wait(&pool.published, published);
            atomic_fetch_sub(&pool.sleepers, 1);
            since = 0;
        }
    }
    return NULL;
}

static void publish(uint64_t claims)
{
    atomic_store(&pool.claims, claims);
    atomic_fetch_add(&pool.published, 1);
    if (atomic_load(&pool.sleepers)) futex_wake(&pool.published, MAX_THREADS);
}

/* The child of a fork has no workers and no running job. */
static void forked(void)
{
    pthread_mutex_init(&pool.busy, NULL);
    pool.n_workers = 0;
    atomic_store(&pool.sleepers, 0);
    atomic_store(&pool.claims, 0);
}

/* A fork waits for the end of a job, also of one that runs on one thread. */
static void before_fork(void) { pthread_mutex_lock(&pool.busy); }
static void after_fork(void) { pthread_mutex_unlock(&pool.busy); }

static void start_workers(void)
{
    sigset_t all, old;
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &old); /* the program's own threads handle signals */
    while (pool.n_workers < pool.n_threads - 1) {
        intptr_t number = pool.n_workers + 1;
        if (pthread_create(&pool.workers[pool.n_workers], NULL, worker_main, (void *)number)) break;
        pool.n_workers++;
    }
    pthread_sigmask(SIG_SETMASK, &old, NULL);
}

static void set_threads(int n)
{
    static int registered;
    pthread_mutex_lock(&pool.busy);
    if (!registered) registered = !pthread_atfork(before_fork, after_fork, forked);
    atomic_store(&pool.stopping, 1);
    publish(0);
    for (; pool.n_workers; pool.n_workers--) pthread_join(pool.workers[pool.n_workers - 1], NULL);
    atomic_store(&pool.stopping, 0);
    pool.n_threads = least(n < 1 ? 1 : n, MAX_THREADS);
    for (int i = 0; i < MAX_THREADS; i++) {
        free(pool.scratch[i]);
        pool.scratch[i] = NULL;
    }
    pool.scratch_bytes = 0;
    pthread_mutex_unlock(&pool.busy);
}

static float *new_floats(size_t n) { return aligned_alloc(64, round_up(n * sizeof(float), 64)); }

static int reserve_scratch(size_t bytes)
{
    if (bytes <= pool.scratch_bytes) return 0;
    for (int i = 0; i < pool.n_threads; i++) {
        free(pool.scratch[i]);
        pool.scratch[i] = NULL;
    }
    pool.scratch_bytes = 0;
    for (int i = 0; i < pool.n_threads; i++)
        if (!(pool.scratch[i] = aligned_alloc(64, round_up(bytes, 64)))) return -1;
    pool.scratch_bytes = bytes;
    return 0;
}

/*
 * Run items 0..n_items of a job in pieces of `step` to `most` items, `most` a multiple of `step`, each
 * with `floats` of scratch. The calling thread runs small jobs alone, and also jobs that find the
 * workers busy. Returns -1 if out of memory.
 */
static int parallel(Work *work, const void *job, int n_items, int step, int most, size_t floats, int is_small)
{
    if (n_items <= 0) return 0;
    if (pthread_mutex_trylock(&pool.busy)) {
        float *scratch = new_floats(floats + 1);
        if (!scratch) return -1;
        for (int begin = 0; begin < n_items; begin += most)
            work(job, begin, least(begin + most, n_items), scratch);
        free(scratch);
        return 0;
    }
    int failed = reserve_scratch(floats * sizeof(float));
    if (!failed && (is_small || pool.n_threads == 1 || n_items <= step)) {
        for (int begin = 0; begin < n_items; begin += most)
            work(job, begin, least(begin + most, n_items), pool.scratch[0]);
    } else if (!failed) {
        if (pool.n_workers < pool.n_threads - 1) start_workers();
        pool.work = work;
        pool.job = job;
        pool.n_items = n_items;
        pool.step = step;
        pool.most = most;
        atomic_store(&pool.finished, 0);
        publish(((atomic_load(&pool.claims) >> 32) + 1) << 32 | (uint64_t)n_items);
        while (do_piece(0)) {}
        int64_t since = 0;
        uint32_t finished;
        while ((finished = atomic_load(&pool.finished)) < (uint32_t)n_items) {
            if (keep_waiting(&since)) continue;
            atomic_store(&pool.caller_sleeps, 1);
            futex_wait(&pool.finished, finished);
            atomic_store(&pool.caller_sleeps, 0);
        }
    }
    pthread_mutex_unlock(&pool.busy);
    return failed;
}

/* ================ the kernels, once for each instruction set ================ */

#define PASTE_(a, b) a##_##b
#define PASTE(a, b) PASTE_(a, b)
#define NAME(name) PASTE(name, ISA)
#define TEXT_(a) #a
#define TEXT(a) TEXT_(a)
#define OP static inline __attribute__((always_inline))

/* LANES floats in a register, NV registers for sixteen lanes, and four floats. */
#define V NAME(V)
#define W NAME(W)
#define Q NAME(Q)
#define NV (16 / LANES)
#define EACH for (int i = 0; i < NV; i++)
#define vload NAME(vload_)
#define vstore NAME(vstore_)
#define vset NAME(vset_)
#define vadd NAME(vadd_)
#define vsub NAME(vsub_)
#define vmul NAME(vmul_)
#define vdiv NAME(vdiv_)
#define vmin NAME(vmin_)
#define vmax NAME(vmax_)
#define vfma NAME(vfma_)
#define vround NAME(vround_)
#define vpow2 NAME(vpow2_)
#define vload_f16 NAME(vload_f16_)
#define vload_bf16 NAME(vload_bf16_)
#define vload_int8 NAME(vload_int8_)
#define fold NAME(fold_)
#define sum4 NAME(sum4_)
#define sum16 NAME(sum16_)
#define transpose4 NAME(transpose4_)
#define qload NAME(qload_)
#define qadd NAME(qadd_)
#define put NAME(put_)
#define qstore NAME(qstore_)
#define wload NAME(wload_)
#define wload_upto NAME(wload_upto_)
#define wstore_upto NAME(wstore_upto_)
#define wset NAME(wset_)
#define wadd NAME(wadd_)
#define wsub NAME(wsub_)
#define wmul NAME(wmul_)
#define wdiv NAME(wdiv_)
#define wmin NAME(wmin_)
#define wmax NAME(wmax_)
#define wfma NAME(wfma_)
#define wsum NAME(wsum_)
#define wload_kind NAME(wload_kind_)
#define wexp NAME(wexp_)
#define activated NAME(activated_)
#define do_activate NAME(do_activate_)
#define put_block NAME(put_block_)
#define block NAME(block_)
#define panel_block NAME(panel_block_)
#define strips NAME(strips_)
#define panel_strips NAME(panel_strips_)
#define run_strips NAME(run_strips_)
#define panel_at NAME(panel_at_)
#define to_panel NAME(to_panel_)
#define columns_to_panel NAME(columns_to_panel_)
#define add_inputs NAME(add_inputs_)
#define rows_of_columns NAME(rows_of_columns_)
#define product_core NAME(product_core_)
#define do_product NAME(do_product_)
#define do_greedy NAME(do_greedy_)
#define do_norm NAME(do_norm_)
#define do_row NAME(do_row_)
#define softmax_row NAME(softmax_row_)
#define weigh_values NAME(weigh_values_)
#define attend NAME(attend_)
#define do_attention NAME(do_attention_)
#define kernels NAME(kernels_)
#define UNROLL _Pragma("GCC unroll 16")

#if defined(__x86_64__)
#define ISA avx2
#define LANES 8
/*
 * B(kind, R, O, P): a block has R rows and O outputs and computes P of its NV registers at a time.
 * PANEL_O, PANEL_BLOCKS: outputs of a block of a panel, and its possible numbers of rows. All are
 * chosen so that sums and operands fit the registers, 16 here and 32 on the others.
 */
#define BLOCKS(B, kind) B(kind, 1, 4, 2) B(kind, 2, 2, 2) B(kind, 3, 3, 1) B(kind, 4, 2, 1) B(kind, 5, 2, 1) B(kind, 6, 2, 1)
#define INT8_BLOCKS(B)
#define INT8_ROWS BLOCK_ROWS
#define PANEL_O 3
#define PANEL_BLOCKS(B) B(1) B(2) B(3) B(4)
#define VALUES_AT_ONCE 1
#pragma GCC push_options
#pragma GCC target("avx2,fma,f16c")
#include "_kernels.c"
#pragma GCC pop_options
#undef ISA
#undef LANES
#undef BLOCKS
#undef INT8_BLOCKS
#undef INT8_ROWS
#undef PANEL_O
#undef PANEL_BLOCKS
#undef VALUES_AT_ONCE

#define ISA avx512
#define LANES 16
#define BLOCKS(B, kind) B(kind, 1, 4, 1) B(kind, 2, 4, 1) B(kind, 3, 4, 1) B(kind, 4, 4, 1) B(kind, 5, 4, 1) B(kind, 6, 4, 1)
/* int8 needs more instructions for each weight, so more rows share them. */
#define INT8_BLOCKS(B) B(INT8, 7, 3, 1) B(INT8, 8, 3, 1)
#define INT8_ROWS 8
#define PANEL_O 4
#define PANEL_BLOCKS(B) B(1) B(2) B(3) B(4) B(5) B(6)
#define VALUES_AT_ONCE 4
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")
#include "_kernels.c"
#pragma GCC pop_options
#undef ISA
#undef LANES
#undef BLOCKS
#undef INT8_BLOCKS
#undef INT8_ROWS
#undef PANEL_O
#undef PANEL_BLOCKS
#undef VALUES_AT_ONCE
#else
#define ISA neon
#define LANES 4
#define BLOCKS(B, kind) B(kind, 1, 2, 4) B(kind, 2, 2, 4) B(kind, 3, 4, 1) B(kind, 4, 4, 1) B(kind, 5, 4, 1) B(kind, 6, 4, 1)
#define INT8_BLOCKS(B)
#define INT8_ROWS BLOCK_ROWS
#define PANEL_O 4
#define PANEL_BLOCKS(B) B(1) B(2) B(3) B(4) B(5) B(6)
#define VALUES_AT_ONCE 1
#include "_kernels.c"
#undef ISA
#undef LANES
#undef BLOCKS
#undef INT8_BLOCKS
#undef INT8_ROWS
#undef PANEL_O
#undef PANEL_BLOCKS
#undef VALUES_AT_ONCE
#endif

#ifdef KERNELS_DRIVER /* slow plain C: the reference for the tests of the others */
#define ISA scalar
#define LANES 4
#define BLOCKS(B, kind) B(kind, 1, 1, 4) B(kind, 2, 1, 4) B(kind, 3, 1, 4) B(kind, 4, 1, 4) B(kind, 5, 1, 4) B(kind, 6, 1, 4)
#define INT8_BLOCKS(B)
#define INT8_ROWS BLOCK_ROWS
#define PANEL_O 4
#define PANEL_BLOCKS(B) B(1) B(2) B(3) B(4) B(5) B(6)
#define VALUES_AT_ONCE 1
#define SCALAR
#include "_kernels.c"
#undef ISA
#endif

/* ================ operations, split over threads ================ */

/* The compiled instruction sets, fastest first, and whether this processor supports them. */
static const Kernels *const all_kernels[] = {
#if defined(__x86_64__)
    &kernels__avx512, &kernels__avx2,
#else
    &kernels__neon,
#endif
#ifdef KERNELS_DRIVER
    &kernels__scalar,
#endif
    NULL};

static int runs_here(const Kernels *kernels)
{
#if defined(__x86_64__)
    /* Not __builtin_cpu_supports: it caches its result, and a snapshot may be restored on another
     * processor. Bits: Intel, Software Developer's Manual, CPUID; xgetbv: registers the OS saves. */
    unsigned a, b, c, d, b7 = 0, state = 0;
    if (!__get_cpuid(1, &a, &b, &c, &d)) return 0;
    if (c >> 27 & 1) __asm__ volatile("xgetbv" : "=a"(state), "=d"(d) : "c"(0));
    __get_cpuid_count(7, 0, &a, &b7, &a, &d);
    int has_avx2 = (state & 0x6) == 0x6 && (c >> 12 & 1) && (c >> 29 & 1) && (b7 >> 5 & 1);
    if (kernels == &kernels__avx2) return has_avx2;
    if (kernels == &kernels__avx512)
        return has_avx2 && (state & 0xE6) == 0xE6 && (b7 >> 16 & 1) && (b7 >> 17 & 1) && (b7 >> 30 & 1) && (b7 >> 31 & 1);
#endif
    (void)kernels;
    return 1;
}

static const Kernels *chosen;

/* Select the kernels by name, or the fastest supported ones; NULL if there are none. */
static const Kernels *choose_kernels(const char *name)
{
    for (const Kernels *const *k = all_kernels; *k; k++)
        if ((!name || !strcmp(name, (*k)->name)) && runs_here(*k)) return chosen = *k;
    return chosen = NULL;
}

/*
 * The outputs of the smallest piece of a product, a multiple of each block's outputs, and in `most`
 * those of the largest. Weights stored as [n_in][n_out] get one piece for each thread, so that each
 * reads long runs of every row.
 */
static int smallest_piece(const Matrix *m, int rows, int *most)
{
    if (m->columns && rows <= COLUMN_ROWS) {
        const size_t limit = COLUMN_SUMS / rows / 16 * 16, pieces = round_up((m->n_out + limit - 1) / limit, pool.n_threads);
        return *most = (int)round_up((m->n_out + pieces - 1) / pieces, 16);
    }
    if (m->columns || rows >= PANEL_ROWS[m->kind]) return *most = PANEL_PIECE;
    *most = ROWS_PIECE;
    return 12;
}

/* x with padded rows, if n_in is not a multiple of 16 and w is not used in columns. */
static int pad_rows(Product *p, float **padded)
{
    const size_t n_in = p->m.n_in;
    p->x_stride = n_in;
    *padded = NULL;
    if (n_in % 16 == 0 || (p->m.columns && p->rows <= COLUMN_ROWS)) return 0;
    p->x_stride = round_up(n_in, 16);
    if (!(*padded = new_floats(p->x_stride * p->rows))) return -1;
    for (int r = 0; r < p->rows; r++) {
        memcpy(*padded + r * p->x_stride, p->x + r * n_in, n_in * sizeof(float));
        memset(*padded + r * p->x_stride + n_in, 0, (p->x_stride - n_in) * sizeof(float));
    }
    p->x = *padded;
    return 0;
}

/* y = activation(x w + bias) + residual. This and the functions below return -1 if out of memory. */
static int linear(const Matrix *m, const float *x, int rows, float *y, enum activation activation, const float *residual)
{
    Product p = {.m = *m, .x = x, .rows = rows, .y = y, .activation = activation, .residual = residual};
    float *padded;
    if (!rows) return 0;
    if (pad_rows(&p, &padded)) return -1;
    int most, step = smallest_piece(m, rows, &most);
    int failed = parallel(chosen->product, &p, (int)m->n_out, step, most, PANEL_OUTS * K_CHUNK,
                          (double)rows * m->n_out * m->n_in < SMALL_WORK);
    free(padded);
    return failed;
}

/* The index of the largest output of each row, the lowest of equals; outputs are not stored. */
static int greedy(const Matrix *m, const float *x, int rows, int64_t *ids, char *is_nan)
{
    for (int from = 0; from < rows; from += GREEDY_ROWS) {
        Greedy g = {.product = {.m = *m, .x = x + from * m->n_in, .rows = least(GREEDY_ROWS, rows - from)}};
        const int n = g.product.rows;
        smallest_piece(m, n, &g.piece);
        g.piece = least(g.piece, GREEDY_PIECE);
        const size_t pieces = (m->n_out + g.piece - 1) / g.piece;
        float *padded;
        if (pad_rows(&g.product, &padded)) return -1;
        g.best = malloc(pieces * n * sizeof *g.best);
        int failed = !g.best || parallel(chosen->greedy, &g, (int)m->n_out, g.piece, g.piece, PANEL_OUTS * K_CHUNK + (size_t)n * g.piece,
                                         (double)n * m->n_out * m->n_in < SMALL_WORK);
        for (int r = 0; r < n && !failed; r++) {
            struct best best = g.best[r];
            for (size_t i = 1; i < pieces; i++) {
                const struct best *other = &g.best[i * n + r];
                best.is_nan |= other->is_nan;
                if (other->value > best.value) {
                    best.value = other->value;
                    best.id = other->id;
                }
            }
            ids[from + r] = best.id;
            is_nan[from + r] = (char)best.is_nan;
        }
        free(g.best);
        free(padded);
        if (failed) return -1;
    }
    return 0;
}

/* Normalize each row to mean 0 and variance 1, then multiply by weight and add bias. */
static int layer_norm(const float *x, int rows, size_t n, const float *weight, const float *bias, float epsilon, float *y)
{
    Norm m = {x, weight, bias, y, n, epsilon};
    return parallel(chosen->norm, &m, rows, 8, 8, 0, rows * n < SMALL_WORK);
}

/* Copy keys and values of rows begin..end to their caches. */
static void store_rows(const void *job, int begin, int end, float *scratch)
{
    (void)scratch;
    const Attention *a = job;
    const size_t n = a->head_dim, width = a->n_head * n;
    for (int row = begin; row < end; row++) {
        const Sequence *s = a->sequences + a->n_sequences - 1;
        while (s->first_row > row) s--;
        const float *key = a->qkv + (3 * (size_t)row + 1) * width;
        for (int head = 0; head < a->n_head; head++) {
            size_t at = (head * s->capacity + s->n_past + row - s->first_row) * n;
            memcpy(s->keys + at, key + head * n, n * sizeof(float));
            memcpy(s->values + at, key + width + head * n, n * sizeof(float));
        }
    }
}

/* qkv [rows][3][n_head][head_dim] -> heads, see `Attention`; fills in the sequences' first_… */
static int attention(const float *qkv, float *heads, Sequence *sequences, int n_sequences, int n_head, int head_dim, float scale)
{
    Attention a = {.qkv = qkv, .heads = heads, .sequences = sequences, .n_sequences = n_sequences, .n_head = n_head, .head_dim = head_dim, .scale = scale};
    int rows = 0, n_heads = 0;
    double work = 0;
    for (Sequence *s = sequences; s < sequences + n_sequences; s++) {
        const int wanted = s->rows - s->begin;
        s->first_row = rows;
        s->first_head = n_heads;
        s->first_unit = a.n_units;
        rows += s->rows;
        n_heads += wanted;
        a.n_units += (wanted + UNIT_ROWS - 1) / UNIT_ROWS * n_head;
        work += 2. * wanted * (s->n_past + s->rows);
        if (a.max_kv < s->n_past + s->rows) a.max_kv = s->n_past + s->rows;
    }
    a.max_kv = (int)round_up(a.max_kv, 16);
    size_t width = (size_t)n_head * head_dim, floats = PANEL_OUTS * K_CHUNK + BLOCK_ROWS * (round_up(head_dim, 16) + a.max_kv);
    return parallel(store_rows, &a, rows, 16, 16, 0, rows * width < SMALL_WORK) ||
           parallel(chosen->attention, &a, a.n_units, 1, 1, floats, work * width < SMALL_WORK) ? -1 : 0;
}

/* The weights of one transformer block. */
typedef struct {
    const float *ln_1_weight, *ln_1_bias, *ln_2_weight, *ln_2_bias;
    const Matrix *c_attn, *c_proj, *c_fc, *mlp_c_proj;
    float scale; /* factor of query times key */
} Block;

/* Move the rows whose result is needed to the beginning of x [rows][n]; returns their number. */
static int keep_last_rows(Sequence *sequences, int n_sequences, float *x, size_t n)
{
    int row = 0, n_kept = 0;
    for (Sequence *s = sequences; s < sequences + n_sequences; s++) {
        s->begin = s->rows - s->n_last;
        memmove(x + n_kept * n, x + (row + s->begin) * n, s->n_last * n * sizeof(float));
        row += s->rows;
        n_kept += s->n_last;
    }
    return n_kept;
}

/*
 * All blocks, on x [rows][n_embd] in place: see `hidden_states` in `gpt2core/forward.py`. `keys` and `values`
 * of the sequences point to the first layer and contain all layers. At the end, x begins with the
 * `n_last` rows of each sequence. The last block computes only keys and values of the other rows.
 */
static int forward(const Block *blocks, int n_layer, int n_head, int head_dim, float epsilon, enum activation activation, float *x, int rows, Sequence *sequences, int n_sequences)
{
    const size_t n_embd = (size_t)n_head * head_dim, n_inner = blocks[0].c_fc->n_out;
    float *normed = new_floats(rows * (n_embd + n_embd + 3 * n_embd + n_inner));
    if (!normed) return -1;
    float *heads = normed + rows * n_embd, *qkv = heads + rows * n_embd, *inner = qkv + rows * 3 * n_embd;
    int failed = 0;
    for (const Block *b = blocks; b < blocks + n_layer && !failed; b++) {
        failed = layer_norm(x, rows, n_embd, b->ln_1_weight, b->ln_1_bias, epsilon, normed) ||
                 linear(b->c_attn, normed, rows, qkv, NONE, NULL);
        if (failed) break;
        if (b == blocks + n_layer - 1) rows = keep_last_rows(sequences, n_sequences, x, n_embd);
        failed = attention(qkv, heads, sequences, n_sequences, n_head, head_dim, b->scale) ||
                 linear(b->c_proj, heads, rows, normed, NONE, x);
        if (failed) break;
        memcpy(x, normed, rows * n_embd * sizeof(float));
        failed = layer_norm(x, rows, n_embd, b->ln_2_weight, b->ln_2_bias, epsilon, normed) ||
                 linear(b->c_fc, normed, rows, inner, activation, NULL) ||
                 linear(b->mlp_c_proj, inner, rows, normed, NONE, x);
        if (failed) break;
        memcpy(x, normed, rows * n_embd * sizeof(float));
        for (Sequence *s = sequences; s < sequences + n_sequences; s++) {
            s->keys += s->capacity * n_embd;
            s->values += s->capacity * n_embd;
        }
    }
    free(normed);
    return failed ? -1 : 0;
}

/* ================ the Python module ================ */

#ifndef KERNELS_DRIVER
#define Py_LIMITED_API 0x030B0000
#define PY_SSIZE_T_CLEAN
#include <Python.h>
#include <sys/mman.h>

#define LONG_WORK 1e9 /* multiply-adds, or twice the bytes of weights: longer calls take milliseconds and release the GIL, as do those with may_block */

/* Buffers in use by a call. */
typedef struct {
    Py_buffer *views;
    int n, room;
} Held;

static void release(Held *held)
{
    while (held->n) PyBuffer_Release(&held->views[--held->n]);
    PyMem_Free(held->views);
    held->views = NULL;
    held->room = 0;
}

/* The memory of a C-contiguous array of `n` items of `size` bytes (n < 0: any number, see views[n - 1]). */
static void *buffer(Held *held, PyObject *object, double n, int size, int writable)
{
    if (held->n == held->room) {
        int room = held->room ? 2 * held->room : 16;
        Py_buffer *views = PyMem_Realloc(held->views, room * sizeof *views);
        if (!views) return PyErr_NoMemory();
        held->views = views;
        held->room = room;
    }
    Py_buffer *view = &held->views[held->n];
    if (PyObject_GetBuffer(object, view, writable ? PyBUF_ND | PyBUF_WRITABLE : PyBUF_ND)) return NULL;
    held->n++;
    if (view->itemsize != size || (n >= 0 && view->len != n * size)) {
        PyErr_Format(PyExc_ValueError, "a buffer of %zd bytes in items of %zd instead of %zd items of %d", view->len, view->itemsize, (Py_ssize_t)n, size);
        return NULL;
    }
    return view->buf;
}

typedef struct {
    PyObject_HEAD
    Matrix m;
    Held held;
} PyMatrix;

static PyTypeObject *matrix_type;

static void matrix_dealloc(PyObject *self)
{
    PyTypeObject *type = Py_TYPE(self);
    release(&((PyMatrix *)self)->held);
    PyObject_Free(self);
    Py_DECREF(type);
}

static PyType_Slot matrix_slots[] = {{Py_tp_dealloc, matrix_dealloc}, {Py_tp_doc, "Weights of one product, made by matrix()."}, {0, NULL}};
static PyType_Spec matrix_spec = {"gpt2core.kernels._kernels.Matrix", sizeof(PyMatrix), 0, Py_TPFLAGS_DEFAULT | Py_TPFLAGS_DISALLOW_INSTANTIATION, matrix_slots};

static Matrix *matrix_of(PyObject *object)
{
    if (Py_TYPE(object) == matrix_type) return &((PyMatrix *)object)->m;
    PyErr_Format(PyExc_TypeError, "%R is not a Matrix: make it with matrix()", Py_TYPE(object));
    return NULL;
}

static int arguments(Py_ssize_t n, Py_ssize_t wanted)
{
    if (n == wanted && chosen) return 1;
    if (n != wanted) PyErr_Format(PyExc_TypeError, "%zd arguments instead of %zd", n, wanted);
    else PyErr_SetString(PyExc_RuntimeError, "no kernels are selected: call choose() first");
    return 0;
}

/* The argument `name`, an integer from low to high, or -1 with an exception set. */
static long number(const char *name, PyObject *object, long low, long high)
{
    long value = PyLong_AsLong(object);
    if (value == -1 && PyErr_Occurred()) return -1;
    if (value >= low && value <= high) return value;
    PyErr_Format(PyExc_ValueError, "%s is %ld, not an integer from %ld to %ld", name, value, low, high);
    return -1;
}

/* The size of a list, or -1 with an exception set. */
static Py_ssize_t list_size(PyObject *object)
{
    if (PyList_Check(object)) return PyList_Size(object);
    PyErr_Format(PyExc_TypeError, "%R is not a list", Py_TYPE(object));
    return -1;
}

#define MOST 0x7FFFFFF /* limit of rows, outputs and inputs: the product of two is far below 2^63 */

/* matrix(kind, columns, n_out, n_in, data, scale | None, bias | None) */
static PyObject *py_matrix(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 7)) return NULL;
    long kind = number("kind", a[0], 0, 3), columns = number("columns", a[1], 0, 1), n_out = number("n_out", a[2], 1, MOST), n_in = number("n_in", a[3], 1, MOST);
    if (kind < 0 || columns < 0 || n_out < 0 || n_in < 0) return NULL;
    PyMatrix *self = PyObject_New(PyMatrix, matrix_type);
    if (!self) return NULL;
    self->held = (Held){0};
    Matrix *m = &self->m;
    *m = (Matrix){.kind = (enum kind)kind, .columns = (int)columns, .n_out = n_out, .n_in = n_in};
    m->w = buffer(&self->held, a[4], (double)n_out * n_in, SIZE[kind], 0);
    if (m->w && kind == INT8)
        m->scale = buffer(&self->held, a[5], (double)n_out * (round_up(n_in, GROUP) / GROUP), sizeof(float), 0);
    if (m->w && a[6] != Py_None) m->bias = buffer(&self->held, a[6], n_out, sizeof(float), 0);
    if (PyErr_Occurred()) {
        Py_DECREF(self);
        return NULL;
    }
    return (PyObject *)self;
}

/* Run `call`, which returns -1 if out of memory; releases the GIL for long calls. */
#define COMPUTE(is_long, call)                                                                            \
    do {                                                                                                  \
        unsigned mode = float_mode();                                                                     \
        if (is_long) {                                                                                    \
            Py_BEGIN_ALLOW_THREADS                                                                        \
            failed = call;                                                                                \
            Py_END_ALLOW_THREADS                                                                          \
        } else {                                                                                          \
            failed = call;                                                                                \
        }                                                                                                 \
        restore_float_mode(mode);                                                                         \
    } while (0)

static PyObject *finish(Held *held, int failed)
{
    release(held);
    if (PyErr_Occurred()) return NULL;
    if (failed) return PyErr_NoMemory();
    Py_RETURN_NONE;
}

static int takes_long(const Matrix *m, double rows)
{
    double weights = (double)m->n_out * m->n_in;
    return rows * weights > LONG_WORK || 2 * SIZE[m->kind] * weights > LONG_WORK;
}

/* linear(matrix, x, rows, y, activation, residual | None) */
static PyObject *py_linear(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 6)) return NULL;
    const Matrix *m = matrix_of(a[0]);
    long rows = m ? number("rows", a[2], 0, MOST) : -1, activation = rows < 0 ? -1 : number("activation", a[4], 0, N_ACTIVATIONS - 1);
    if (activation < 0) return NULL;
    Held held = {0};
    int failed = 0;
    const float *residual = NULL, *x = buffer(&held, a[1], (double)rows * m->n_in, sizeof(float), 0);
    float *y = x ? buffer(&held, a[3], (double)rows * m->n_out, sizeof(float), 1) : NULL;
    if (y && a[5] != Py_None) residual = buffer(&held, a[5], (double)rows * m->n_out, sizeof(float), 0);
    if (!PyErr_Occurred()) COMPUTE(takes_long(m, rows), linear(m, x, (int)rows, y, (enum activation)activation, residual));
    return finish(&held, failed);
}

/* greedy(matrix, x, rows, may_block) -> [id | None, …] */
static PyObject *py_greedy(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 4)) return NULL;
    const Matrix *m = matrix_of(a[0]);
    long rows = m ? number("rows", a[2], 0, MOST) : -1, may_block = rows < 0 ? -1 : number("may_block", a[3], 0, 1);
    if (may_block < 0) return NULL;
    Held held = {0};
    int failed = 0;
    PyObject *list = NULL;
    const float *x = buffer(&held, a[1], (double)rows * m->n_in, sizeof(float), 0);
    int64_t *ids = PyMem_Calloc(rows + 1, sizeof *ids + 1);
    char *is_nan = ids ? (char *)(ids + rows) : NULL;
    if (!ids) PyErr_NoMemory();
    if (x && ids) COMPUTE(may_block || takes_long(m, rows), greedy(m, x, (int)rows, ids, is_nan));
    release(&held);
    if (failed) PyErr_NoMemory();
    if (!PyErr_Occurred()) list = PyList_New(rows);
    for (long r = 0; list && r < rows; r++) {
        PyObject *id = is_nan[r] ? Py_NewRef(Py_None) : PyLong_FromLongLong(ids[r]);
        if (!id) Py_CLEAR(list);
        else PyList_SetItem(list, r, id);
    }
    PyMem_Free(ids);
    return list;
}

static int rows_of(const Matrix *m, const long *at, Py_ssize_t rows, float *y, int add)
{
    for (Py_ssize_t r = 0; r < rows; r++) chosen->row(m, at[r], y + r * m->n_in, add);
    return 0;
}

/* rows(matrix, [index, …], y, add, may_block): rows of a matrix stored by rows, as float32; with `add`, added to y */
static PyObject *py_rows(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 5)) return NULL;
    const Matrix *m = matrix_of(a[0]);
    Py_ssize_t rows = m ? list_size(a[1]) : -1;
    long add = rows < 0 ? -1 : number("add", a[3], 0, 1), may_block = add < 0 ? -1 : number("may_block", a[4], 0, 1);
    if (may_block < 0) return NULL;
    if (m->columns) return PyErr_Format(PyExc_ValueError, "the matrix is stored by columns");
    Held held = {0};
    int failed = 0;
    float *y = buffer(&held, a[2], (double)rows * m->n_in, sizeof(float), 1);
    long *at = PyMem_Calloc(rows + 1, sizeof *at);
    if (!at) PyErr_NoMemory();
    for (Py_ssize_t r = 0; r < rows && !PyErr_Occurred(); r++) at[r] = number("row", PyList_GetItem(a[1], r), 0, (long)m->n_out - 1);
    if (!PyErr_Occurred()) COMPUTE(may_block, rows_of(m, at, rows, y, (int)add));
    PyMem_Free(at);
    return finish(&held, failed);
}

/* empty(n) -> bytearray of n uninitialized bytes */
static PyObject *py_empty(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "%zd arguments instead of 1", n);
    Py_ssize_t size = PyLong_AsSsize_t(a[0]);
    if (size == -1 && PyErr_Occurred()) return NULL;
    if (size < 0) return PyErr_Format(PyExc_ValueError, "n is %zd, not a number of bytes", size);
    /* In CPython 3.11, PyByteArray_FromStringAndSize prints an error before it raises MemoryError. */
    PyObject *bytes = PyByteArray_FromStringAndSize(NULL, 0);
    if (bytes && PyByteArray_Resize(bytes, size) < 0) Py_CLEAR(bytes);
#ifdef MADV_HUGEPAGE /* as NumPy does: fewer page faults */
    if (bytes && size >= 1 << 22) {
        char *page = (char *)round_up((uintptr_t)PyByteArray_AsString(bytes), 4096);
        madvise(page, PyByteArray_AsString(bytes) + size - page, MADV_HUGEPAGE);
    }
#endif
    return bytes;
}

/* layer_norm(x, rows, n, weight, bias, epsilon, y) */
static PyObject *py_layer_norm(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 7)) return NULL;
    long rows = number("rows", a[1], 0, MOST), width = rows < 0 ? -1 : number("n", a[2], 1, MOST);
    double epsilon = width < 0 ? -1 : PyFloat_AsDouble(a[5]);
    if (PyErr_Occurred()) return NULL;
    Held held = {0};
    int failed = 0;
    const float *x = buffer(&held, a[0], (double)rows * width, sizeof(float), 0), *weight = NULL, *bias = NULL;
    if (x) weight = buffer(&held, a[3], width, sizeof(float), 0);
    if (weight) bias = buffer(&held, a[4], width, sizeof(float), 0);
    float *y = bias ? buffer(&held, a[6], (double)rows * width, sizeof(float), 1) : NULL;
    if (y) COMPUTE(0, layer_norm(x, (int)rows, width, weight, bias, (float)epsilon, y));
    return finish(&held, failed);
}

/* activate(x, activation), in place */
static PyObject *py_activate(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 2)) return NULL;
    long activation = number("activation", a[1], 0, N_ACTIVATIONS - 1);
    if (activation < 0) return NULL;
    Held held = {0};
    int failed = 0;
    float *x = buffer(&held, a[0], -1, sizeof(float), 1);
    if (x) COMPUTE(0, (chosen->activate(x, held.views[0].len / sizeof(float), (enum activation)activation), 0));
    return finish(&held, failed);
}

/* [(rows, n_past, keys, values, n_last), …] -> new array; keys and values are [n_layer][n_head][capacity][head_dim]. */
static Sequence *sequences_of(PyObject *list, Held *held, int n_layer, size_t n_embd, long *n_sequences, long *rows)
{
    Py_ssize_t n = list_size(list);
    if (n < 0) return NULL;
    Sequence *all = PyMem_Calloc(n + 1, sizeof *all);
    if (!all) return (Sequence *)PyErr_NoMemory();
    *n_sequences = n;
    *rows = 0;
    for (Py_ssize_t i = 0; i < n; i++) {
        PyObject *item = PyList_GetItem(list, i);
        if (!PyTuple_Check(item) || PyTuple_Size(item) != 5) {
            PyErr_SetString(PyExc_TypeError, "a sequence is (rows, n_past, keys, values, n_last)");
            break;
        }
        Sequence *s = &all[i];
        long n_rows = number("rows", PyTuple_GetItem(item, 0), 0, MOST), n_past = n_rows < 0 ? -1 : number("n_past", PyTuple_GetItem(item, 1), 0, MOST);
        long n_last = n_past < 0 ? -1 : number("n_last", PyTuple_GetItem(item, 4), 0, n_rows);
        if (n_last < 0 || !(s->keys = buffer(held, PyTuple_GetItem(item, 2), -1, sizeof(float), 1))) break;
        size_t floats = held->views[held->n - 1].len / sizeof(float);
        if (!(s->values = buffer(held, PyTuple_GetItem(item, 3), (double)floats, sizeof(float), 1))) break;
        s->rows = (int)n_rows;
        s->n_past = (int)n_past;
        s->n_last = (int)n_last;
        s->capacity = floats / (n_layer * n_embd);
        *rows += n_rows;
        if (floats != s->capacity * n_layer * n_embd || (size_t)(n_past + n_rows) > s->capacity || *rows > MOST) {
            PyErr_Format(PyExc_ValueError, "sequence %zd does not fit its cache", i);
            break;
        }
    }
    if (!PyErr_Occurred()) return all;
    PyMem_Free(all);
    return NULL;
}

/* attention(qkv, heads, sequences, n_head, head_dim, scale): one layer, for the n_last rows of each sequence */
static PyObject *py_attention(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 6)) return NULL;
    long n_head = number("n_head", a[3], 1, MOST), head_dim = n_head < 0 ? -1 : number("head_dim", a[4], 1, MOST / n_head), n_sequences, rows;
    double scale = head_dim < 0 ? 0 : PyFloat_AsDouble(a[5]);
    if (PyErr_Occurred()) return NULL;
    Held held = {0};
    int failed = 0;
    const size_t n_embd = (size_t)n_head * head_dim;
    Sequence *sequences = sequences_of(a[2], &held, 1, n_embd, &n_sequences, &rows);
    const float *qkv = sequences ? buffer(&held, a[0], 3. * rows * n_embd, sizeof(float), 0) : NULL;
    int n_heads = 0;
    for (long i = 0; qkv && i < n_sequences; i++) {
        sequences[i].begin = sequences[i].rows - sequences[i].n_last;
        n_heads += sequences[i].n_last;
    }
    float *heads = qkv ? buffer(&held, a[1], (double)n_heads * n_embd, sizeof(float), 1) : NULL;
    if (heads && rows) COMPUTE(0, attention(qkv, heads, sequences, (int)n_sequences, (int)n_head, (int)head_dim, (float)scale));
    PyMem_Free(sequences);
    return finish(&held, failed);
}

/* (ln_1 weight, bias, c_attn, c_proj, ln_2 weight, bias, c_fc, mlp c_proj, scale) */
static int block_of(PyObject *item, Held *held, size_t n_embd, size_t n_inner, Block *b)
{
    if (!PyTuple_Check(item) || PyTuple_Size(item) != 9) {
        PyErr_SetString(PyExc_TypeError, "a block has nine parts");
        return -1;
    }
    const float **norms[] = {&b->ln_1_weight, &b->ln_1_bias, &b->ln_2_weight, &b->ln_2_bias};
    const Matrix **matrices[] = {&b->c_attn, &b->c_proj, &b->c_fc, &b->mlp_c_proj};
    const size_t shapes[][2] = {{3 * n_embd, n_embd}, {n_embd, n_embd}, {n_inner, n_embd}, {n_embd, n_inner}};
    for (int i = 0; i < 4; i++) {
        PyObject *norm = PyTuple_GetItem(item, i / 2 * 4 + i % 2), *matrix = PyTuple_GetItem(item, i / 2 * 4 + 2 + i % 2);
        if (!(*norms[i] = buffer(held, norm, n_embd, sizeof(float), 0)) || !(*matrices[i] = matrix_of(matrix))) return -1;
        if ((*matrices[i])->n_out != shapes[i][0] || (*matrices[i])->n_in != shapes[i][1]) {
            PyErr_Format(PyExc_ValueError, "matrix %d of a block is [%zu, %zu] instead of [%zu, %zu]", i, (*matrices[i])->n_out, (*matrices[i])->n_in, shapes[i][0], shapes[i][1]);
            return -1;
        }
    }
    b->scale = (float)PyFloat_AsDouble(PyTuple_GetItem(item, 8));
    return PyErr_Occurred() ? -1 : 0;
}

/* forward(x, blocks, sequences, n_head, head_dim, n_inner, epsilon, activation, may_block): all blocks, x in place, as in `forward` above */
static PyObject *py_forward(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (!arguments(n, 9)) return NULL;
    long n_head = number("n_head", a[3], 1, MOST), head_dim = n_head < 0 ? -1 : number("head_dim", a[4], 1, MOST / n_head), n_inner = head_dim < 0 ? -1 : number("n_inner", a[5], 1, MOST);
    long activation = n_inner < 0 ? -1 : number("activation", a[7], 0, N_ACTIVATIONS - 1), may_block = activation < 0 ? -1 : number("may_block", a[8], 0, 1), n_sequences, rows;
    double epsilon = may_block < 0 ? 0 : PyFloat_AsDouble(a[6]), weights = 0, bytes = 0;
    Py_ssize_t n_layer = may_block < 0 ? 0 : list_size(a[1]);
    if (PyErr_Occurred()) return NULL;
    Held held = {0};
    int failed = 0;
    const size_t n_embd = (size_t)n_head * head_dim;
    Sequence *sequences = NULL;
    float *x = NULL;
    Block *blocks = PyMem_Calloc(n_layer + 1, sizeof *blocks);
    if (!blocks) PyErr_NoMemory();
    for (Py_ssize_t i = 0; i < n_layer && !PyErr_Occurred(); i++) {
        Block *b = &blocks[i];
        if (block_of(PyList_GetItem(a[1], i), &held, n_embd, n_inner, b)) break;
        weights += 4. * n_embd * n_embd + 2. * n_embd * n_inner;
        bytes += SIZE[b->c_fc->kind] * (4. * n_embd * n_embd + 2. * n_embd * n_inner);
    }
    if (!PyErr_Occurred()) sequences = sequences_of(a[2], &held, (int)n_layer, n_embd, &n_sequences, &rows);
    if (sequences) x = buffer(&held, a[0], (double)rows * n_embd, sizeof(float), 1);
    if (x && rows && n_layer)
        COMPUTE(may_block || rows * weights > LONG_WORK || 2 * bytes > LONG_WORK,
                forward(blocks, (int)n_layer, (int)n_head, (int)head_dim, (float)epsilon, (enum activation)activation, x, (int)rows, sequences, (int)n_sequences));
    PyMem_Free(sequences);
    PyMem_Free(blocks);
    return finish(&held, failed);
}

/* choose(name | None) -> the name of the selected kernels, None if none are supported */
static PyObject *py_choose(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    PyObject *bytes = NULL;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "%zd arguments instead of 1", n);
    if (a[0] != Py_None && !(bytes = PyUnicode_AsUTF8String(a[0]))) return NULL;
    choose_kernels(bytes ? PyBytes_AsString(bytes) : NULL);
    Py_XDECREF(bytes);
    if (chosen) return PyUnicode_FromString(chosen->name);
    Py_RETURN_NONE;
}

static PyObject *py_set_threads(PyObject *module, PyObject *const *a, Py_ssize_t n)
{
    (void)module;
    if (n != 1) return PyErr_Format(PyExc_TypeError, "%zd arguments instead of 1", n);
    long threads = number("threads", a[0], 1, 1 << 20);
    if (threads < 0) return NULL;
    Py_BEGIN_ALLOW_THREADS
    set_threads((int)least(threads, MAX_THREADS));
    Py_END_ALLOW_THREADS
    Py_RETURN_NONE;
}

#define METHOD(name) {#name, (PyCFunction)(void (*)(void))py_##name, METH_FASTCALL, NULL}
static PyMethodDef methods[] = {METHOD(matrix), METHOD(linear), METHOD(greedy), METHOD(layer_norm), METHOD(rows), METHOD(empty), METHOD(activate), METHOD(attention), METHOD(forward), METHOD(choose), METHOD(set_threads), {0}};
static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, .m_name = "_kernels", .m_size = -1, .m_methods = methods};

PyMODINIT_FUNC PyInit__kernels(void)
{
    if (!(matrix_type = (PyTypeObject *)PyType_FromSpec(&matrix_spec))) return NULL;
    choose_kernels(NULL);
    return PyModule_Create(&definition);
}
#endif
#else /* ================ one instruction set: the template ================ */

/* ---- registers ---- */

#if defined(SCALAR)

typedef struct { float f[4]; } V;
typedef V Q;
#define LANE for (int j = 0; j < 4; j++)
OP V vset(float a) { return (V){{a, a, a, a}}; }
OP V vload(const void *p) { V r; memcpy(&r, p, sizeof r); return r; }
OP void vstore(void *p, V a) { memcpy(p, &a, sizeof a); }
OP V vadd(V a, V b) { LANE a.f[j] += b.f[j]; return a; }
OP V vsub(V a, V b) { LANE a.f[j] -= b.f[j]; return a; }
OP V vmul(V a, V b) { LANE a.f[j] *= b.f[j]; return a; }
OP V vdiv(V a, V b) { LANE a.f[j] /= b.f[j]; return a; }
OP V vmin(V a, V b) { LANE a.f[j] = a.f[j] < b.f[j] ? a.f[j] : b.f[j]; return a; }
OP V vmax(V a, V b) { LANE a.f[j] = a.f[j] > b.f[j] ? a.f[j] : b.f[j]; return a; }
OP V vfma(V a, V b, V c) { LANE c.f[j] = fmaf(a.f[j], b.f[j], c.f[j]); return c; }
OP V vround(V a) { LANE a.f[j] = rintf(a.f[j]); return a; }
OP V vpow2(V n)
{
    LANE { int32_t bits = (n.f[j] == n.f[j] ? (int32_t)n.f[j] + 127 : 0) << 23; memcpy(&n.f[j], &bits, 4); }
    return n;
}
OP V vload_bf16(const void *p)
{
    uint16_t half[4]; V r;
    memcpy(half, p, sizeof half);
    LANE { uint32_t bits = (uint32_t)half[j] << 16; memcpy(&r.f[j], &bits, 4); }
    return r;
}
OP V vload_f16(const void *p)
{
    uint16_t half[4]; V r;
    memcpy(half, p, sizeof half);
    LANE {
        int exponent = half[j] >> 10 & 31, fraction = half[j] & 1023;
        float size = !exponent ? fraction * 0x1p-24f : exponent == 31 ? (fraction ? NAN : INFINITY)
                                                     : ldexpf((float)(1024 + fraction), exponent - 25);
        r.f[j] = half[j] >> 15 ? -size : size;
    }
    return r;
}
OP V vload_int8(const void *p) { int8_t q[4]; V r; memcpy(q, p, 4); LANE r.f[j] = q[j]; return r; }
OP Q qload(const void *p) { return vload(p); }
OP Q qadd(Q a, Q b) { return vadd(a, b); }
OP void qstore(void *p, Q a) { vstore(p, a); }
OP Q fold(const V *a) { return vadd(vadd(a[0], a[2]), vadd(a[1], a[3])); }
OP Q sum4(Q a, Q b, Q c, Q d)
{
    Q r, of[4] = {a, b, c, d};
    LANE r.f[j] = (of[j].f[0] + of[j].f[2]) + (of[j].f[1] + of[j].f[3]);
    return r;
}
OP void transpose4(Q *a) { LANE for (int i = 0; i < j; i++) { float t = a[i].f[j]; a[i].f[j] = a[j].f[i]; a[j].f[i] = t; } }

#elif LANES == 4 /* NEON */

typedef float32x4_t V;
typedef float32x4_t Q;
OP V vset(float a) { return vdupq_n_f32(a); }
OP V vload(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
OP void vstore(void *p, V a) { vst1q_u8(p, vreinterpretq_u8_f32(a)); }
OP V vadd(V a, V b) { return vaddq_f32(a, b); }
OP V vsub(V a, V b) { return vsubq_f32(a, b); }
OP V vmul(V a, V b) { return vmulq_f32(a, b); }
OP V vdiv(V a, V b) { return vdivq_f32(a, b); }
OP V vmin(V a, V b) { return vbslq_f32(vcltq_f32(a, b), a, b); } /* the second operand if either is NaN, as on x86 */
OP V vmax(V a, V b) { return vbslq_f32(vcgtq_f32(a, b), a, b); }
OP V vfma(V a, V b, V c) { return vfmaq_f32(c, a, b); }
OP V vround(V a) { return vrndnq_f32(a); }
OP V vpow2(V n) { return vreinterpretq_f32_s32(vshlq_n_s32(vaddq_s32(vcvtq_s32_f32(n), vdupq_n_s32(127)), 23)); }
OP V vload_bf16(const void *p) { return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16)); }
OP V vload_f16(const void *p) { return vcvt_f32_f16(vreinterpret_f16_u8(vld1_u8(p))); }
OP V vload_int8(const void *p)
{
    uint32_t four;
    memcpy(&four, p, 4);
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(vreinterpret_s8_u32(vdup_n_u32(four))))));
}
OP Q qload(const void *p) { return vload(p); }
OP Q qadd(Q a, Q b) { return vadd(a, b); }
OP void qstore(void *p, Q a) { vstore(p, a); }
OP Q fold(const V *a) { return vadd(vadd(a[0], a[2]), vadd(a[1], a[3])); }
OP Q sum4(Q a, Q b, Q c, Q d)
{
    Q ab = vcombine_f32(vadd_f32(vget_low_f32(a), vget_high_f32(a)), vadd_f32(vget_low_f32(b), vget_high_f32(b)));
    Q cd = vcombine_f32(vadd_f32(vget_low_f32(c), vget_high_f32(c)), vadd_f32(vget_low_f32(d), vget_high_f32(d)));
    return vpaddq_f32(ab, cd);
}
OP void transpose4(Q *a)
{
    Q p = vzip1q_f32(a[0], a[2]), q = vzip1q_f32(a[1], a[3]), r = vzip2q_f32(a[0], a[2]), s = vzip2q_f32(a[1], a[3]);
    a[0] = vzip1q_f32(p, q);
    a[1] = vzip2q_f32(p, q);
    a[2] = vzip1q_f32(r, s);
    a[3] = vzip2q_f32(r, s);
}

#else /* x86 */

typedef __m128 Q;
#if LANES == 8
typedef __m256 V;
#define MM(op) _mm256_##op
OP V vround(V a) { return _mm256_round_ps(a, 8); }
OP V vload_f16(const void *p) { return _mm256_cvtph_ps(_mm_loadu_si128(p)); }
OP V vload_bf16(const void *p) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16)); }
OP V vload_int8(const void *p) { return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(p))); }
OP V vpow2(V n) { return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23)); }
OP __m256 NAME(fold16)(const V *a) { return _mm256_add_ps(a[0], a[1]); }
#else
typedef __m512 V;
#define MM(op) _mm512_##op
OP V vround(V a) { return _mm512_roundscale_ps(a, 8); }
OP V vload_f16(const void *p) { return _mm512_cvtph_ps(_mm256_loadu_si256(p)); }
OP V vload_bf16(const void *p) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16)); }
OP V vload_int8(const void *p) { return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128(p))); }
OP V vpow2(V n) { return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23)); }
OP __m256 NAME(fold16)(const V *a) { return _mm256_add_ps(_mm512_castps512_ps256(a[0]), _mm512_extractf32x8_ps(a[0], 1)); }
#endif
OP V vset(float a) { return MM(set1_ps)(a); }
OP V vload(const void *p) { return MM(loadu_ps)(p); }
OP void vstore(void *p, V a) { MM(storeu_ps)(p, a); }
OP V vadd(V a, V b) { return MM(add_ps)(a, b); }
OP V vsub(V a, V b) { return MM(sub_ps)(a, b); }
OP V vmul(V a, V b) { return MM(mul_ps)(a, b); }
OP V vdiv(V a, V b) { return MM(div_ps)(a, b); }
OP V vmin(V a, V b) { return MM(min_ps)(a, b); }
OP V vmax(V a, V b) { return MM(max_ps)(a, b); }
OP V vfma(V a, V b, V c) { return MM(fmadd_ps)(a, b, c); }
#undef MM
OP Q qload(const void *p) { return _mm_loadu_ps(p); }
OP Q qadd(Q a, Q b) { return _mm_add_ps(a, b); }
OP void qstore(void *p, Q a) { _mm_storeu_ps(p, a); }
OP Q fold(const V *a)
{
    __m256 eight = NAME(fold16)(a);
    return _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
}
OP Q sum4(Q a, Q b, Q c, Q d)
{
    Q ab = _mm_add_ps(_mm_unpacklo_ps(a, b), _mm_unpackhi_ps(a, b)), cd = _mm_add_ps(_mm_unpacklo_ps(c, d), _mm_unpackhi_ps(c, d));
    return _mm_add_ps(_mm_movelh_ps(ab, cd), _mm_movehl_ps(cd, ab));
}
OP void transpose4(Q *a) { _MM_TRANSPOSE4_PS(a[0], a[1], a[2], a[3]); }

#endif

/* The tree: lanes 0..15 -> i + (i + 8) -> i + (i + 4) in `fold`, (0 + 2) + (1 + 3) in `sum4`. */

/* ---- sixteen lanes ---- */

typedef struct { V v[NV]; } W;
OP W wset(float a) { W r; EACH r.v[i] = vset(a); return r; }
OP W wload(const float *p) { W r; EACH r.v[i] = vload(p + LANES * i); return r; }
OP W wadd(W a, W b) { EACH a.v[i] = vadd(a.v[i], b.v[i]); return a; }
OP W wsub(W a, W b) { EACH a.v[i] = vsub(a.v[i], b.v[i]); return a; }
OP W wmul(W a, W b) { EACH a.v[i] = vmul(a.v[i], b.v[i]); return a; }
OP W wdiv(W a, W b) { EACH a.v[i] = vdiv(a.v[i], b.v[i]); return a; }
OP W wmin(W a, W b) { EACH a.v[i] = vmin(a.v[i], b.v[i]); return a; }
OP W wmax(W a, W b) { EACH a.v[i] = vmax(a.v[i], b.v[i]); return a; }
OP W wfma(W a, W b, W c) { EACH c.v[i] = vfma(a.v[i], b.v[i], c.v[i]); return c; }
OP float wsum(W a)
{
    float four[4];
    Q q = fold(a.v);
    qstore(four, sum4(q, q, q, q));
    return four[0];
}

OP V NAME(vload_kind)(enum kind kind, const char *p)
{
    return kind == F32 ? vload(p) : kind == F16 ? vload_f16(p) : kind == BF16 ? vload_bf16(p) : vload_int8(p);
}

/* Load the first `n` of sixteen numbers and zeros; does not read past them. */
OP W wload_kind(enum kind kind, const char *p, size_t n)
{
    char part[16 * sizeof(float)] = {0};
    if (n < 16) p = memcpy(part, p, n * SIZE[kind]);
    W r;
    EACH r.v[i] = NAME(vload_kind)(kind, p + LANES * i * SIZE[kind]);
    return r;
}

OP W wload_upto(const float *p, size_t n) { return n >= 16 ? wload(p) : wload_kind(F32, (const char *)p, n); }

OP void wstore_upto(float *p, W a, size_t n)
{
    float part[16], *to = n >= 16 ? p : part;
    EACH vstore(to + LANES * i, a.v[i]);
    if (n < 16) memcpy(p, part, n * sizeof(float));
}

/* e^x within 2 ulp (Cephes' expf, Moshier 1989); infinity above 88.8, at least 1e-38 below -87. */
OP W wexp(W x)
{
    x = wmin(wset(89.f), wmax(wset(-87.f), x)); /* NaN stays */
    W n = wmul(x, wset(1.44269504f));
    EACH n.v[i] = vround(n.v[i]);
    W r = wfma(n, wset(-0.693359375f), x);
    r = wfma(n, wset(2.12194440e-4f), r);
    W p = wset(1.9875691500e-4f);
    p = wfma(p, r, wset(1.3981999507e-3f));
    p = wfma(p, r, wset(8.3334519073e-3f));
    p = wfma(p, r, wset(4.1665795894e-2f));
    p = wfma(p, r, wset(1.6666665459e-1f));
    p = wfma(p, r, wset(5.0000001201e-1f));
    p = wfma(wmul(r, r), p, wadd(r, wset(1.f)));
    W half = wmul(n, wset(0.5f)); /* 2^n in two steps: 2^128 overflows a float */
    EACH half.v[i] = vround(half.v[i]);
    W rest = wsub(n, half);
    EACH p.v[i] = vmul(vmul(p.v[i], vpow2(half.v[i])), vpow2(rest.v[i]));
    return p;
}

/* ---- activations; the formulas are those of `gpt2core.model` ---- */

OP W activated(W x, enum activation activation)
{
    const W one = wset(1.f), zero = wset(0.f);
    W t, q;
    switch (activation) {
    case GELU_TANH: /* 0.5 x (1 + tanh u) = x / (1 + e^-2u) */
        t = wmul(x, wfma(wmul(x, x), wset(0.044715f * -1.5957691216f), wset(-1.5957691216f)));
        return wdiv(x, wadd(one, wexp(t)));
    case GELU_ERF: /* x Phi(x) = max(x, 0) - |x| (1 - erf |x|/sqrt 2) / 2 */
        q = wmax(wsub(zero, x), x);
        t = wdiv(one, wfma(q, wset(0.3275911f * 0.70710678f), one));
        W p = wset(1.061405429f);
        p = wfma(p, t, wset(-1.453152027f));
        p = wfma(p, t, wset(1.421413741f));
        p = wfma(p, t, wset(-0.284496736f));
        p = wfma(p, t, wset(0.254829592f));
        p = wmul(wmul(p, t), wexp(wmul(wmul(x, x), wset(-0.5f))));
        return wfma(wmul(q, wset(-0.5f)), p, wmax(zero, x));
    case QUICK_GELU: return wdiv(x, wadd(one, wexp(wmul(x, wset(-1.702f)))));
    case RELU: return wmax(zero, x);
    case RELU2: t = wmax(zero, x); return wmul(t, t);
    case SILU: return wdiv(x, wadd(one, wexp(wsub(zero, x))));
    case SIGMOID: return wdiv(one, wadd(one, wexp(wsub(zero, x))));
    case TANH: return wsub(one, wdiv(wset(2.f), wadd(one, wexp(wadd(x, x)))));
    default: return x;
    }
}

static void do_activate(float *x, size_t n, enum activation activation)
{
    for (size_t i = 0; i < n; i += 16) wstore_upto(x + i, activated(wload_upto(x + i, n - i), activation), n - i);
}

/* ---- products ---- */

/* y[r][o] = sum over k of w[o][k] x[r][k] of one chunk, whose length is a multiple of 16; `add`: += */
typedef struct {
    const char *w;
    size_t w_stride; /* bytes */
    const float *scale;
    size_t scale_stride;
    const float *x;
    size_t x_stride;
    float *y;
    size_t y_stride;
    int n_k, add;
} NAME(Tile);

#if LANES == 16
/* sum4(fold()) of sixteen registers at once; the sum of a[i] is lane i / 4 of rows[i % 4]. */
OP void sum16(const V *a, Q *rows)
{
    V t[8], u[4], v[2];
#define HALVES(x, y, lo, hi) _mm512_add_ps(_mm512_shuffle_f32x4(x, y, lo), _mm512_shuffle_f32x4(x, y, hi))
#define DOUBLES(op, x, y) _mm512_castpd_ps(op(_mm512_castps_pd(x), _mm512_castps_pd(y)))
    UNROLL for (int i = 0; i < 8; i++) t[i] = HALVES(a[2 * i], a[2 * i + 1], 0x44, 0xEE);
    UNROLL for (int i = 0; i < 4; i++) u[i] = HALVES(t[2 * i], t[2 * i + 1], 0x88, 0xDD);
    UNROLL for (int i = 0; i < 2; i++)
        v[i] = _mm512_add_ps(DOUBLES(_mm512_unpacklo_pd, u[2 * i], u[2 * i + 1]), DOUBLES(_mm512_unpackhi_pd, u[2 * i], u[2 * i + 1]));
    V all = _mm512_add_ps(_mm512_shuffle_ps(v[0], v[1], 0x88), _mm512_shuffle_ps(v[0], v[1], 0xDD));
    rows[0] = _mm512_castps512_ps128(all);
    rows[1] = _mm512_extractf32x4_ps(all, 1);
    rows[2] = _mm512_extractf32x4_ps(all, 2);
    rows[3] = _mm512_extractf32x4_ps(all, 3);
#undef HALVES
#undef DOUBLES
}
#endif

/* Store the first n of four sums. */
OP void put(Q sums, float *to, int n, int add)
{
#if LANES == 16
    const __mmask8 first = (__mmask8)((1 << n) - 1);
    _mm_mask_storeu_ps(to, first, add ? qadd(_mm_maskz_loadu_ps(first, to), sums) : sums);
#else
    if (n == 4) {
        qstore(to, add ? qadd(qload(to), sums) : sums);
    } else {
        float four[4];
        qstore(four, sums);
        for (int o = 0; o < n; o++) to[o] = add ? to[o] + four[o] : four[o];
    }
#endif
}

/* Add up the partial sums of O outputs by R rows and store the first n outputs. */
OP void put_block(const int O, const int R, V part[][NV], const NAME(Tile) *t, float *y, int n)
{
    int r = 0;
#if LANES == 16
    for (; O >= 3 && r + 4 <= R; r += 4) {
        V four[16];
        Q rows[4];
        UNROLL for (int i = 0; i < 16; i++) four[i] = part[(r + i % 4) * O + least(i / 4, O - 1)][0];
        sum16(four, rows);
        UNROLL for (int i = 0; i < 4; i++) put(rows[i], y + (r + i) * t->y_stride, n, t->add);
    }
#endif
    UNROLL for (; r < R; r++) {
        Q q[4];
        UNROLL for (int o = 0; o < 4; o++) q[o] = fold(part[r * O + least(o, O - 1)]);
        put(sum4(q[0], q[1], q[2], q[3]), y + r * t->y_stride, n, t->add);
    }
}

/*
 * O outputs by R rows in registers, P of a step's NV registers at a time: if P < NV, the chunk is
 * processed NV / P times, so that the registers hold more sums. O, R, P and kind are constants.
 */
OP void block(const enum kind kind, const int O, const int R, const int P, const NAME(Tile) *t, const char *w, const float *scale, float *y)
{
    V part[4 * MAX_ROWS][NV];
    const int size = kind == F32 ? 4 : kind == INT8 ? 1 : 2;
    UNROLL for (int h = 0; h < NV; h += P) {
        V sum[4][MAX_ROWS][NV];
        UNROLL for (int o = 0; o < O; o++)
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int p = 0; p < P; p++) sum[o][r][p] = vset(0.f);
        for (int g = 0; g < t->n_k; g += GROUP) {
            V s[4];
            UNROLL for (int o = 0; o < O; o++) {
                if (kind == INT8) s[o] = vset(scale[o * t->scale_stride + g / GROUP]);
                if (h == 0) /* two blocks ahead, to L2: L1 has too few fill buffers to hide the latency of memory */
                    UNROLL for (int line = 0; line < GROUP * size; line += 64)
                        __builtin_prefetch(w + (o + 2 * O) * t->w_stride + g * size + line, 0, 2);
            }
            const int end = least(g + GROUP, t->n_k);
#pragma GCC unroll 2
            for (int k = g; k < end; k += 16) {
                UNROLL for (int p = 0; p < P; p++) {
                    const int at = k + LANES * (h + p);
                    V weight[4];
                    UNROLL for (int o = 0; o < O; o++) {
                        weight[o] = NAME(vload_kind)(kind, w + o * t->w_stride + at * size);
                        if (kind == INT8) weight[o] = vmul(s[o], weight[o]);
                    }
                    UNROLL for (int r = 0; r < R; r++) {
                        V x = vload(t->x + r * t->x_stride + at);
                        UNROLL for (int o = 0; o < O; o++) sum[o][r][p] = vfma(weight[o], x, sum[o][r][p]);
                    }
                }
            }
        }
        UNROLL for (int o = 0; o < O; o++)
            UNROLL for (int r = 0; r < R; r++)
                UNROLL for (int p = 0; p < P; p++) part[r * O + o][h + p] = sum[o][r][p];
    }
    put_block(O, R, part, t, y, O);
}

/* R rows by PANEL_O outputs of a panel, of which the first n exist. See panel_at. */
OP void panel_block(const int R, const NAME(Tile) *t, const float *w, float *y, int n)
{
    V part[PANEL_O * BLOCK_ROWS][NV];
    UNROLL for (int h = 0; h < NV; h++) {
        V sum[PANEL_O][BLOCK_ROWS];
        UNROLL for (int o = 0; o < PANEL_O; o++)
            UNROLL for (int r = 0; r < R; r++) sum[o][r] = vset(0.f);
#pragma GCC unroll 2
        for (int k = LANES * h; k < t->n_k; k += 16) {
            V weight[PANEL_O];
            UNROLL for (int o = 0; o < PANEL_O; o++) weight[o] = vload(w + o * LANES);
            w += PANEL_O * LANES;
            UNROLL for (int r = 0; r < R; r++) {
                V x = vload(t->x + r * t->x_stride + k);
                UNROLL for (int o = 0; o < PANEL_O; o++) sum[o][r] = vfma(weight[o], x, sum[o][r]);
            }
        }
        UNROLL for (int o = 0; o < PANEL_O; o++)
            UNROLL for (int r = 0; r < R; r++) part[r * PANEL_O + o][h] = sum[o][r];
    }
    put_block(PANEL_O, R, part, t, y, n);
}

#define ONE_KIND(kind)                                                                                    \
    static __attribute__((noinline)) void NAME(one_##kind)(const NAME(Tile) *t, const char *w, const float *scale, float *y) \
    { block(kind, 1, 1, NV, t, w, scale, y); }                                                          \
    BLOCKS(ONE_BLOCK, kind)
#define ONE_BLOCK(kind, R, O, P)                                                                          \
    static __attribute__((noinline)) void NAME(strip_##kind##_##R)(const NAME(Tile) *t, int n_out)        \
    {                                                                                                     \
        int o = 0;                                                                                        \
        for (; o + O <= n_out; o += O)                                                                    \
            block(kind, O, R, P, t, t->w + o * t->w_stride, t->scale + o * t->scale_stride, t->y + o);    \
        for (; o < n_out; o++)                                                                            \
            for (int r = 0; r < R; r++) {                                                                 \
                NAME(Tile) row = *t;                                                                      \
                row.x += r * t->x_stride;                                                                 \
                NAME(one_##kind)(&row, t->w + o * t->w_stride, t->scale + o * t->scale_stride, t->y + r * t->y_stride + o); \
            }                                                                                             \
    }
ONE_KIND(F32)
ONE_KIND(F16)
ONE_KIND(BF16)
ONE_KIND(INT8)
INT8_BLOCKS(ONE_BLOCK)
typedef void NAME(Strip)(const NAME(Tile) *t, int n_out);
#define STRIP(kind, R, O, P) NAME(strip_##kind##_##R),
static NAME(Strip) *const strips[4][INT8_ROWS] = {{BLOCKS(STRIP, F32)}, {BLOCKS(STRIP, F16)}, {BLOCKS(STRIP, BF16)}, {BLOCKS(STRIP, INT8) INT8_BLOCKS(STRIP)}};
#undef ONE_KIND
#undef ONE_BLOCK
#undef STRIP

#define PANEL_STRIP(R)                                                                                    \
    static __attribute__((noinline)) void NAME(panel_strip_##R)(const NAME(Tile) *t, int n_out)           \
    {                                                                                                     \
        const float *w = (const float *)t->w;                                                             \
        for (int o = 0; o < n_out; o += PANEL_O, w += PANEL_O * t->n_k)                                   \
            panel_block(R, t, w, t->y + o, least(PANEL_O, n_out - o));                                    \
    }
PANEL_BLOCKS(PANEL_STRIP)
#undef PANEL_STRIP
#define PANEL_STRIP(R) NAME(panel_strip_##R),
static NAME(Strip) *const panel_strips[] = {PANEL_BLOCKS(PANEL_STRIP)};
#undef PANEL_STRIP

/* All rows of a tile for n_out outputs, in blocks of nearly equal numbers of rows, `most` or fewer. */
static void run_strips(NAME(Strip) *const *strip, int most, NAME(Tile) t, int rows, int n_out)
{
    for (int blocks = (rows + most - 1) / most; blocks; blocks--) {
        int n = (rows + blocks - 1) / blocks;
        strip[n - 1](&t, n_out);
        t.x += n * t.x_stride;
        t.y += n * t.y_stride;
        rows -= n;
    }
}

/*
 * A panel holds float32 weights in the order in which panel_block reads them:
 * [outputs / PANEL_O][NV][inputs / 16][PANEL_O][LANES], padded with zeros to whole blocks.
 */
OP float *panel_at(float *panel, int output, int h, int step, int steps)
{
    return panel + (((output / PANEL_O * NV + h) * steps + step) * PANEL_O + output % PANEL_O) * LANES;
}

/* Weights of outputs a..b and inputs k..k + n_k as a panel. */
OP void to_panel(const enum kind kind, const Matrix *m, int a, int b, size_t k, int n_k, float *panel)
{
    const size_t size = SIZE[kind], groups = round_up(m->n_in, GROUP) / GROUP;
    const int steps = (n_k + 15) / 16, n = (int)round_up(b - a, PANEL_O);
    for (int o = 0; o < n; o++) {
        const size_t row = least(a + o, b - 1);
        const char *w = m->w + (row * m->n_in + k) * size;
        const char *next = w + (k + n_k < m->n_in ? (size_t)n_k : PANEL_PIECE * m->n_in - k) * size;
        for (int line = 0; line < n_k * (int)size; line += 64) __builtin_prefetch(next + line, 0, 2);
        for (int step = 0; step < steps; step++) {
            W v = a + o < b ? wload_kind(kind, w + 16 * step * size, n_k - 16 * step) : wset(0.f);
            if (kind == INT8) v = wmul(wset(m->scale[row * groups + (k + 16 * step) / GROUP]), v);
            EACH vstore(panel_at(panel, o, i, step, steps), v.v[i]);
        }
    }
}

OP void columns_to_panel(const enum kind kind, const Matrix *m, int a, int b, size_t k, int n_k, float *panel)
{
    const size_t size = SIZE[kind];
    const int steps = (n_k + 15) / 16, n = (int)round_up(b - a, PANEL_O);
    for (int i = 0; i < 16 * steps; i += 4)
        for (int o = a; o < b; o += 16) {
            float four[4][16];
            for (int j = 0; j < 4; j++) {
                size_t at = (k + i + j) * m->n_out + o;
                W v = i + j < n_k ? wload_kind(kind, m->w + at * size, b - o) : wset(0.f);
                if (kind == INT8 && i + j < n_k)
                    v = wmul(wload_upto(m->scale + (k + i + j) / GROUP * m->n_out + o, b - o), v);
                wstore_upto(four[j], v, 16);
            }
            for (int c = 0; c < 16; c += 4) {
                Q q[4];
                for (int j = 0; j < 4; j++) q[j] = qload(four[j] + c);
                transpose4(q);
                for (int j = 0; j < 4 && o - a + c + j < n; j++)
                    qstore(panel_at(panel, o - a + c + j, i % 16 / LANES, i / 16, steps) + i % LANES, q[j]);
            }
        }
}

/*
 * sum[r][o] += w[i][o] x[r][i] for `inputs` values of i, 16 apart, in that order: w and x point to the
 * first of them, `later` to the weights that are prefetched, if there are any. int8: the inputs share
 * a group of scales.
 */
OP void add_inputs(const enum kind kind, const int inputs, const Matrix *m, const char *w, const char *later, const float *scale, const float *x, size_t x_stride, int rows, size_t n, float *sum)
{
    const size_t size = SIZE[kind], apart = 16 * m->n_out * size;
    for (size_t o = 0; o < n; o += 16) {
        W v[COLUMN_INPUTS], s;
        UNROLL for (int c = 0; c < inputs; c++) {
            __builtin_prefetch(later + c * apart + o * size, 0, 2);
            v[c] = wload_kind(kind, w + c * apart + o * size, n - o);
            if (kind == INT8) v[c] = wmul(wload_upto(scale + o, n - o), v[c]);
        }
        float *to = sum + o;
        for (int r = 0; r < rows; r++, to += round_up(n, 16)) {
            s = wload(to);
            UNROLL for (int c = 0; c < inputs; c++) s = wfma(v[c], wset(x[r * x_stride + 16 * c]), s);
            wstore_upto(to, s, 16);
        }
    }
}

/*
 * One chunk of a few rows by w [n_in][n_out]: the sixteen sums of every output in `sum`
 * [16][rows][outputs, rounded up to 16]. One sum after the other, so that those in use stay in L1 and
 * the weights are read from memory once for all rows.
 */
OP void rows_of_columns(const enum kind kind, const Matrix *m, int a, int b, size_t k, int n_k, const float *x, size_t x_stride, int rows, float *y, size_t y_stride, int add, float *sum)
{
    const size_t n = b - a, stride = round_up(n, 16), width = rows * stride;
    for (size_t i = 0; i < 16 * width; i += 16) wstore_upto(sum + i, wset(0.f), 16);
    for (int j = 0; j < 16; j++)
        for (int i = j, inputs; i < n_k; i += 16 * inputs) {
            inputs = i + 16 * (COLUMN_INPUTS - 1) < n_k ? COLUMN_INPUTS : 1;
            const int next = i + 16 * COLUMN_INPUTS < n_k ? i + 16 * COLUMN_INPUTS : j + 1;
            const char *w = m->w + ((k + i) * m->n_out + a) * SIZE[kind], *later = m->w + ((k + next) * m->n_out + a) * SIZE[kind];
            const float *scale = kind == INT8 ? m->scale + (k + i) / GROUP * m->n_out + a : NULL;
            if (inputs > 1) add_inputs(kind, COLUMN_INPUTS, m, w, later, scale, x + i, x_stride, rows, n, sum + j * width);
            else add_inputs(kind, 1, m, w, later, scale, x + i, x_stride, rows, n, sum + j * width);
        }
    for (int r = 0; r < rows; r++, y += y_stride)
        for (size_t o = 0; o < n; o += 16) {
            W s[16];
            for (int j = 0; j < 16; j++) s[j] = wload(sum + j * width + r * stride + o);
            for (int j = 0; j < 8; j++) s[j] = wadd(s[j], s[j + 8]);
            for (int j = 0; j < 4; j++) s[j] = wadd(s[j], s[j + 4]);
            s[0] = wadd(wadd(s[0], s[2]), wadd(s[1], s[3]));
            if (add) s[0] = wadd(wload_upto(y + o, n - o), s[0]);
            wstore_upto(y + o, s[0], n - o);
        }
}

#define BY_KIND(call, m, ...)                                                                             \
    switch ((m)->kind) {                                                                                  \
    case F32: call(F32, m, __VA_ARGS__); break;                                                           \
    case F16: call(F16, m, __VA_ARGS__); break;                                                           \
    case BF16: call(BF16, m, __VA_ARGS__); break;                                                         \
    default: call(INT8, m, __VA_ARGS__);                                                                  \
    }

/*
 * Sums for outputs a..b of all rows; y points to output a of the first row. Rows of x are padded with
 * zeros to a multiple of 16, unless w is in columns and there are few rows.
 */
static void product_core(const Matrix *m, const float *x, size_t x_stride, int rows, float *y, size_t y_stride, int a, int b, float *panel)
{
    const int size = SIZE[m->kind], most = m->kind == INT8 ? INT8_ROWS : BLOCK_ROWS, by_columns = m->columns && rows <= COLUMN_ROWS;
    const int direct = !m->columns && m->n_in % 16 == 0 && rows < PANEL_ROWS[m->kind];
    /* If a row has several chunks, steps are short, so that what the hardware prefetches of a row is still in L2 for the next chunk. */
    const int whole = by_columns || (direct && rows <= most && m->n_in <= K_CHUNK);
    const int step = whole ? b - a : !direct ? PANEL_OUTS : rows == 1 ? 4 : 12;
    const size_t groups = m->kind == INT8 ? round_up(m->n_in, GROUP) / GROUP : 0;
    for (int from = a; from < b; from += step) {
        const int to = least(from + step, b);
        for (size_t k = 0; k < m->n_in; k += K_CHUNK) {
            const int n_k = (int)(m->n_in - k < K_CHUNK ? m->n_in - k : K_CHUNK);
            NAME(Tile) t = {.x = x + k, .x_stride = x_stride, .y = y + (from - a), .y_stride = y_stride, .n_k = n_k, .add = k > 0};
            if (by_columns) {
                BY_KIND(rows_of_columns, m, from, to, k, n_k, t.x, x_stride, rows, t.y, y_stride, k > 0, panel)
            } else if (direct) {
                t.w = m->w + (from * m->n_in + k) * size;
                t.w_stride = m->n_in * size;
                if (groups) t.scale = m->scale + from * groups + k / GROUP;
                t.scale_stride = groups;
                run_strips(strips[m->kind], most, t, rows, to - from);
            } else {
                if (m->columns) { BY_KIND(columns_to_panel, m, from, to, k, n_k, panel) }
                else { BY_KIND(to_panel, m, from, to, k, n_k, panel) }
                t.n_k = (int)round_up(n_k, 16);
                t.w = (const char *)panel;
                run_strips(panel_strips, sizeof panel_strips / sizeof *panel_strips, t, rows, to - from);
            }
        }
    }
}
#undef BY_KIND

static void do_product(const void *job, int begin, int end, float *scratch)
{
    const Product *p = job;
    const size_t n_out = p->m.n_out;
    product_core(&p->m, p->x, p->x_stride, p->rows, p->y + begin, n_out, begin, end, scratch);
    if (!p->m.bias && !p->activation && !p->residual) return;
    for (int r = 0; r < p->rows; r++)
        for (int o = begin; o < end; o += 16) {
            float *y = p->y + r * n_out + o;
            W v = wload_upto(y, end - o);
            if (p->m.bias) v = wadd(v, wload_upto(p->m.bias + o, end - o));
            v = activated(v, p->activation);
            if (p->residual) v = wadd(wload_upto(p->residual + r * n_out + o, end - o), v);
            wstore_upto(y, v, end - o);
        }
}

static void do_greedy(const void *job, int begin, int end, float *scratch)
{
    const Greedy *g = job;
    const Product *p = &g->product;
    float *y = scratch + PANEL_OUTS * K_CHUNK;
    product_core(&p->m, p->x, p->x_stride, p->rows, y, g->piece, begin, end, scratch);
    for (int r = 0; r < p->rows; r++) {
        struct best best = {-INFINITY, begin, 0};
        for (int o = 0; o < end - begin; o++) {
            float value = y[r * g->piece + o];
            best.is_nan |= value != value;
            if (value > best.value) {
                best.value = value;
                best.id = begin + o;
            }
        }
        g->best[begin / g->piece * p->rows + r] = best;
    }
}

/* Row `at` of a matrix stored by rows, as float32. */
static void do_row(const Matrix *m, size_t at, float *y, int add)
{
    const size_t size = SIZE[m->kind], groups = round_up(m->n_in, GROUP) / GROUP;
    for (size_t k = 0; k < m->n_in; k += 16) {
        W v = wload_kind(m->kind, m->w + (at * m->n_in + k) * size, m->n_in - k);
        if (m->kind == INT8) v = wmul(wset(m->scale[at * groups + k / GROUP]), v);
        if (add) v = wadd(wload_upto(y + k, m->n_in - k), v);
        wstore_upto(y + k, v, m->n_in - k);
    }
}

/* ---- layer norm: rows begin..end ---- */

static void do_norm(const void *job, int begin, int end, float *scratch)
{
    (void)scratch;
    const Norm *m = job;
    const size_t n = m->n;
    for (int r = begin; r < end; r++) {
        const float *x = m->x + r * n;
        float *y = m->y + r * n;
        W sum = wset(0.f), squares = wset(0.f);
        for (size_t i = 0; i < n; i += 16) sum = wadd(sum, wload_upto(x + i, n - i));
        const W mean = wset(wsum(sum) / (float)n);
        for (size_t i = 0; i < n; i += 16) {
            wstore_upto(y + i, wsub(wload_upto(x + i, n - i), mean), n - i);
            W centered = wload_upto(y + i, n - i);
            squares = wfma(centered, centered, squares);
        }
        const W inverse = wset(1.f / sqrtf(wsum(squares) / (float)n + m->epsilon));
        for (size_t i = 0; i < n; i += 16) {
            W v = wmul(wload_upto(y + i, n - i), inverse);
            wstore_upto(y + i, wfma(v, wload_upto(m->weight + i, n - i), wload_upto(m->bias + i, n - i)), n - i);
        }
    }
}

/* ---- attention ---- */

/* Scores of n keys -> e^(score - largest), zeros up to a multiple of 16; returns 1 / their sum. */
static float softmax_row(float *s, int n)
{
    W largest = wset(-INFINITY), sum = wset(0.f);
    for (int i = n; i % 16; i++) s[i] = -INFINITY;
    for (int i = 0; i < n; i += 16) largest = wmax(largest, wload(s + i));
    float lanes[16], most = -INFINITY;
    wstore_upto(lanes, largest, 16);
    for (int i = 0; i < 16; i++) most = lanes[i] > most || lanes[i] != lanes[i] ? lanes[i] : most;
    const W shift = wset(most);
    for (int i = 0; i < n; i += 16) {
        wstore_upto(s + i, wexp(wsub(wload(s + i), shift)), 16);
        W e = wload_upto(s + i, n - i); /* a masked key has no weight */
        wstore_upto(s + i, e, 16);
        sum = wadd(sum, e);
    }
    return 1.f / wsum(sum);
}

/*
 * R rows of probabilities by values [.][head_dim], D vectors of 16 dimensions from d on, summed over
 * keys in order. Row r attends to n + r keys. Later keys are not read, because NaN times 0 is NaN.
 */
OP void weigh_values(const int R, const int D, const float *p, size_t p_stride, int n, const float *values, int head_dim, int d, const float *inverse, float *out, size_t out_stride)
{
    W sum[BLOCK_ROWS][D];
    const int width = least(head_dim - d, 16 * D);
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < D; i++) sum[r][i] = wset(0.f);
#define ADD_KEY(r) sum[r][i] = wfma(wset(p[(r) * p_stride + key]), v, sum[r][i])
    for (int key = 0; key < n; key++)
        UNROLL for (int i = 0; i < D; i++) {
            W v = wload_upto(values + (size_t)key * head_dim + d + 16 * i, D > 1 ? 16 : width);
            UNROLL for (int r = 0; r < R; r++) ADD_KEY(r);
        }
    UNROLL for (int r = 1; r < R; r++)
        for (int key = n; key < n + r; key++)
            UNROLL for (int i = 0; i < D; i++) {
                W v = wload_upto(values + (size_t)key * head_dim + d + 16 * i, D > 1 ? 16 : width);
                ADD_KEY(r);
            }
#undef ADD_KEY
    UNROLL for (int r = 0; r < R; r++)
        UNROLL for (int i = 0; i < D; i++)
            wstore_upto(out + r * out_stride + d + 16 * i, wmul(sum[r][i], wset(inverse[r])), D > 1 ? 16 : width);
}

static void attend(const Attention *a, const Sequence *s, int head, int begin, int end, float *scratch)
{
    const int head_dim = a->head_dim, padded = (int)round_up(head_dim, 16);
    const size_t row = (size_t)a->n_head * head_dim;
    const float *values = s->values + head * s->capacity * head_dim;
    Matrix keys = {.kind = F32, .n_out = s->capacity, .n_in = head_dim, .w = (const char *)(s->keys + head * s->capacity * head_dim)};
    float *query = scratch + PANEL_OUTS * K_CHUNK, *scores = query + BLOCK_ROWS * padded;
    for (int first = begin; first < end; first += BLOCK_ROWS) {
        const int rows = least(BLOCK_ROWS, end - first), n = s->n_past + first + 1;
        float inverse[BLOCK_ROWS], *out = a->heads + (s->first_head + first - s->begin) * row + head * head_dim;
        for (int r = 0; r < rows; r++) {
            const float *q = a->qkv + (s->first_row + first + r) * 3 * row + head * head_dim;
            for (int d = 0; d < head_dim; d += 16)
                wstore_upto(query + r * padded + d, wmul(wload_upto(q + d, head_dim - d), wset(a->scale)), 16);
        }
        product_core(&keys, query, padded, rows, scores, a->max_kv, 0, n + rows - 1, scratch);
        for (int r = 0; r < rows; r++) inverse[r] = softmax_row(scores + r * (size_t)a->max_kv, n + r);
        int d = 0;
        if (rows == BLOCK_ROWS) {
            for (; d + 16 * VALUES_AT_ONCE <= head_dim && VALUES_AT_ONCE > 1; d += 16 * VALUES_AT_ONCE)
                weigh_values(BLOCK_ROWS, VALUES_AT_ONCE, scores, a->max_kv, n, values, head_dim, d, inverse, out, row);
            for (; d < head_dim; d += 16)
                weigh_values(BLOCK_ROWS, 1, scores, a->max_kv, n, values, head_dim, d, inverse, out, row);
        } else {
            for (; d + 64 <= head_dim; d += 64)
                for (int r = 0; r < rows; r++)
                    weigh_values(1, 4, scores + r * (size_t)a->max_kv, 0, n + r, values, head_dim, d, inverse + r, out + r * row, 0);
            for (; d < head_dim; d += 16)
                for (int r = 0; r < rows; r++)
                    weigh_values(1, 1, scores + r * (size_t)a->max_kv, 0, n + r, values, head_dim, d, inverse + r, out + r * row, 0);
        }
    }
}

/* A unit is some rows of a sequence and one head. Units with the most keys come first. */
static void do_attention(const void *job, int begin, int end, float *scratch)
{
    const Attention *a = job;
    for (int item = begin; item < end; item++) {
        const int unit = a->n_units - 1 - item;
        const Sequence *s = a->sequences + a->n_sequences - 1;
        while (s->first_unit > unit) s--;
        const int first = s->begin + (unit - s->first_unit) / a->n_head * UNIT_ROWS;
        attend(a, s, (unit - s->first_unit) % a->n_head, first, least(first + UNIT_ROWS, s->rows), scratch);
    }
}

static const Kernels kernels = {.name = TEXT(ISA), .product = do_product, .greedy = do_greedy, .norm = do_norm, .attention = do_attention, .activate = do_activate, .row = do_row};

#endif
