// y = x Wᵀ on the matrix unit of a processor (AMX), in bfloat16 with sums in float32, W decoded where it is multiplied.
//
// A panel of W is decoded into the order in which tile registers take it and stays in the second-level cache while all
// rows of x pass by, 32 at a time. Every number of y is one sum over the columns in their order, whatever the rows of x
// beside it, the size of the panels and the number of threads: the same bits.

#include "layouts.h"

#if defined(__AMX_BF16__) && defined(__AVX512BF16__) && defined(__linux__)
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <memory>

namespace {

constexpr int64_t side = 16;           // rows of a tile register
constexpr int64_t depth = 32;          // columns of x and W that it holds
constexpr int64_t tile = 512;          // numbers of bfloat16 that it holds
constexpr int64_t stripe = 32;         // rows of x, and rows of W, that are multiplied at a time: two by two registers
constexpr int64_t range = 2048;        // columns that are multiplied before it is the next rows' turn
constexpr int64_t panel = 512 * 1024;  // numbers of bfloat16 in a panel of W: half of the second-level cache

// Memory of this thread that the next call with the same type overwrites.
template <class Number>
Number* scratch(int64_t count) {
    struct Free {
        void operator()(Number* memory) const { std::free(memory); }
    };
    thread_local std::unique_ptr<Number, Free> memory;
    thread_local int64_t size = 0;
    if (count > size) {
        memory.reset();
        memory.reset(static_cast<Number*>(std::aligned_alloc(64, (count * sizeof(Number) + 63) / 64 * 64)));
        if (!memory) std::abort();
        size = count;
    }
    return memory.get();
}

struct bfloat16 {
    uint16_t bits;
};

// To the nearest bfloat16, ties to even. Numbers below 2⁻¹²⁶ become zero, as the matrix unit would make them.
void store(bfloat16* out, floats16 weights) {
    __m256bh narrow = _mm512_cvtneps_pbh(bits_as<__m512>(weights));
    std::memcpy(out, &narrow, sizeof narrow);
}

struct Plain {  // weights that are bfloat16 already, in groups of 32
    static constexpr int block = 32, bytes = 64, fields = 0;
    static void decode(const uint8_t* c, const float*, bfloat16* out) { std::memcpy(out, c, bytes); }
};

struct Weights {
    const uint8_t* codes;  // [rows of the file, groups, bytes]
    Field fields[2];       // [rows of the file, groups] each
    const int64_t* order;  // rows of the file that are wanted; null for the first `rows`
    int64_t rows, groups;
};

// The factors of one row of x, sixteen columns at a time.
struct Along {
    const float* at;
    int64_t width, left;  // neighbours that share a factor, 1 or a multiple of 16, and how many of them are to come

    floats16 next() {
        floats16 by;
        if (width == 1) {
            std::memcpy(&by, at, sizeof by);
            at += 16;
            return by;
        }
        by = floats16{} + *at;
        if (left -= 16; !left) ++at, left = width;
        return by;
    }
};

// Factors on what goes in and what comes out, one row of them for each block of rows of x.
struct Scaling {
    const float* columns;  // null where nothing is scaled
    int64_t columns_pitch, width;
    const float* rows;
    int64_t rows_pitch;
    const int32_t* block;  // of each row of x; null where neighbours share one
    int64_t tokens;        // rows of x in such a block

