/*
 * The kernels without Python: for sanitizers, other processors and fuzzing. `make kernels-test`.
 *
 *     driver hash               hashes of results, one line an operation; the same on every processor
 *     driver fuzz SEED COUNT    random products against doubles, and against themselves bit for bit
 *     driver threads            many threads, changes of their number, forks
 */
#define KERNELS_DRIVER
#include "../../../gpt2core/kernels/_kernels.c"
#include <stdio.h>
#include <sys/mman.h>
#include <sys/wait.h>

static uint64_t state = 1;

/* splitmix64: Steele, Lea & Flood 2014 */
static uint64_t draw(void)
{
    uint64_t z = state += 0x9E3779B97F4A7C15u;
    z = (z ^ z >> 30) * 0xBF58476D1CE4E5B9u;
    z = (z ^ z >> 27) * 0x94D049BB133111EBu;
    return z ^ z >> 31;
}
static int below(int n) { return (int)(draw() % (uint64_t)n); }
static float uniform(void) { return (float)((int64_t)(draw() >> 40) - (1 << 23)) / (1 << 23); }

static void fail(const char *what)
{
    printf("FAILED: %s\n", what);
    exit(1);
}

/* Bytes that end where a page begins that must not be touched. */
typedef struct { char *data, *map; size_t map_bytes; } Guarded;

