// The noise of zoquant/noise.py: Philox4x32-10 on the counters of blocks of 128 elements, sixteen blocks side by side.
//
// A tile is those sixteen blocks: 2,048 elements, 8 KiB, which stay in the first-level cache while any number of
// directions is drawn and added. Every product and every sum is rounded on its own, as torch does it.
//
// Source: Salmon, Moraes, Dror, Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011 (Philox4x32-10).

#pragma once

#include <cstdint>
#include <cstring>
#ifdef __AVX512F__
#include <immintrin.h>
#endif

namespace {  // each source has a copy of its own, so that nothing here is a symbol of the library

constexpr int lanes = 16, block = 128, tile = lanes * block, rounds = 10;
enum Kind : uint32_t { rademacher = 0, gaussian = 1 };

typedef uint32_t words16 __attribute__((vector_size(64)));
typedef uint64_t longs8 __attribute__((vector_size(64)));
typedef float floats16 __attribute__((vector_size(64)));

struct Layout {
    Kind kind;
    const float* table;       // 65,536 quantiles, for Gaussian noise
    const int64_t* counters;  // [3, blocks]: number of the block within its key, low and high half of the key's hash
    int64_t blocks;
};

// The products of the lower halves of eight 64-bit numbers with `factor`.
longs8 products(longs8 numbers, uint32_t factor) {
#ifdef __AVX512F__  // one instruction, which GCC 12 does not find
    return longs8(_mm512_mul_epu32(__m512i(numbers), _mm512_set1_epi64(factor)));
#else
    return (numbers & 0xffffffffu) * factor;
#endif
}

// Upper and lower halves of sixteen products; the words of odd places are the upper halves of the 64-bit numbers.
void multiply(words16 words, uint32_t factor, words16* high, words16* low) {
    const longs8 upper = longs8{} + 0xffffffff00000000u;
    longs8 even = products(longs8(words), factor), odd = products(longs8(words) >> 32, factor);
    *high = words16(even >> 32 | (odd & upper));
    *low = words16((even & ~upper) | odd << 32);
}

// Call number `call` of each of 16 blocks from `first`, of which `count` exist.
void philox(const Layout& layout, int64_t first, int count, uint32_t calls, uint32_t call, uint64_t seed,
            words16 c[4]) {
    for (int i = 0; i < lanes; ++i) {
        const int64_t* counter = layout.counters + first + (i < count ? i : 0);
        c[0][i] = uint32_t(counter[0]) * calls + call;
        c[2][i] = uint32_t(counter[layout.blocks]);
        c[3][i] = uint32_t(counter[2 * layout.blocks]);
    }
    c[1] = words16{} + uint32_t(layout.kind);
    uint32_t k0 = uint32_t(seed), k1 = uint32_t(seed >> 32);
    for (int round = 0; round < rounds; ++round, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
        words16 high0, low0, high1, low1;
        multiply(c[0], 0xD2511F53u, &high0, &low0);
        multiply(c[2], 0xCD9E8D57u, &high1, &low1);
        c[0] = high1 ^ c[1] ^ k0;
        c[2] = high0 ^ c[3] ^ k1;
        c[1] = low1;
        c[3] = low0;
    }
}

// Calls `use(element, z)` for every sixteen elements of the blocks from `first`, of which `count` exist.
template <class Use>
void draw(const Layout& layout, int64_t first, int count, uint64_t seed, Use use) {
    words16 words[4];
    if (layout.kind == rademacher) {
        const words16 place = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};
        philox(layout, first, count, 1, 0, seed, words);
        for (int lane = 0; lane < lanes; ++lane)
            for (int half = 0; half < 8; ++half) {
                const words16 bits = words16{} + (~words[half / 2][lane] >> half % 2 * 16);
                use(block * lane + 16 * half, floats16(bits >> place << 31 | 0x3f800000u));  // a set bit is +1
            }
        return;
    }
    uint32_t drawn[lanes][16][4];
    for (uint32_t call = 0; call < 16; ++call) {
        philox(layout, first, count, 16, call, seed, words);
        for (int lane = 0; lane < lanes; ++lane)
            for (int w = 0; w < 4; ++w) drawn[lane][call][w] = words[w][lane];
    }
    for (int element = 0; element < tile; element += 16) {
        uint16_t index[16];
        floats16 z;
        std::memcpy(index, reinterpret_cast<const uint16_t*>(drawn) + element, sizeof index);
        for (int i = 0; i < 16; ++i) z[i] = layout.table[index[i]];
        use(element, z);
    }
}

// Calls `use(first block, blocks)` for every tile.
template <class Use>
void walk(int64_t blocks, int threads, Use use) {
#pragma omp parallel for num_threads(threads) schedule(dynamic, 4)
    for (int64_t first = 0; first < blocks; first += lanes)
        use(first, int(blocks - first < lanes ? blocks - first : lanes));
}

}  // namespace