    int64_t block_of(int64_t token) const { return block ? block[token] : token / tokens; }
    const float* of_rows(int64_t token) const { return rows ? rows + block_of(token) * rows_pitch : nullptr; }
    Along of_columns(int64_t token, int64_t first) const {
        if (!columns) return {nullptr, 1, 0};
        return {columns + block_of(token) * columns_pitch + first / width, width, width - first % width};
    }
};

struct Product {
    Weights weights;
    Scaling scaling;
    const void* x;  // [tokens, columns], rows `pitch` numbers apart
    bool x_bfloat16;
    int64_t tokens, pitch, columns;
    void* y;  // [tokens, rows]
    bool y_bfloat16;
};

int64_t up(int64_t count, int64_t to) { return (count + to - 1) / to * to; }

// The transpose of 16 x 16 words: the pairs of neighbours in a row come to lie one below the other.
void transpose(const bfloat16* from, int64_t pitch, uint16_t* to) {
    __m512i a[16], b[16];
    for (int i = 0; i < 16; ++i) a[i] = _mm512_loadu_si512(from + i * pitch);
    for (int i = 0; i < 16; i += 2) {
        b[i] = _mm512_unpacklo_epi32(a[i], a[i + 1]);
        b[i + 1] = _mm512_unpackhi_epi32(a[i], a[i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        a[i] = _mm512_unpacklo_epi64(b[i], b[i + 2]);
        a[i + 1] = _mm512_unpackhi_epi64(b[i], b[i + 2]);
        a[i + 2] = _mm512_unpacklo_epi64(b[i + 1], b[i + 3]);
        a[i + 3] = _mm512_unpackhi_epi64(b[i + 1], b[i + 3]);
    }
    for (int i = 0; i < 4; ++i) {
        b[i] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0x88);
        b[i + 4] = _mm512_shuffle_i32x4(a[i], a[i + 4], 0xdd);
        b[i + 8] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0x88);
        b[i + 12] = _mm512_shuffle_i32x4(a[i + 8], a[i + 12], 0xdd);
    }
    for (int i = 0; i < 8; ++i) {
        _mm512_store_si512(to + i * 32, _mm512_shuffle_i32x4(b[i], b[i + 8], 0x88));
        _mm512_store_si512(to + (i + 8) * 32, _mm512_shuffle_i32x4(b[i], b[i + 8], 0xdd));
    }
}

// Sixteen rows of W from `row` on, `count` groups from `first` on, as tiles: [columns / 32][16 pairs][16 rows][2].
template <class Layout>
void pack_rows(const Weights& w, int64_t row, int64_t first, int64_t count, uint16_t* out) {
    alignas(64) bfloat16 rows[side][Layout::block];
    const int64_t present = std::clamp<int64_t>(w.rows - row, 0, side);
    std::memset(rows[present % side], 0, (side - present) * sizeof rows[0]);
    int64_t place[side];
    for (int64_t r = 0; r < present; ++r) place[r] = (w.order ? w.order[row + r] : row + r) * w.groups;
    for (int64_t group = first; group < first + count; ++group) {
        for (int64_t r = 0; r < present; ++r) {
            float values[2];
            for (int field = 0; field < Layout::fields; ++field) values[field] = w.fields[field].at(place[r] + group);
            Layout::decode(w.codes + (place[r] + group) * Layout::bytes, values, rows[r]);
        }
        for (int column = 0; column < Layout::block; column += depth, out += tile)
            transpose(rows[0] + column, Layout::block, out);
    }
}

struct Packer {
    void (*pack)(const Weights&, int64_t, int64_t, int64_t, uint16_t*);
    int64_t block;
};
template <class Layout>
constexpr Packer packer() {
    return {pack_rows<Layout>, Layout::block};
}
const Packer packers[] = {packer<Q4_0>(),         packer<Q4_1>(),        packer<Q5_0>(), packer<Q5_1>(),   packer<Q8_0>(),
                          packer<Q45_K<false>>(), packer<Q45_K<true>>(), packer<Q6_K>(), packer<IQ4_NL>(), packer<Plain>()};

// Sixteen numbers of x.
floats16 load_x(const Product& p, int64_t at) {
    floats16 x;
    if (p.x_bfloat16) {
        __m256i narrow = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(static_cast<const uint16_t*>(p.x) + at));
        return bits_as<floats16>(_mm512_slli_epi32(_mm512_cvtepu16_epi32(narrow), 16));
    }
    std::memcpy(&x, static_cast<const float*>(p.x) + at, sizeof x);
    return x;
}