static Guarded guarded(size_t bytes, size_t slack)
{
    size_t page = (size_t)sysconf(_SC_PAGESIZE), whole = round_up(bytes + slack, page);
    Guarded g = {.map_bytes = whole + page};
    g.map = mmap(NULL, g.map_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (g.map == MAP_FAILED || mprotect(g.map + whole, page, PROT_NONE)) fail("mmap");
    g.data = g.map + whole - bytes - slack;
    return g;
}
static void unmap(Guarded g) { munmap(g.map, g.map_bytes); }

/* NaN has many bit patterns, which processors choose differently. */
static uint32_t bits_of(float value)
{
    uint32_t bits;
    memcpy(&bits, &value, 4);
    return value != value ? 0x7FC00000 : bits;
}

static uint64_t hash(uint64_t h, const float *values, size_t n)
{
    for (size_t i = 0; i < n; i++) h = (h ^ bits_of(values[i])) * 1099511628211u;
    return h;
}

static float float_of(const Matrix *m, size_t o, size_t k)
{
    size_t at = m->columns ? k * m->n_out + o : o * m->n_in + k, groups = round_up(m->n_in, GROUP) / GROUP;
    const char *p = m->w + at * SIZE[m->kind];
    float value;
    uint32_t bits;
    uint16_t half;
    switch (m->kind) {
    case F32: memcpy(&value, p, 4); return value;
    case BF16: memcpy(&half, p, 2); bits = (uint32_t)half << 16; memcpy(&value, &bits, 4); return value;
    case F16: return vload_f16__scalar((char[8]){p[0], p[1]}).f[0];
    default: return *(const int8_t *)p * m->scale[m->columns ? k / GROUP * m->n_out + o : o * groups + k / GROUP];
    }
}

/* A number that may be special where `odd` says so. */
static float number(int odd)
{
    if (odd && !below(40)) return (const float[]){NAN, INFINITY, -INFINITY, 1e-42f, -3e-40f, 3e38f, 0.f, -0.f}[below(8)];
    return uniform();
}

static Matrix matrix(enum kind kind, int columns, int n_out, int n_in, int odd, Guarded *memory, Guarded *scales)
{
    size_t n = (size_t)n_out * n_in, groups = round_up(n_in, GROUP) / GROUP;
    *memory = guarded(n * SIZE[kind], 0);
    *scales = guarded(groups * n_out * sizeof(float), 0);
    for (size_t i = 0; i < n; i++) {
        float value = number(odd && kind != INT8);
        uint32_t bits;
        memcpy(&bits, &value, 4);
        uint16_t half = kind == BF16 ? (uint16_t)(bits >> 16) : (uint16_t)(draw() & (odd ? 0xFFFF : 0xBFFF));
        if (kind == F32) memcpy(memory->data + 4 * i, &value, 4);
        else if (kind == INT8) memory->data[i] = (char)draw();
        else memcpy(memory->data + 2 * i, &half, 2);
    }
    for (size_t i = 0; i < groups * n_out; i++) ((float *)scales->data)[i] = uniform() / 127;
    return (Matrix){.kind = kind, .columns = columns, .n_out = n_out, .n_in = n_in, .w = memory->data, .scale = (float *)scales->data};
}

static void fill(float *values, size_t n, int odd) { for (size_t i = 0; i < n; i++) values[i] = number(odd); }

static void use(const Kernels *kernels) { if (!choose_kernels(kernels->name)) fail("kernels that do not run"); }

static int same_bits(const float *a, const float *b, size_t n)
{
    for (size_t i = 0; i < n; i++) if (bits_of(a[i]) != bits_of(b[i])) return 0;
    return 1;
}

static void fuzz_product(void)
{
    static const int rows_to_try[] = {1, 2, 3, 4, 5, 6, 7, 11, 12, 13, 31, 70};
    int odd = !below(3), n_in = below(4) ? 1 + below(200) : 16 * (1 + below(110)), n_out = 1 + below(below(3) ? 40 : below(8) ? 300 : 2500), rows = 1 + below(below(4) ? 70 : 120);
    Guarded memory, scales, gx = guarded(sizeof(float) * rows * n_in, 0), gy = guarded(sizeof(float) * rows * n_out, 0);
    Matrix m = matrix((enum kind)below(4), below(2), n_out, n_in, odd, &memory, &scales);
    float *x = (float *)gx.data, *y = (float *)gy.data, *first = new_floats((size_t)rows * n_out + 1), *bias = new_floats(n_out);
    fill(x, (size_t)rows * n_in, odd);
    fill(bias, n_out, 0);
    if (below(2)) m.bias = bias;
    use(&kernels__scalar);
    if (linear(&m, x, rows, first, NONE, NULL)) fail("memory");
    for (int i = 0; i < rows * n_out; i += 1 + below(7)) {
        double sum = m.bias ? bias[i % n_out] : 0, size = fabs(sum);
        for (int k = 0; k < n_in; k++) {
            double term = (double)float_of(&m, i % n_out, k) * x[i / n_out * n_in + k];
            sum += term;
            size += fabs(term);
        }
        /* Partial sums may leave the range of a float where the whole would not. */
        if (size < 3e38 && !(fabs(first[i] - sum) <= 1e-6 * size + 1e-37)) fail("far from the exact sum");
        if (sum != sum && first[i] == first[i]) fail("NaN is lost");
    }
    for (const Kernels *const *k = all_kernels; *k; k++) {
        if (!runs_here(*k)) continue;
        use(*k);
        for (int o = 0; !m.columns && o < n_out; o += o == n_out - 1 ? 1 : 1 + below(n_out - o)) {
            float *to = y + (size_t)rows * n_out - n_in; /* up to the protected page, as the row of the last output */
            if (n_in > rows * n_out) break;
            chosen->row(&m, o, to, 0);
            for (int i = 0; i < n_in; i++) {
                float expected = float_of(&m, o, i);
                if (bits_of(to[i]) != bits_of(expected) && expected == expected) fail("another row");
            }
            chosen->row(&m, o, to, 1);
            for (int i = 0; i < n_in; i++) {
                float expected = float_of(&m, o, i) + float_of(&m, o, i);
                if (bits_of(to[i]) != bits_of(expected) && expected == expected) fail("another sum of rows");
            }
        }
        set_threads(1 + below(4));
        for (int from = 0; from < rows;) {
            int n = least(rows_to_try[below(12)], rows - from);
            float *to = y + (size_t)(rows - n) * n_out; /* up to the protected page */
            if (linear(&m, x + (size_t)from * n_in, n, to, NONE, NULL)) fail("memory");
            if (!same_bits(to, first + (size_t)from * n_out, (size_t)n * n_out)) {
                printf("%s kind %d columns %d n_out %d n_in %d rows %d\n", (*k)->name, m.kind, m.columns, n_out, n_in, n);
                fail("other bits");
            }
            int64_t ids[70];
            char is_nan[70];
            if (greedy(&(Matrix){m.kind, m.columns, m.n_out, m.n_in, m.w, m.scale, NULL}, x + (size_t)from * n_in, n, ids, is_nan)) fail("memory");
            for (int r = 0; r < n && !m.bias; r++) {
                int best = 0, nan = 0;
                const float *scores = first + (size_t)(from + r) * n_out;
                for (int o = 0; o < n_out; o++) {
                    nan |= scores[o] != scores[o];
                    if (scores[o] > scores[best]) best = o;
                }
                if (nan != is_nan[r] || (!nan && ids[r] != best)) fail("another largest");
            }
            from += n;
        }
    }
    unmap(memory), unmap(scales), unmap(gx), unmap(gy);
    free(first), free(bias);
}

/* Layer norm, attention and activations of all instruction sets against the scalar ones. */
static void fuzz_rest(void)
{
    int odd = !below(3), n_head = 1 + below(4), head_dim = below(2) ? 16 * (1 + below(6)) : 1 + below(100), n_past = below(90), rows = 1 + below(60);
    size_t width = (size_t)n_head * head_dim, capacity = n_past + rows + below(5), n_cache = n_head * capacity * head_dim;
    Guarded gq = guarded(12 * rows * width, 0), gk = guarded(4 * n_cache, 0), gv = guarded(4 * n_cache, 0), gh = guarded(4 * rows * width, 0);
    float *first = new_floats(rows * width + 16), *normed = new_floats(rows * width + 16), *past = new_floats(2 * n_cache);
    fill((float *)gq.data, 3 * rows * width, odd);
    fill(past, 2 * n_cache, 0);
    for (int pass = 0; pass < 4; pass++) {
        const Kernels *k = pass ? all_kernels[pass - 1] : &kernels__scalar;
        if (!k) break;
        if (!runs_here(k)) continue;
        use(k);
        set_threads(1 + below(3));
        memcpy(gk.data, past, 4 * n_cache);
        memcpy(gv.data, past + n_cache, 4 * n_cache);
        Sequence s = {.rows = rows, .n_past = n_past, .keys = (float *)gk.data, .values = (float *)gv.data, .capacity = capacity};
        if (attention((float *)gq.data, (float *)gh.data, &s, 1, n_head, head_dim, 0.2f)) fail("memory");
        if (!pass) memcpy(first, gh.data, 4 * rows * width);
        if (!same_bits(first, (float *)gh.data, rows * width)) fail("attention: other bits");
        if (layer_norm((float *)gq.data, rows, width, past, past, 1e-5f, (float *)gh.data)) fail("memory");
        chosen->activate((float *)gh.data, rows * width, (enum activation)(rows % N_ACTIVATIONS));
        if (!pass) memcpy(normed, gh.data, 4 * rows * width);
        if (!same_bits(normed, (float *)gh.data, rows * width)) fail("layer norm or activation: other bits");
    }
    unmap(gq), unmap(gk), unmap(gv), unmap(gh);
    free(first), free(normed), free(past);
}

/* A small network, all operations in it. */
static uint64_t hash_forward(enum kind kind, int columns)
{
    /* How many last rows of the two sequences are needed: all, the usual ones of a prompt, or none. */
    static const int n_last[][2] = {{20, 9}, {0, 1}, {7, 0}, {0, 0}};
    enum { HEADS = 3, DIM = 16, EMBD = 48, INNER = 80, ROWS = 29, LAYERS = 2, CAPACITY = 40 };
    state = 7;
    Guarded memory[4 * LAYERS], scales[4 * LAYERS];
    Matrix m[4 * LAYERS];
    Block blocks[LAYERS];
    float *vectors = new_floats(4 * 3 * EMBD), *x = new_floats(ROWS * EMBD), *cache = new_floats(2 * LAYERS * EMBD * CAPACITY);
    fill(vectors, 4 * 3 * EMBD, 0);
    fill(x, ROWS * EMBD, 0);
    for (int i = 0; i < LAYERS; i++) {
        const int shapes[4][2] = {{3 * EMBD, EMBD}, {EMBD, EMBD}, {INNER, EMBD}, {EMBD, INNER}};
        for (int j = 0; j < 4; j++) {
            m[4 * i + j] = matrix(kind, columns, shapes[j][0], shapes[j][1], 0, &memory[4 * i + j], &scales[4 * i + j]);
            m[4 * i + j].bias = vectors;
        }
        blocks[i] = (Block){vectors, vectors + EMBD, vectors + 2 * EMBD, vectors + 3 * EMBD, &m[4 * i], &m[4 * i + 1], &m[4 * i + 2], &m[4 * i + 3], 0.25f};
    }
    float *input = new_floats(ROWS * EMBD), *all = new_floats(ROWS * EMBD), *first_cache = new_floats(2 * LAYERS * EMBD * CAPACITY);
    uint64_t h = 0;
    memcpy(input, x, ROWS * EMBD * sizeof(float));
    for (int i = 0; i < 4; i++) {
        Sequence s[2] = {{.rows = 20, .keys = cache, .values = cache + LAYERS * EMBD * 20, .capacity = 20}, {.rows = 9, .capacity = 9}};
        s[1].keys = cache + 2 * LAYERS * EMBD * 20;
        s[1].values = s[1].keys + LAYERS * EMBD * 9;
        s[0].n_last = n_last[i][0];
        s[1].n_last = n_last[i][1];
        memcpy(x, input, ROWS * EMBD * sizeof(float));
        memset(cache, 0xFF, 2 * LAYERS * EMBD * (20 + 9) * sizeof(float));
        if (forward(blocks, LAYERS, HEADS, DIM, 1e-5f, GELU_TANH, x, ROWS, s, 2)) fail("memory");
        if (!i) {
            h = hash(14695981039346656037u, x, ROWS * EMBD);
            memcpy(all, x, ROWS * EMBD * sizeof(float));
            memcpy(first_cache, cache, 2 * LAYERS * EMBD * (20 + 9) * sizeof(float));
        }
        for (int j = 0, end = 20, at = 0; j < 2; at += n_last[i][j], end += 9, j++)
            if (!same_bits(x + at * EMBD, all + (end - n_last[i][j]) * EMBD, n_last[i][j] * EMBD)) fail("last rows: other bits");
        if (!same_bits(cache, first_cache, 2 * LAYERS * EMBD * (20 + 9))) fail("last rows: other keys or values");
    }
    free(input), free(all), free(first_cache);
    for (int i = 0; i < 4 * LAYERS; i++) unmap(memory[i]), unmap(scales[i]);
    free(vectors), free(x), free(cache);
    return h;
}

static void print_hashes(void)
{
    for (const Kernels *const *k = all_kernels; *k; k++) {
        if (!runs_here(*k)) {
            fprintf(stderr, "%s does not run on this processor: skipped\n", (*k)->name);
            continue;
        }
        use(*k);
        set_threads(2);
        for (enum kind kind = F32; kind <= INT8; kind++)
            for (int columns = 0; columns < 2; columns++)
                printf("%s forward %d %d %016llx\n", (*k)->name, kind, columns, (unsigned long long)hash_forward(kind, columns));
        for (enum activation a = NONE; a < N_ACTIVATIONS; a++) {
            float values[4001];
            for (int i = 0; i < 4001; i++) values[i] = (float)(i - 2000) / 20;
            (*k)->activate(values, 4001, a);
            printf("%s activation %d %016llx\n", (*k)->name, a, (unsigned long long)hash(1, values, 4001));
        }
    }
}

static void *compute(void *seed)
{
    static const float x[4 * 64] = {1, 2, 3}, w[200 * 64] = {4, 5, 6};
    float y[4 * 200];
    Matrix m = {.kind = F32, .n_out = 200, .n_in = 64, .w = (const char *)w};
    for (int i = 0; i < 300; i++) {
        unsigned mode = float_mode();
        if (linear(&m, x, 1 + ((int)(intptr_t)seed + i) % 4, y, NONE, NULL) || y[0] != 32) fail("threads: a wrong product");
        restore_float_mode(mode);
    }
    return NULL;
}

static void test_threads(void)
{
    choose_kernels(NULL);
    for (int round = 0; round < 6; round++) {
        set_threads(1 + round % 4);
        pthread_t threads[4];
        for (intptr_t i = 0; i < 4; i++) pthread_create(&threads[i], NULL, compute, (void *)i);
        for (int i = 0; i < 4; i++) pthread_join(threads[i], NULL);
#ifndef __SANITIZE_THREAD__ /* which does not follow a fork of many threads */
        pid_t child = fork();
        if (!child) {
            compute(NULL);
            _exit(0);
        }
        int status;
        if (waitpid(child, &status, 0) != child || status) fail("threads: the child of a fork");
#endif
    }
    set_threads(1);
}

int main(int argc, char **argv)
{
    if (argc > 1 && !strcmp(argv[1], "hash")) print_hashes();
    else if (argc > 1 && !strcmp(argv[1], "threads")) test_threads();
    else if (argc > 3 && !strcmp(argv[1], "fuzz")) {
        for (int i = 0; i < atoi(argv[3]); i++) {
            state = (uint64_t)atoll(argv[2]) * 1000003 + i;
            i % 3 ? fuzz_product() : fuzz_rest();
        }
    } else return 2;
    set_threads(1);
    if (strcmp(argv[1], "hash")) puts("passed");
    return 0;
}
