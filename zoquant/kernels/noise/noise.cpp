// Noise into memory, and any number of directions onto delta, a tile at a time.

#include "philox.h"

// out = z, or delta + eps z where `delta` is not null: for Rademacher noise the product is exact.
extern "C" void zoquant_noise(int32_t kind, const float* table, const int64_t* counters, int64_t all, int64_t start,
                              int64_t blocks, uint64_t seed, const float* delta, float eps, float* out,
                              int32_t threads) {
    const Layout layout{Kind(kind), table, counters, all};
    walk(blocks, threads, [=](int64_t first, int count) {
        floats16 values[tile / 16];
        if (delta) std::memcpy(values, delta + first * block, sizeof(float) * block * count);
        draw(layout, start + first, count, seed, [&](int element, floats16 z) {
            values[element / 16] = delta ? values[element / 16] + z * eps : z;
        });
        std::memcpy(out + first * block, values, sizeof(float) * block * count);
    });
}

// delta += amounts[s] z(seeds[s]) for every s in turn.
extern "C" void zoquant_accumulate(int32_t kind, const float* table, const int64_t* counters, int64_t all,
                                   const uint64_t* seeds, const float* amounts, int64_t directions, float* delta,
                                   int32_t threads) {
    const Layout layout{Kind(kind), table, counters, all};
    walk(all, threads, [=](int64_t first, int count) {
        floats16 sums[tile / 16] = {};
        float* place = delta + first * block;
        std::memcpy(sums, place, sizeof(float) * block * count);
        for (int64_t s = 0; s < directions; ++s) {
            const float amount = amounts[s];
            draw(layout, first, count, seeds[s], [&](int element, floats16 z) { sums[element / 16] += z * amount; });
        }
        std::memcpy(place, sums, sizeof(float) * block * count);
    });
}