// Some columns of thirty-two rows of x from `token` on, rounded to bfloat16, as tiles: [2][columns / 32][16 rows][32].
void pack_tokens(const Product& p, int64_t token, int64_t first, int64_t count, uint16_t* out) {
    for (int64_t r = 0; r < stripe; ++r) {
        uint16_t* to = out + r / side * side * count + r % side * depth;
        int64_t at = (token + r) * p.pitch + first;
        const bool there = token + r < p.tokens;
        Along factors = p.scaling.of_columns(there ? token + r : 0, first);
        for (int64_t column = 0; column < count; column += depth, at += depth, to += tile) {
            if (!there) {
                std::memset(to, 0, depth * sizeof *to);
            } else if (p.x_bfloat16 && !factors.at) {
                std::memcpy(to, static_cast<const uint16_t*>(p.x) + at, depth * sizeof *to);
            } else {
                floats16 low = load_x(p, at), high = load_x(p, at + 16);
                if (factors.at) low = low * factors.next(), high = high * factors.next();
                __m512bh both = _mm512_cvtne2ps_pbh(bits_as<__m512>(high), bits_as<__m512>(low));
                std::memcpy(to, &both, sizeof both);
            }
        }
    }
}

// Sixteen lines into the first-level cache. While the neighbour on a shared core is busy, this is worth a third.
void fetch(const uint16_t* from) {
    for (int line = 0; line < 16; ++line) _mm_prefetch(from + line * depth, _MM_HINT_T0);
}

// sums += a bᵀ for `high` x 16 rows of x and 32 rows of W, each [2][columns / 32] tiles.
template <int high>
void multiply_block(const uint16_t* a, const uint16_t* b, int64_t columns, bool first, float* sums, int64_t pitch) {
    const int64_t next = side * columns;
    float* below = sums + side * pitch;
    std::atomic_signal_fence(std::memory_order_seq_cst);  // GCC's tile loads do not say that they read memory
    if (first) {
        _tile_zero(0);
        _tile_zero(1);
        _tile_zero(2);
        _tile_zero(3);
    } else {
        _tile_loadd(0, sums, pitch * 4);
        _tile_loadd(1, sums + side, pitch * 4);
        _tile_loadd(2, below, pitch * 4);
        _tile_loadd(3, below + side, pitch * 4);
    }
    for (const uint16_t* end = a + next; a != end; a += tile, b += tile) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        fetch(b + tile);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + next, 64);
        fetch(b + next + tile);
        _tile_dpbf16ps(1, 4, 7);
        fetch(a + tile);
        if (high == 2) {
            _tile_loadd(5, a + next, 64);
            _tile_dpbf16ps(2, 5, 6);
            fetch(a + next + tile);
            _tile_dpbf16ps(3, 5, 7);
        }
    }
    _tile_stored(0, sums, pitch * 4);
    _tile_stored(1, sums + side, pitch * 4);
    if (high == 2) {
        _tile_stored(2, below, pitch * 4);
        _tile_stored(3, below + side, pitch * 4);
    }
}

struct Configuration {
    uint8_t palette = 1, start = 0, reserved[14] = {};
    uint16_t bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};
constexpr Configuration configuration;  // of all eight tile registers: 16 rows of 64 bytes

// What the register blocks left in `sums`, scaled, to y.
void put(const Product& p, const float* sums, int64_t token, int64_t row, int64_t last_row) {
    const int64_t high = std::min(stripe, p.tokens - token), wide = std::min(stripe, last_row - row);
    const uint32_t there = wide < stripe ? (1u << wide) - 1 : ~0u;
    const __mmask16 first = __mmask16(there), second = __mmask16(there >> 16);
    for (int64_t r = 0; r < high; ++r, sums += stripe) {
        const int64_t at = (token + r) * p.weights.rows + row;
        __m512 low = _mm512_load_ps(sums), rest = _mm512_load_ps(sums + 16);
        if (const float* factors = p.scaling.of_rows(token + r)) {
            low = _mm512_mul_ps(low, _mm512_maskz_loadu_ps(first, factors + row));
            rest = _mm512_mul_ps(rest, _mm512_maskz_loadu_ps(second, factors + row + 16));
        }
        if (p.y_bfloat16) {
            uint16_t* to = static_cast<uint16_t*>(p.y) + at;
            _mm256_mask_storeu_epi16(to, first, __m256i(_mm512_cvtneps_pbh(low)));
            _mm256_mask_storeu_epi16(to + 16, second, __m256i(_mm512_cvtneps_pbh(rest)));
        } else {
            float* to = static_cast<float*>(p.y) + at;
            _mm512_mask_storeu_ps(to, first, low);
            _mm512_mask_storeu_ps(to + 16, second, rest);
        }
    }
}

// The rows of W from `row` to `last`, for all rows of x. `a` and `w` hold the tiles of either, `sums` what is not in y yet.
void multiply_panel(const Product& p, const Packer& packer, int64_t row, int64_t last, uint16_t* a, uint16_t* w,
                    float* sums) {
    const int64_t wide = up(last - row, stripe);
    for (int64_t column = 0; column < p.columns; column += range) {
        const int64_t width = std::min(range, p.columns - column);
        const bool first = column == 0, final = column + width == p.columns;
        for (int64_t r = 0; r < wide; r += side)
            packer.pack(p.weights, row + r, column / packer.block, width / packer.block, w + r * width);
        for (int64_t token = 0; token < p.tokens; token += stripe) {
            pack_tokens(p, token, column, width, a);
            for (int64_t r = 0; r < wide; r += stripe) {
                const bool whole = token + stripe <= p.tokens && row + r + stripe <= last;
                const bool direct = first && final && whole && !p.y_bfloat16 && !p.scaling.rows;
                float* block = sums + (first && final ? 0 : token * wide + r * stripe);
                float* to = direct ? static_cast<float*>(p.y) + token * p.weights.rows + row + r : block;
                const auto multiply = token + side < p.tokens ? multiply_block<2> : multiply_block<1>;
                multiply(a, w + r * width, width, first, to, direct ? p.weights.rows : stripe);
                if (final && !direct) put(p, block, token, row + r, last);
            }
        }
    }
}

void multiply_all(const Product& p, const Packer& packer, int threads) {
    const int64_t rows = p.weights.rows, width = std::min(range, p.columns), share = (rows + threads - 1) / threads;
    const int64_t wide = std::min(up(share, stripe), panel / width / stripe * stripe);
#pragma omp parallel num_threads(threads)
    {
        uint16_t* tiles = scratch<uint16_t>((stripe + wide) * width);
        float* sums = scratch<float>(width == p.columns ? stripe * stripe : up(p.tokens, stripe) * wide);
        _tile_loadconfig(&configuration);
#pragma omp for schedule(static)
        for (int64_t row = 0; row < rows; row += wide)
            multiply_panel(p, packer, row, std::min(row + wide, rows), tiles, tiles + stripe * width, sums);
        _tile_release();
    }
}

}  // namespace

extern "C" int32_t zoquant_matmul_ready() {
    const int request = 0x1023, tile_data = 18;  // ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA
    static const bool allowed = syscall(SYS_arch_prctl, request, tile_data) == 0;
    return allowed;
}

extern "C" void zoquant_matmul(int32_t layout, const uint8_t* codes, const void* first, int32_t first_dtype,
                               const void* second, int32_t second_dtype, const int64_t* order, int64_t rows,
                               int64_t groups, const void* x, int32_t x_bfloat16, int64_t tokens, int64_t pitch,
                               void* y, int32_t y_bfloat16, const float* by_columns, int64_t columns_pitch,
                               int64_t width, const float* by_rows, int64_t rows_pitch, const int32_t* block,
                               int64_t in_block, int32_t threads) {
    const Packer& packer = packers[layout];
    const Weights weights = {codes, {{first, first_dtype}, {second, second_dtype}}, order, rows, groups};
    const Scaling scaling = {by_columns, columns_pitch, width, by_rows, rows_pitch, block, in_block};
    const int64_t columns = groups * packer.block;
    multiply_all({weights, scaling, x, x_bfloat16 != 0, tokens, pitch, columns, y, y_bfloat16 != 0}, packer, threads);
}

#else

extern "C" int32_t zoquant_matmul_ready() { return 0; }
extern "C" void zoquant_matmul(int32_t, const uint8_t*, const void*, int32_t, const void*, int32_t, const int64_t*,
                               int64_t, int64_t, const void*, int32_t, int64_t, int64_t, void*, int32_t, const float*,
                               int64_t, int64_t, const float*, int64_t, const int32_t*, int64_t, int32_t) {}

#endif
